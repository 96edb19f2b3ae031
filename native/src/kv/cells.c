/* cells.c - layers whose every token is a cell. */
#include "kv/cells.h"

#include "core/checked.h"

/* A ring holds the window and a whole chunk, because a chunk is stored before its first query is answered. */
static uint32_t count_cells(const lq_kv_spec *spec, uint32_t window) {
    if (window == 0 || window >= spec->n_ctx || spec->n_ctx - window <= spec->n_chunk) return spec->n_ctx;
    return window + spec->n_chunk;
}

lq_status lq_kv_cells_plan(const lq_kv_spec *spec, uint32_t window, lq_kv_cells *cells) {
    cells->format = window == 0 ? spec->recipe.cells : LQ_CELL_F16;
    cells->n_cells = count_cells(spec, window);
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

uint32_t lq_kv_cells_runs(const lq_kv_spec *spec, const lq_kv_cells *cells, uint32_t first, uint32_t end,
                          lq_attn_run runs[2]) {
    uint64_t cell_bytes = lq_cell_bytes(cells->format, spec->head_dim);
    uint32_t n_runs = 0;
    while (first < end) {
        uint32_t cell = first % cells->n_cells;
        uint32_t n = cells->n_cells - cell < end - first ? cells->n_cells - cell : end - first;
        runs[n_runs++] = (lq_attn_run){.format = cells->format,
                                       .k = cells->k + cell * cell_bytes,
                                       .v = cells->v + cell * cell_bytes,
                                       .head_bytes = cells->n_cells * cell_bytes,
                                       .n_cells = n,
                                       .pos0 = first};
        first += n;
    }
    return n_runs;
}

void lq_kv_cells_attend(lq_backend *backend, const lq_kv_spec *spec, const lq_kv_cells *cells, float *k, float *v,
                        lq_attention *args) {
    uint64_t head_bytes = cells->n_cells * (uint64_t)lq_cell_bytes(cells->format, spec->head_dim);
    uint32_t cell0 = args->pos0 % cells->n_cells, n = args->n_tokens;
    bool rotates = args->window == 0 && spec->recipe.rotates_keys; /* rings are plain f16 */
    if (rotates) {
        backend->ops->hadamard(backend, args->q, n * args->n_heads, spec->head_dim);
        backend->ops->hadamard(backend, k, n * spec->n_kv_heads, spec->head_dim);
        backend->ops->hadamard(backend, v, n * spec->n_kv_heads, spec->head_dim);
    }
    backend->ops->kv_store(backend, cells->format, cells->k, head_bytes, k, n, spec->n_kv_heads, spec->head_dim, cell0,
                           cells->n_cells);
    backend->ops->kv_store(backend, cells->format, cells->v, head_bytes, v, n, spec->n_kv_heads, spec->head_dim, cell0,
                           cells->n_cells);
    uint32_t first = args->window != 0 && args->pos0 >= args->window ? args->pos0 - args->window + 1 : 0;
    args->n_runs = lq_kv_cells_runs(spec, cells, first, args->pos0 + n, args->runs);
    backend->ops->attention(backend, args);
    if (rotates) backend->ops->hadamard(backend, args->out, n * args->n_heads, spec->head_dim);
}
