/* cells.c - layers whose every token is a cell. */
#include "kv/cells.h"

#include "core/checked.h"

/* A ring holds the window and a whole chunk, because a chunk is stored before its first query is answered. */
static uint32_t count_cells(const lq_kv_spec *spec, uint32_t window) {
    if (window == 0) return spec->n_ctx;
    if (window >= spec->n_limit || spec->n_limit - window <= spec->n_chunk) return spec->n_limit;
    return window + spec->n_chunk;
}

lq_status lq_kv_cells_plan(const lq_kv_spec *spec, uint32_t window, lq_kv_cells *cells) {
    cells->format = window == 0 ? spec->recipe.cells : LQ_CELL_F16;
    cells->n_cells = count_cells(spec, window);
    cells->n_sinks = window == 0 && spec->n_limit > spec->n_ctx ? LQ_KV_DROP_SINKS : 0;
    cells->k = cells->v = NULL;
    uint64_t cell = spec->n_kv_heads * (uint64_t)lq_cell_bytes(cells->format, spec->head_dim);
    if (!lq_mul_u64(cell, cells->n_cells, &cells->bytes) || cells->bytes > (uint64_t)1 << 60)
        return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
    return LQ_OK;
}

lq_status lq_kv_cells_create(lq_backend *backend, lq_kv_cells *cells) {
    void *memory;
    LQ_TRY(backend->ops->alloc(backend, cells->bytes, "KV cache", &memory));
    cells->k = memory;
    LQ_TRY(backend->ops->alloc(backend, cells->bytes, "KV cache", &memory));
    cells->v = memory;
    return LQ_OK;
}

void lq_kv_cells_free(lq_backend *backend, lq_kv_cells *cells) {
    backend->ops->release(backend, cells->k, cells->bytes);
    backend->ops->release(backend, cells->v, cells->bytes);
}

static uint32_t cell_of(const lq_kv_cells *cells, uint32_t position) {
    if (position < cells->n_cells) return position;
    return cells->n_sinks + (position - cells->n_sinks) % (cells->n_cells - cells->n_sinks);
}

uint32_t lq_kv_cells_runs(const lq_kv_spec *spec, const lq_kv_cells *cells, uint32_t first, uint32_t end,
                          lq_attn_run runs[LQ_KV_CELLS_MAX_RUNS]) {
    uint64_t cell_bytes = lq_cell_bytes(cells->format, spec->head_dim);
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

static void store(lq_backend *backend, const lq_kv_spec *spec, const lq_kv_cells *cells, uint8_t *dst, const float *x,
                  uint32_t pos0, uint32_t n_tokens) {
    uint64_t head_bytes = cells->n_cells * (uint64_t)lq_cell_bytes(cells->format, spec->head_dim);
    for (uint32_t done = 0; done < n_tokens;) {
        uint32_t cell = cell_of(cells, pos0 + done), n = cells->n_cells - cell;
        if (n > n_tokens - done) n = n_tokens - done;
        backend->ops->kv_store(backend, cells->format, dst, head_bytes,
                               x + (size_t)done * spec->n_kv_heads * spec->head_dim, n, spec->n_kv_heads,
                               spec->head_dim, cell, cells->n_cells);
        done += n;
    }
}

/* Rings are plain f16. */
static bool rotates(const lq_kv_spec *spec, const lq_attention *args) {
    return args->window == 0 && spec->recipe.rotates_keys;
}

void lq_kv_cells_begin(lq_backend *backend, const lq_kv_spec *spec, const lq_kv_cells *cells, uint32_t first, float *k,
                       float *v, lq_attention *args) {
    uint32_t n = args->n_tokens;
    if (rotates(spec, args)) {
        backend->ops->hadamard(backend, args->q, n * args->n_heads, spec->head_dim);
        backend->ops->hadamard(backend, k, n * spec->n_kv_heads, spec->head_dim);
        backend->ops->hadamard(backend, v, n * spec->n_kv_heads, spec->head_dim);
    }
    store(backend, spec, cells, cells->k, k, args->pos0, n);
    store(backend, spec, cells, cells->v, v, args->pos0, n);
    if (args->window != 0 && args->pos0 >= args->window) first = args->pos0 - args->window + 1;
    args->n_runs = lq_kv_cells_runs(spec, cells, first, args->pos0 + n, args->runs);
}

void lq_kv_cells_end(lq_backend *backend, const lq_kv_spec *spec, const lq_attention *args) {
    if (rotates(spec, args)) backend->ops->hadamard(backend, args->out, args->n_tokens * args->n_heads, spec->head_dim);
}
