/* cells.c - layers that store every token as a cell. */
#include "kv/cells.h"

#include "core/checked.h"
#include "kv/inside.h"

/* A ring holds the window plus a whole chunk, because a chunk is stored before its first query is answered. The same
 * room keeps a tentative chunk from overwriting what the next token sees, even if none of the chunk is committed. */
static uint32_t count_cells(const lq_kv_spec *spec, uint32_t window) {
    uint32_t n_chunk = spec->n_chunk > spec->max_tentative ? spec->n_chunk : spec->max_tentative;
    if (window == 0) return spec->n_ctx;
    if (window >= spec->n_limit || spec->n_limit - window <= n_chunk) return spec->n_limit;
    return window + n_chunk;
}

/* Computes sizes; allocates nothing. */
static lq_status measure(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, lq_kv_cells *cells) {
    cells->format = layer->window == 0 ? spec->recipe.cells : LQ_CELL_F16;
    cells->n_cells = count_cells(spec, layer->window);
    cells->n_sinks = layer->window == 0 && spec->n_limit > spec->n_ctx ? LQ_KV_DROP_SINKS : 0;
    cells->k = cells->v = NULL;
    uint64_t cell = layer->n_kv_heads * (uint64_t)lq_cell_bytes(cells->format, layer->head_dim);
    if (!lq_mul_u64(cell, cells->n_cells, &cells->bytes) || cells->bytes > (uint64_t)1 << 60)
        return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
    return LQ_OK;
}

static lq_status plan(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, uint64_t *n_bytes) {
    lq_kv_cells cells = {0};
    LQ_TRY(measure(spec, layer, &cells));
    *n_bytes = 2 * cells.bytes;
    return LQ_OK;
}

static lq_status create(lq_kv_cache *cache, lq_state *state) {
    lq_kv_cells *cells = &state->cells;
    void *memory;
    LQ_TRY(measure(&cache->spec, state->layer, cells));
    LQ_TRY(state->backend->ops->alloc(state->backend, cells->bytes, "KV cache", &memory));
    cells->k = memory;
    LQ_TRY(state->backend->ops->alloc(state->backend, cells->bytes, "KV cache", &memory));
    cells->v = memory;
    return LQ_OK;
}

static void free_cells(lq_kv_cache *cache, lq_state *state) {
    (void)cache;
    state->backend->ops->release(state->backend, state->cells.k, state->cells.bytes);
    state->backend->ops->release(state->backend, state->cells.v, state->cells.bytes);
}

static uint32_t cell_of(const lq_kv_cells *cells, uint32_t position) {
    if (position < cells->n_cells) return position;
    return cells->n_sinks + (position - cells->n_sinks) % (cells->n_cells - cells->n_sinks);
}

uint32_t lq_kv_cells_runs(const lq_state *state, uint32_t first, uint32_t end, lq_attn_run runs[LQ_KV_CELLS_MAX_RUNS]) {
    const lq_kv_cells *cells = &state->cells;
    uint64_t cell_bytes = lq_cell_bytes(cells->format, state->layer->head_dim);
    uint32_t n_runs = 0, at = 0;
    if (cells->n_sinks == 0) at = first;
    while (at < end) {
        bool sinks = at < cells->n_sinks && first > cells->n_sinks;
        uint32_t cell = cell_of(cells, at), stop = sinks ? cells->n_sinks : end;
        uint32_t n = cells->n_cells - cell < stop - at ? cells->n_cells - cell : stop - at;
        runs[n_runs++] = (lq_attn_run){.format = cells->format,
                                       .k = cells->k + cell * cell_bytes,
                                       .v = cells->v + cell * cell_bytes,
                                       .head_bytes = cells->n_cells * cell_bytes,
                                       .n_cells = n,
                                       .pos0 = at};
        at = sinks ? first : at + n;
    }
    return n_runs;
}

static void store(const lq_state *state, uint8_t *dst, const float *x, uint32_t pos0, uint32_t n_tokens) {
    const lq_kv_cells *cells = &state->cells;
    uint32_t n_kv_heads = state->layer->n_kv_heads, head_dim = state->layer->head_dim;
    uint64_t head_bytes = cells->n_cells * (uint64_t)lq_cell_bytes(cells->format, head_dim);
    for (uint32_t done = 0; done < n_tokens;) {
        uint32_t cell = cell_of(cells, pos0 + done), n = cells->n_cells - cell;
        if (n > n_tokens - done) n = n_tokens - done;
        state->backend->ops->kv_store(state->backend, cells->format, dst, head_bytes,
                                      x + (size_t)done * n_kv_heads * head_dim, n, n_kv_heads, head_dim, cell,
                                      cells->n_cells);
        done += n;
    }
}

/* Rings are plain f16, never rotated. */
static bool rotates(const lq_kv_cache *cache, const lq_state *state) {
    return state->layer->window == 0 && cache->spec.recipe.rotates_keys;
}

/* The oldest position that a query at `position` sees. */
static uint32_t oldest_seen(const lq_kv_cache *cache, const lq_state *state, uint32_t position) {
    uint32_t window = state->layer->window;
    if (window == 0) return lq_kv_cache_first_cell(cache, state);
    return position >= window ? position - window + 1 : 0;
}

static void note_watched(lq_state *state, lq_attention *args) {
    lq_kv_watched *watched = &state->watched;
    if (watched->attention == NULL) return;
    args->accumulated = watched->attention;
    watched->first_position = args->runs[0].pos0; /* runs of cells follow each other by position */
    watched->n_cells = 0;
    for (uint32_t i = 0; i < args->n_runs; i++) watched->n_cells += args->runs[i].n_cells;
}

static uint32_t begin(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, float *k, float *v,
                      lq_attention *args) {
    uint32_t n = chunk->n_tokens, end = chunk->pos0 + n, head_dim = state->layer->head_dim;
    size_t q_row = (size_t)args->n_heads * head_dim;
    const lq_backend_ops *ops = state->backend->ops;
    if (rotates(cache, state)) {
        ops->hadamard(state->backend, args->q, n * args->n_heads, head_dim);
        ops->hadamard(state->backend, k, n * state->layer->n_kv_heads, head_dim);
        ops->hadamard(state->backend, v, n * state->layer->n_kv_heads, head_dim);
    }
    store(state, state->cells.k, k, chunk->pos0, n);
    store(state, state->cells.v, v, chunk->pos0, n);
    /* Raise the floor when cells are written, not when the chunk ends: a cancelled chunk has overwritten them all the
     * same. */
    if (state->layer->window != 0 && state->cells.n_cells < cache->spec.n_limit && end > state->cells.n_cells &&
        end - state->cells.n_cells > state->floor)
        state->floor = end - state->cells.n_cells;
    if (!chunk->tentative) {
        args->n_runs = lq_kv_cells_runs(state, oldest_seen(cache, state, chunk->pos0), end, args->runs);
        note_watched(state, args);
        return 1;
    }
    for (uint32_t i = n; i-- > 0;) { /* args[0], from which the others are made, is the last to change */
        args[i] = args[0];
        args[i].q += i * q_row;
        args[i].out += i * q_row;
        args[i].n_tokens = 1;
        args[i].pos0 = chunk->pos0 + i;
        args[i].n_runs =
            lq_kv_cells_runs(state, oldest_seen(cache, state, args[i].pos0), args[i].pos0 + 1, args[i].runs);
    }
    return n;
}

static void end(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, const lq_attention *args) {
    if (rotates(cache, state))
        state->backend->ops->hadamard(state->backend, args->out, chunk->n_tokens * args->n_heads,
                                      state->layer->head_dim);
}

static bool can_rewind(const lq_kv_cache *cache, const lq_state *state, uint32_t n_keep) {
    return state->floor <= oldest_seen(cache, state, n_keep);
}

static void rewind_ring(lq_kv_cache *cache, lq_state *state, uint32_t n_keep) {
    (void)cache;
    if (n_keep == 0) state->floor = 0;
}

/* Visits the cells that the next token, at position n_tokens, can see. */
static lq_status walk(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens, uint32_t parts,
                      lq_kv_visit visit, void *context) {
    lq_attn_run runs[LQ_KV_CELLS_MAX_RUNS];
    if (state->layer->window == 0 && (parts & LQ_KV_PART_CELLS) == 0) return LQ_OK;
    uint32_t n_runs = lq_kv_cells_runs(state, oldest_seen(cache, state, n_tokens), n_tokens, runs);
    for (uint32_t i = 0; i < n_runs; i++) {
        uint64_t n_bytes = runs[i].n_cells * lq_cell_bytes(runs[i].format, state->layer->head_dim);
        for (uint32_t head = 0; head < state->layer->n_kv_heads; head++) {
            LQ_TRY(visit(context, state->backend, runs[i].k + head * runs[i].head_bytes, n_bytes));
            LQ_TRY(visit(context, state->backend, runs[i].v + head * runs[i].head_bytes, n_bytes));
        }
    }
    return LQ_OK;
}

/* A walk writes no more than a window of a ring: older cells are lost. */
static void restored_ring(lq_kv_cache *cache, lq_state *state, uint32_t n_tokens) {
    if (state->cells.n_cells < cache->spec.n_limit) state->floor = oldest_seen(cache, state, n_tokens);
}

static void add_usage(const lq_kv_cache *cache, const lq_state *state, lq_kv_usage *usage) {
    const lq_kv_cells *cells = &state->cells;
    bool is_ring = state->layer->window != 0;
    uint64_t n = cache->n_tokens - (uint64_t)(is_ring ? 0 : usage->n_dropped);
    if (n > cells->n_cells) n = cells->n_cells;
    *(is_ring ? &usage->ring_bytes : &usage->full_bytes) += 2 * (cells->bytes / cells->n_cells) * n;
}

const lq_state_ops lq_state_cells = {
    .name = "cells",
    .can_undo = true,
    .plan = plan,
    .create = create,
    .free = free_cells,
    .begin = begin,
    .end = end,
    .walk = walk,
    .add_usage = add_usage,
};

const lq_state_ops lq_state_ring = {
    .name = "ring",
    .can_undo = true,
    .plan = plan,
    .create = create,
    .free = free_cells,
    .begin = begin,
    .end = end,
    .can_rewind = can_rewind,
    .rewind = rewind_ring,
    .walk = walk,
    .restored = restored_ring,
    .add_usage = add_usage,
};
