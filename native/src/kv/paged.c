/* paged.c - a layer's LogQuant cache. docs/format.md has the rules. */
#include "kv/paged.h"

#include <string.h>

#include "core/arena.h"
#include "kv/inside.h"

#define CELL_F16(shared) lq_cell_bytes(LQ_CELL_F16, (shared)->head_dim)

/* ---- sizes */

static void allocate_layer(const lq_kv_paged_group *s, lq_arena *arena, lq_kv_paged_layer *layer) {
    const lq_kv_spec *spec = s->spec;
    uint64_t heads = s->n_kv_heads, f16 = CELL_F16(s), cell = lq_cell_bytes(spec->recipe.cells, s->head_dim);
    layer->sinks_k = lq_arena_take(arena, heads * spec->recipe.sinks, f16);
    layer->sinks_v = lq_arena_take(arena, heads * spec->recipe.sinks, f16);
    layer->open_k = lq_arena_take(arena, heads * s->max_open, f16);
    layer->open_v = lq_arena_take(arena, heads * s->max_open, f16);
    layer->overlay_k = lq_arena_take(arena, heads * s->max_overlay, cell);
    layer->overlay_v = lq_arena_take(arena, heads * s->max_overlay, cell);
    layer->positions = lq_arena_take(arena, heads * s->max_overlay, sizeof(uint32_t));
    layer->accumulated = layer->rows = NULL;
    if (spec->recipe.policy->needs_accumulated) {
        layer->accumulated = lq_arena_take(arena, heads * (spec->recipe.sinks + s->max_full), sizeof(float));
        layer->rows = lq_arena_take(arena, spec->max_tentative * heads * s->max_row, sizeof(float));
    }
    layer->pages.format = &s->format;
    layer->pages.order = lq_arena_take(arena, spec->recipe.evicts ? 0 : heads * s->head_dim, sizeof(uint16_t));
    layer->pages.n_slots = s->max_pages;
    layer->pages.masks = lq_arena_take(arena, heads * s->max_pages, sizeof(uint64_t));
}

static void allocate_stage(lq_kv_paged_group *s, lq_arena *arena) {
    uint64_t heads = s->n_kv_heads;
    s->chunk_k = lq_arena_take(arena, heads * s->spec->n_chunk, CELL_F16(s));
    s->chunk_v = lq_arena_take(arena, heads * s->spec->n_chunk, CELL_F16(s));
    s->accumulated =
        lq_arena_take(arena, s->spec->recipe.policy->needs_accumulated ? heads * s->max_columns : 0, sizeof(float));
    s->columns = lq_arena_take(arena, heads * s->max_full, sizeof(uint32_t));
}

lq_status lq_kv_paged_plan(const lq_kv_spec *spec, const lq_kv_layer_spec *shape, lq_kv_paged_group *s) {
    const lq_kv_recipe *r = &spec->recipe;
    lq_kv_paged_layer layer;
    memset(s, 0, sizeof *s);
    s->spec = spec;
    s->n_kv_heads = shape->n_kv_heads;
    s->head_dim = shape->head_dim;
    if (!r->evicts)
        lq_page_format_init(&s->format, s->head_dim, &r->keys, r->value_bits, r->least_squares, r->f16_scales);
    uint32_t n_tokens = spec->n_ctx > r->sinks ? spec->n_ctx - r->sinks : 0;
    uint32_t n_ever = spec->n_limit > r->sinks ? spec->n_limit - r->sinks : 0;
    s->max_pages = r->evicts ? 0 : n_tokens / LQ_PAGE_TOKENS;
    s->max_full = n_ever < 3 * r->window ? n_ever : 3 * r->window;
    s->max_overlay = s->max_full / LQ_PAGE_TOKENS * LQ_PAGE_TOKENS;
    if (s->max_overlay == 3 * r->window) s->max_overlay -= LQ_PAGE_TOKENS; /* with 3W full tokens, W are given up */
    s->max_open = LQ_PAGE_TOKENS + spec->max_tentative;
    s->max_row = r->sinks + s->max_full + spec->max_tentative;
    s->max_columns =
        r->sinks + s->max_full + (spec->n_chunk > spec->max_tentative ? spec->n_chunk : spec->max_tentative);
    s->block_bytes = r->evicts ? 0 : lq_page_block_bytes(&s->format, s->n_kv_heads);
    lq_arena arena = {0};
    allocate_layer(s, &arena, &layer);
    s->layer_bytes = arena.n_bytes;
    arena.n_bytes = 0;
    allocate_stage(s, &arena);
    s->stage_bytes = arena.n_bytes;
    if (r->policy->needs_accumulated)
        s->lone_bytes = (uint64_t)s->n_kv_heads * (r->sinks + s->max_full + 1) * sizeof(float);
    if (arena.overflow)
        return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
    return LQ_OK;
}

/* ---- life */

/* Points the group's stage to lq_kv_work's memory, which may have moved since it was last used. */
static void use_work(const lq_kv_cache *cache, lq_kv_group *group) {
    lq_arena arena = {.base = cache->work->device[group->device]};
    allocate_stage(&group->paged, &arena);
}

void lq_kv_paged_layer_init(const lq_kv_paged_group *s, void *memory, lq_kv_paged_layer *layer) {
    memset(layer, 0, sizeof *layer);
    lq_arena arena = {.base = memory};
    allocate_layer(s, &arena, layer);
}

/* ---- counts */

static uint32_t past_sinks(const lq_kv_spec *spec, uint32_t n_tokens) {
    return n_tokens > spec->recipe.sinks ? n_tokens - spec->recipe.sinks : 0;
}

lq_kv_paged_counts lq_kv_paged_count(const lq_kv_spec *spec, uint32_t n_tokens) {
    uint32_t n = past_sinks(spec, n_tokens);
    lq_kv_paged_counts counts = {.n_sinks = n_tokens - n, .n_open = n % LQ_PAGE_TOKENS, .n_pages = n / LQ_PAGE_TOKENS};
    counts.n_overlay = lq_kv_n_full(n, spec->recipe.window) - counts.n_open;
    return counts;
}

static void count_usage(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n_tokens,
                        lq_kv_usage *usage) {
    const lq_kv_spec *spec = s->spec;
    lq_kv_paged_counts counts = lq_kv_paged_count(spec, n_tokens);
    uint64_t heads = s->n_kv_heads, accumulated = spec->recipe.policy->needs_accumulated ? sizeof(float) : 0;
    uint64_t n_pages = spec->recipe.evicts ? 0 : counts.n_pages - layer->pages.first_page;
    uint64_t codes = heads * n_pages * (s->format.k_bytes + s->format.v_bytes);
    uint64_t order = spec->recipe.evicts ? 0 : s->head_dim * sizeof(uint16_t);
    usage->code_bytes += codes;
    usage->scale_bytes += n_pages * s->block_bytes - codes;
    usage->mask_bytes += heads * n_pages * sizeof(uint64_t);
    usage->full_bytes += 2 * heads *
                         ((spec->recipe.sinks + s->max_open) * CELL_F16(s) +
                          s->max_overlay * lq_cell_bytes(spec->recipe.cells, s->head_dim));
    uint64_t positions = s->max_overlay * sizeof(uint32_t);
    usage->index_bytes += heads * (positions + (spec->recipe.sinks + s->max_full) * accumulated + order);
}

/* ---- runs of cells */

static lq_attn_run sinks_run(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n) {
    lq_attn_run run = {LQ_CELL_F16, layer->sinks_k, layer->sinks_v, s->spec->recipe.sinks * CELL_F16(s), n, true, 0};
    return run;
}

static lq_attn_run overlay_run(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n) {
    lq_cell_format format = s->spec->recipe.cells;
    uint64_t head_bytes = s->max_overlay * lq_cell_bytes(format, s->head_dim);
    lq_attn_run run = {format, layer->overlay_k, layer->overlay_v, head_bytes, n, true, 0};
    return run;
}

static lq_attn_run open_run(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n) {
    lq_attn_run run = {LQ_CELL_F16, layer->open_k, layer->open_v, s->max_open * CELL_F16(s), n, true, 0};
    return run;
}

uint32_t lq_kv_paged_runs(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n_tokens,
                          lq_attn_run runs[3]) {
    lq_kv_paged_counts counts = lq_kv_paged_count(s->spec, n_tokens);
    runs[0] = sinks_run(s, layer, counts.n_sinks);
    runs[1] = overlay_run(s, layer, counts.n_overlay);
    runs[2] = open_run(s, layer, counts.n_open);
    runs[2].pos0 = s->spec->recipe.sinks + counts.n_pages * LQ_PAGE_TOKENS;
    return 3;
}

/* Makes a run of n cells of the staged chunk, from cell first on, whose position is pos0. */
static lq_attn_run chunk_run(const lq_kv_paged_group *s, uint32_t first, uint32_t n, uint32_t pos0) {
    uint64_t at = first * CELL_F16(s), head_bytes = s->spec->n_chunk * CELL_F16(s);
    lq_attn_run run = {LQ_CELL_F16, s->chunk_k + at, s->chunk_v + at, head_bytes, n, false, pos0};
    return run;
}

static void skip_cells(lq_attn_run *run, uint64_t n_bytes) {
    run->k += n_bytes;
    run->v += n_bytes;
}

/* Copies n cells of each head of source, from cell first on, to the first cells of dst. */
static void copy_cells(const lq_kv_paged_group *s, lq_attn_run dst, lq_attn_run source, uint32_t first, uint32_t n) {
    lq_kv_gather gather = {.dst = dst,
                           .n_kv_heads = s->n_kv_heads,
                           .head_dim = s->head_dim,
                           .n_cells = n,
                           .first = first,
                           .n_sources = 1,
                           .sources = {source}};
    s->backend->ops->kv_gather(s->backend, &gather);
}

/* ---- adding a chunk to the history */

/* Where a chunk and the tokens before it are stored. */
typedef struct intake {
    lq_kv_paged_counts before;
    lq_kv_paged_counts after;
    uint32_t first; /* index in the chunk of its first token that is no sink */
    uint32_t n;     /* tokens from there on */
    /* The tokens that are neither sinks nor in a page yet: the open page's, then the chunk's. A chunk stored in place
     * is already part of `open`, and `chunk` is empty. */
    lq_attn_run open, chunk;
    float *accumulated; /* [n_kv_heads][sinks, overlay, open page, chunk] attention that the chunk gave */
    uint32_t n_columns; /* columns of accumulated */
} intake;

static void take_sinks(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in) {
    uint32_t n = in->after.n_sinks - in->before.n_sinks;
    lq_attn_run dst = sinks_run(s, layer, n);
    if (n == 0) return;
    skip_cells(&dst, in->before.n_sinks * CELL_F16(s));
    copy_cells(s, dst, chunk_run(s, 0, n, 0), 0, n);
}

static void pack_pages(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in) {
    lq_kv_pack pack = {.pages = &layer->pages,
                       .first_page = in->before.n_pages,
                       .n_pages = in->after.n_pages - in->before.n_pages,
                       .learn_order = in->before.n_pages == 0,
                       .n_kv_heads = s->n_kv_heads,
                       .n_sources = 2,
                       .sources = {in->open, in->chunk}};
    s->backend->ops->kv_pack(s->backend, &pack);
}

static lq_kv_accumulated accumulated_args(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, const intake *in,
                                          uint32_t n_columns) {
    return (lq_kv_accumulated){.so_far = layer->accumulated,
                               .head_floats = s->spec->recipe.sinks + s->max_full,
                               .now = in->accumulated,
                               .n_kv_heads = s->n_kv_heads,
                               .n_before = in->before.n_sinks + in->before.n_overlay + in->before.n_open,
                               .n_columns = n_columns};
}

/* Adds the attention that the chunk gave when no token leaves: existing columns keep their index, the chunk's follow.
 */
static void add_accumulated(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in, uint32_t n_columns) {
    lq_kv_accumulated args = accumulated_args(s, layer, in, n_columns);
    s->backend->ops->kv_accumulated(s->backend, &args);
}

/* Decides for every head which tokens stay: fills the new overlay's columns and positions. */
static void choose_tokens(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in, uint32_t n_columns) {
    const lq_kv_recipe *r = &s->spec->recipe;
    lq_kv_selection args = {.policy = r->policy,
                            .window = r->window,
                            .n_kv_heads = s->n_kv_heads,
                            .n_tokens = in->before.n_overlay + in->before.n_open + in->n,
                            .n_listed = in->before.n_overlay,
                            .pos0 = r->sinks + in->before.n_pages * LQ_PAGE_TOKENS,
                            .n_full = in->after.n_overlay + in->after.n_open,
                            .n_overlay = in->after.n_overlay,
                            .positions = layer->positions,
                            .head_positions = s->max_overlay,
                            .columns = s->columns,
                            .n_sinks = in->after.n_sinks};
    if (r->policy->needs_accumulated) args.accumulated = accumulated_args(s, layer, in, n_columns);
    s->backend->ops->kv_select(s->backend, &args);
}

/* Sets the masks so that attention skips the codes of the overlay's n_overlay tokens. */
static void set_masks(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n_overlay) {
    lq_kv_masks args = {.pages = &layer->pages,
                        .n_kv_heads = s->n_kv_heads,
                        .positions = layer->positions,
                        .head_positions = s->max_overlay,
                        .n_tokens = n_overlay,
                        .pos0 = s->spec->recipe.sinks};
    s->backend->ops->kv_masks(s->backend, &args);
}

static void move_overlay(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in) {
    lq_kv_gather gather = {.dst = overlay_run(s, layer, in->after.n_overlay),
                           .n_kv_heads = s->n_kv_heads,
                           .head_dim = s->head_dim,
                           .n_cells = in->after.n_overlay,
                           .columns = s->columns,
                           .head_columns = in->after.n_overlay + in->after.n_open,
                           .n_sources = 3,
                           .sources = {overlay_run(s, layer, in->before.n_overlay), in->open, in->chunk}};
    s->backend->ops->kv_gather(s->backend, &gather);
}

/* in_place: the chunk is stored after the open page's tokens, not in the stage. */
static intake make_intake(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t n_held,
                          uint32_t n_tokens, bool in_place) {
    uint32_t n_before = past_sinks(s->spec, n_held), n_after = past_sinks(s->spec, n_held + n_tokens);
    intake in = {.before = lq_kv_paged_count(s->spec, n_held), .after = lq_kv_paged_count(s->spec, n_held + n_tokens)};
    in.n = n_after - n_before;
    in.first = n_tokens - in.n;
    in.n_columns = in.before.n_sinks + in.before.n_overlay + in.before.n_open + n_tokens;
    in.open = open_run(s, layer, in.before.n_open + (in_place ? in.n : 0));
    in.chunk = chunk_run(s, in.first, in_place ? 0 : in.n, n_held + in.first);
    return in;
}

/* Codes the pages that the chunk completed, gives up tokens, and makes what is left of the chunk the open page. */
static void complete_pages(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const intake *in) {
    bool in_place = in->chunk.n_cells == 0;
    const lq_attn_run *last = in_place ? &in->open : &in->chunk;
    if (!s->spec->recipe.evicts) pack_pages(s, layer, in);
    choose_tokens(s, layer, in, in->n_columns);
    move_overlay(s, layer, in);
    /* Tokens that move within open_k and open_v move by a page at least, so that nothing overlaps. */
    copy_cells(s, open_run(s, layer, in->after.n_open), *last, last->n_cells - in->after.n_open, in->after.n_open);
    if (s->spec->recipe.evicts) return;
    layer->pages.end_page = in->after.n_pages;
    set_masks(s, layer, in->after.n_overlay);
}

static void take_chunk(lq_kv_paged_group *s, lq_kv_paged_layer *layer, const lq_kv_chunk *chunk) {
    bool lone = chunk->n_tokens == 1; /* begin() stored it in place */
    intake in = make_intake(s, layer, chunk->pos0, chunk->n_tokens, lone);
    in.accumulated = lone ? s->lone_accumulated : s->accumulated;
    if (!lone) take_sinks(s, layer, &in);
    if (in.after.n_pages != in.before.n_pages) {
        complete_pages(s, layer, &in);
        return;
    }
    lq_attn_run dst = open_run(s, layer, in.chunk.n_cells); /* no page is full, so no token leaves: 64 divides W */
    skip_cells(&dst, in.before.n_open * CELL_F16(s));
    copy_cells(s, dst, in.chunk, 0, in.chunk.n_cells);
    if (s->spec->recipe.policy->needs_accumulated) add_accumulated(s, layer, &in, in.n_columns);
}

/* ---- a tentative chunk: its tokens are stored as if each came alone; those of later pages follow the open page */

static float *tentative_row(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t i) {
    return layer->rows + (size_t)i * s->n_kv_heads * s->max_row;
}

/* Adds the attention that the first n tokens gave, token by token, to sums [n_kv_heads][head_floats]. Only the first
 * n_before columns hold sums already. */
static void add_rows(lq_kv_paged_group *s, lq_kv_paged_layer *layer, float *sums, uint64_t head_floats,
                     uint32_t n_before, uint32_t n_columns, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        lq_kv_accumulated args = {.so_far = sums,
                                  .head_floats = head_floats,
                                  .now = tentative_row(s, layer, i),
                                  .n_kv_heads = s->n_kv_heads,
                                  .n_before = i == 0 ? n_before : n_columns + i,
                                  .n_columns = n_columns + i + 1};
        s->backend->ops->kv_accumulated(s->backend, &args);
    }
}

static void commit(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, uint32_t n_tokens) {
    lq_kv_paged_group *s = &state->group->paged;
    lq_kv_paged_layer *layer = &state->paged;
    bool needs_accumulated = s->spec->recipe.policy->needs_accumulated;
    use_work(cache, state->group);
    intake in = make_intake(s, layer, chunk->pos0, n_tokens, true);
    uint32_t n_before = in.n_columns - n_tokens;
    if (in.after.n_pages == in.before.n_pages) {
        uint64_t head_floats = s->spec->recipe.sinks + s->max_full;
        if (needs_accumulated) add_rows(s, layer, layer->accumulated, head_floats, n_before, n_before, n_tokens);
        return;
    }
    in.accumulated = s->accumulated;
    if (needs_accumulated) add_rows(s, layer, s->accumulated, in.n_columns, 0, n_before, n_tokens);
    complete_pages(s, layer, &in);
}

/* ---- attending */

/* Stores tokens where they stay until their page is complete: among the sinks, or after the open page's tokens. */
static void store_in_place(lq_kv_paged_group *s, lq_kv_paged_layer *layer, uint32_t n_held, uint32_t n, const float *k,
                           const float *v) {
    const lq_kv_spec *spec = s->spec;
    const lq_backend_ops *ops = s->backend->ops;
    lq_kv_paged_counts counts = lq_kv_paged_count(spec, n_held);
    uint32_t n_sinks = spec->recipe.sinks - counts.n_sinks < n ? spec->recipe.sinks - counts.n_sinks : n;
    for (int part = 0; part < 2; part++) {
        uint32_t n_cells = part == 0 ? n_sinks : n - n_sinks, room = part == 0 ? spec->recipe.sinks : s->max_open;
        uint32_t cell = part == 0 ? counts.n_sinks : counts.n_open;
        lq_attn_run run = part == 0 ? sinks_run(s, layer, room) : open_run(s, layer, room);
        size_t done = part == 0 ? 0 : (size_t)n_sinks * s->n_kv_heads * s->head_dim;
        if (n_cells == 0) continue;
        ops->kv_store(s->backend, LQ_CELL_F16, run.k, run.head_bytes, k + done, n_cells, s->n_kv_heads, s->head_dim,
                      cell, room);
        ops->kv_store(s->backend, LQ_CELL_F16, run.v, run.head_bytes, v + done, n_cells, s->n_kv_heads, s->head_dim,
                      cell, room);
    }
}

/* Limits args to what token i of a chunk stored in place sees: the tokens before the chunk, and the chunk's up to
 * itself. */
static void set_token(const lq_kv_paged_group *s, const lq_kv_chunk *chunk, uint32_t i, lq_attention *args) {
    uint32_t before = past_sinks(s->spec, chunk->pos0), n = past_sinks(s->spec, chunk->pos0 + i + 1);
    args->n_tokens = 1;
    args->pos0 = chunk->pos0 + i;
    args->runs[0].n_cells = chunk->pos0 + i + 1 - n;
    args->runs[2].n_cells += n - before;
}

static void store_in_stage(lq_kv_paged_group *s, uint32_t n, const float *k, const float *v) {
    const lq_backend_ops *ops = s->backend->ops;
    uint64_t head_bytes = s->spec->n_chunk * CELL_F16(s);
    ops->kv_store(s->backend, LQ_CELL_F16, s->chunk_k, head_bytes, k, n, s->n_kv_heads, s->head_dim, 0, n);
    ops->kv_store(s->backend, LQ_CELL_F16, s->chunk_v, head_bytes, v, n, s->n_kv_heads, s->head_dim, 0, n);
}

/* For a chunk of one token this writes only this layer's memory, never the shared stage, so that several caches may
 * begin before any of them is attended. */
static uint32_t begin(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, float *k, float *v,
                      lq_attention *args) {
    lq_kv_paged_group *s = &state->group->paged;
    lq_kv_paged_layer *layer = &state->paged;
    const lq_kv_recipe *r = &s->spec->recipe;
    uint32_t n = chunk->n_tokens;
    size_t q_row = (size_t)args->n_heads * s->head_dim;
    use_work(cache, state->group);
    if (r->rotates_values) s->backend->ops->hadamard(s->backend, v, n * s->n_kv_heads, s->head_dim);
    layer->pages.end_page = lq_kv_paged_count(s->spec, chunk->pos0).n_pages;
    args->pages = r->evicts ? NULL : &layer->pages;
    args->n_runs = lq_kv_paged_runs(s, layer, chunk->pos0, args->runs);
    if (n == 1 || chunk->tentative) {
        store_in_place(s, layer, chunk->pos0, n, k, v);
        for (uint32_t i = n; i-- > 0;) { /* args[0], from which the others are made, is the last to change */
            args[i] = args[0];
            args[i].q += i * q_row;
            args[i].out += i * q_row;
            set_token(s, chunk, i, &args[i]);
            if (r->policy->needs_accumulated)
                args[i].accumulated = chunk->tentative ? tentative_row(s, layer, i) : s->lone_accumulated;
        }
        return n;
    }
    store_in_stage(s, n, k, v);
    args->runs[args->n_runs++] = chunk_run(s, 0, n, chunk->pos0);
    args->accumulated = r->policy->needs_accumulated ? s->accumulated : NULL;
    return 1;
}

static void end(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, const lq_attention *args) {
    lq_kv_paged_group *s = &state->group->paged;
    use_work(cache, state->group);
    if (!chunk->tentative) take_chunk(s, &state->paged, chunk);
    if (s->spec->recipe.rotates_values)
        s->backend->ops->hadamard(s->backend, args->out, chunk->n_tokens * args->n_heads, s->head_dim);
}

/* ---- going back */

static bool can_rewind(const lq_kv_cache *cache, const lq_state *state, uint32_t n_keep) {
    const lq_kv_recipe *r = &cache->spec.recipe;
    uint32_t held = past_sinks(&cache->spec, cache->n_tokens), keep = past_sinks(&cache->spec, n_keep);
    (void)state;
    if (n_keep == 0 || n_keep == cache->n_tokens) return true;
    if (r->policy->needs_accumulated) return false; /* the attention that forgotten queries gave cannot be subtracted */
    if (lq_kv_n_give_ups(held, r->window) != lq_kv_n_give_ups(keep, r->window)) return false;
    /* a page that is open again needs its tokens as f16 */
    return r->cells == LQ_CELL_F16 || held / LQ_PAGE_TOKENS == keep / LQ_PAGE_TOKENS;
}

/* Restores the masks and the end of the pages, which follow from the overlay and the number of tokens. */
static void restore_pages(lq_kv_paged_group *s, lq_kv_paged_layer *layer, uint32_t n_tokens) {
    lq_kv_paged_counts counts = lq_kv_paged_count(s->spec, n_tokens);
    if (s->spec->recipe.evicts) return;
    layer->pages.end_page = counts.n_pages;
    set_masks(s, layer, counts.n_overlay);
}

static void rewind_pages(lq_kv_cache *cache, lq_state *state, uint32_t n_keep) {
    lq_kv_paged_group *s = &state->group->paged;
    lq_kv_paged_counts held = lq_kv_paged_count(s->spec, cache->n_tokens), keep = lq_kv_paged_count(s->spec, n_keep);
    if (n_keep == 0 || held.n_pages == keep.n_pages) return; /* the rest follows from the number of tokens */
    use_work(cache, state->group);
    /* No token was given up since, so the overlay ends with all tokens of the forgotten pages. */
    copy_cells(s, open_run(s, &state->paged, keep.n_open), overlay_run(s, &state->paged, held.n_overlay),
               keep.n_overlay, keep.n_open);
    restore_pages(s, &state->paged, n_keep);
}

/* ---- the state as pieces of memory */

static lq_status visit_cells(const lq_kv_paged_group *s, const lq_attn_run *run, lq_kv_visit visit, void *context) {
    uint64_t n_bytes = run->n_cells * lq_cell_bytes(run->format, s->head_dim);
    for (uint32_t head = 0; head < s->n_kv_heads; head++) {
        LQ_TRY(visit(context, s->backend, run->k + head * run->head_bytes, n_bytes));
        LQ_TRY(visit(context, s->backend, run->v + head * run->head_bytes, n_bytes));
    }
    return LQ_OK;
}

static lq_status walk(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens, uint32_t parts,
                      lq_kv_visit visit, void *context) {
    const lq_kv_paged_group *s = &state->group->paged;
    const lq_kv_paged_layer *layer = &state->paged;
    const lq_kv_recipe *r = &s->spec->recipe;
    lq_kv_paged_counts counts = lq_kv_paged_count(s->spec, n_tokens);
    uint64_t n_accumulated = counts.n_sinks + counts.n_overlay + counts.n_open;
    lq_attn_run runs[3];
    (void)cache, (void)parts; /* pages are visited by the cache: a frame holds those of all layers */
    lq_kv_paged_runs(s, layer, n_tokens, runs);
    for (int i = 0; i < 3; i++) LQ_TRY(visit_cells(s, &runs[i], visit, context));
    for (uint32_t head = 0; head < s->n_kv_heads; head++) {
        LQ_TRY(visit(context, s->backend, layer->positions + (size_t)head * s->max_overlay,
                     counts.n_overlay * sizeof *layer->positions));
        if (r->policy->needs_accumulated)
            LQ_TRY(visit(context, s->backend, layer->accumulated + (size_t)head * (r->sinks + s->max_full),
                         n_accumulated * sizeof *layer->accumulated));
    }
    if (r->evicts || counts.n_pages == 0) return LQ_OK;
    return visit(context, s->backend, layer->pages.order,
                 (uint64_t)s->n_kv_heads * s->head_dim * sizeof *layer->pages.order);
}

uint32_t lq_kv_paged_positions(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t head,
                               uint32_t first, uint32_t n_overlay, uint32_t piece[LQ_KV_PAGED_PIECE]) {
    uint32_t n = n_overlay - first < LQ_KV_PAGED_PIECE ? n_overlay - first : LQ_KV_PAGED_PIECE;
    s->backend->ops->download(s->backend, piece, layer->positions + (size_t)head * s->max_overlay + first,
                              n * sizeof *piece);
    return n;
}

/* True if the overlay's positions rise and are of tokens in pages. */
static bool check_positions(const lq_kv_paged_group *s, const lq_kv_paged_layer *layer, uint32_t head,
                            const lq_kv_paged_counts *counts) {
    uint32_t piece[LQ_KV_PAGED_PIECE], least = s->spec->recipe.sinks, end = least + counts->n_pages * LQ_PAGE_TOKENS;
    for (uint32_t first = 0, n; first < counts->n_overlay; first += n) {
        n = lq_kv_paged_positions(s, layer, head, first, counts->n_overlay, piece);
        for (uint32_t i = 0; i < n; i++) {
            if (piece[i] < least || piece[i] >= end) return false;
            least = piece[i] + 1;
        }
    }
    return true;
}

static lq_status check(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens) {
    const lq_kv_paged_group *s = &state->group->paged;
    const lq_kv_paged_layer *layer = &state->paged;
    (void)cache;
    uint32_t head_dim = s->head_dim;
    lq_kv_paged_counts counts = lq_kv_paged_count(s->spec, n_tokens);
    for (uint32_t head = 0; head < s->n_kv_heads; head++) {
        uint16_t order[LQ_PAGE_MAX_HEAD_DIM];
        bool seen[LQ_PAGE_MAX_HEAD_DIM] = {false};
        if (!check_positions(s, layer, head, &counts))
            return lq_fail(LQ_E_FORMAT, "tokens in full precision are out of order");
        if (s->spec->recipe.evicts || counts.n_pages == 0) continue;
        s->backend->ops->download(s->backend, order, layer->pages.order + (size_t)head * head_dim,
                                  head_dim * sizeof *order);
        for (uint32_t i = 0; i < head_dim; i++) {
            if (order[i] >= head_dim || seen[order[i]]) return lq_fail(LQ_E_FORMAT, "an order of channels is none");
            seen[order[i]] = true;
        }
    }
    return LQ_OK;
}

static void restored(lq_kv_cache *cache, lq_state *state, uint32_t n_tokens) {
    use_work(cache, state->group);
    restore_pages(&state->group->paged, &state->paged, n_tokens);
}

static void add_usage(const lq_kv_cache *cache, const lq_state *state, lq_kv_usage *usage) {
    count_usage(&state->group->paged, &state->paged, cache->n_tokens, usage);
}

/* ---- life: the memory of all layers of a group is one block, which the cache allocates */

static lq_status plan(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, uint64_t *n_bytes) {
    lq_kv_paged_group s;
    LQ_TRY(lq_kv_paged_plan(spec, layer, &s));
    *n_bytes = s.layer_bytes + s.max_pages * s.block_bytes;
    return LQ_OK;
}

static lq_status create(lq_kv_cache *cache, lq_state *state) {
    lq_kv_group *group = state->group;
    uint32_t index = 0; /* among the layers of its group */
    for (const lq_state *other = cache->states; other < state; other++) index += other->group == group;
    uint8_t *memory = group->paged_memory;
    lq_kv_paged_layer_init(&group->paged, memory + index * group->paged.layer_bytes, &state->paged);
    state->paged.pages.frames = group->table;
    state->paged.pages.block_offset = index * lq_kv_group_stride(group);
    return LQ_OK;
}

const lq_state_ops lq_state_paged = {
    .name = "paged",
    .can_undo = false,
    .plan = plan,
    .create = create,
    .begin = begin,
    .end = end,
    .commit = commit,
    .can_rewind = can_rewind,
    .rewind = rewind_pages,
    .walk = walk,
    .check = check,
    .restored = restored,
    .add_usage = add_usage,
};
