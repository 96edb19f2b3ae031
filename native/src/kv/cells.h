/* cells.h - a layer's cache where every token is a cell: of one format for the whole context, or a ring of a sliding
 * window in f16. Layout: [n_kv_heads][n_cells], K and V apart; position p lives in cell p, later ones again in those
 * behind the sinks. */
#ifndef LQ_KV_CELLS_H
#define LQ_KV_CELLS_H

#include "backends/backend.h"
#include "kv/spec.h"

typedef struct lq_kv_cells {
    lq_cell_format format;
    uint32_t n_cells;
    uint32_t n_sinks; /* first positions, whose cells are never used again */
    uint8_t *k;
    uint8_t *v;
    uint64_t bytes; /* of k, and of v */
} lq_kv_cells;

/* Sizes only; window 0 = the whole context. LQ_E_MEMORY if they overflow. */
lq_status lq_kv_cells_plan(const lq_kv_spec *spec, uint32_t window, lq_kv_cells *cells);
/* After a plan. */
lq_status lq_kv_cells_create(lq_backend *backend, lq_kv_cells *cells);
void lq_kv_cells_free(lq_backend *backend, lq_kv_cells *cells);
/* Stores the chunk, and args tells what its queries see: positions from first on and the sinks. k, v and args->q are
 * rotated in place where the type rotates them. */
void lq_kv_cells_begin(lq_backend *backend, const lq_kv_spec *spec, const lq_kv_cells *cells, uint32_t first, float *k,
                       float *v, lq_attention *args);
/* It was attended. */
void lq_kv_cells_end(lq_backend *backend, const lq_kv_spec *spec, const lq_attention *args);
#define LQ_KV_CELLS_MAX_RUNS 3
/* The cells of the sinks and of positions [first, end) as runs. Returns how many. */
uint32_t lq_kv_cells_runs(const lq_kv_spec *spec, const lq_kv_cells *cells, uint32_t first, uint32_t end,
                          lq_attn_run runs[LQ_KV_CELLS_MAX_RUNS]);

#endif
