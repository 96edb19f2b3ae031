/* cells.h - the cache of a layer that stores every token as a cell: in one format for the whole context ("cells"), or
 * in an f16 ring buffer for a sliding window ("ring"). Layout: [n_kv_heads][n_cells], K and V apart; position p is in
 * cell p, and positions from n_cells on reuse the cells after the sinks. */
#ifndef LQ_KV_CELLS_H
#define LQ_KV_CELLS_H

#include "kv/state.h"

typedef struct lq_kv_cells {
    lq_cell_format format;
    uint32_t n_cells;
    uint32_t n_sinks; /* first positions, whose cells are never reused */
    uint8_t *k;
    uint8_t *v;
    uint64_t bytes; /* bytes of k, and as many of v */
} lq_kv_cells;

#define LQ_KV_CELLS_MAX_RUNS 3
/* Lists the cells of the sinks and of positions [first, end) as runs. Returns how many. */
uint32_t lq_kv_cells_runs(const lq_state *state, uint32_t first, uint32_t end, lq_attn_run runs[LQ_KV_CELLS_MAX_RUNS]);

#endif
