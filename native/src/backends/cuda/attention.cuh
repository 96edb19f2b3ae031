/* attention.cuh - types that the attention kernels share: query rows, tiles, and the memory of partial results. */
#ifndef LQ_CUDA_ATTENTION_CUH
#define LQ_CUDA_ATTENTION_CUH

#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/cells.cuh"
#include "backends/cuda/page.cuh"

#define TILE LQ_PAGE_TOKENS /* tokens of one online softmax step: a page, or up to 64 cells of a run */
#define MAX_ROWS 16         /* query rows (tokens x heads of a group) of a block without tensor cores */
#define PROMPT_ROWS 64      /* query rows of a block with tensor cores */
#define AT_ONCE 6           /* attentions in one launch: as many as fit into a kernel's arguments */

/* One attention. Its tiles are the pages, then the runs' tiles; its query rows of one KV head are [n_tokens][group]. */
typedef struct attend_one {
    lq_attention a;
    lq_kv_pages pages; /* unset if n_pages is 0 */
    lq_page_format format;
    uint32_t n_pages;
    uint32_t n_tiles;   /* of pages and runs */
    uint32_t n_columns; /* cells of all runs */
    uint32_t n_shares;  /* blocks that divide the tiles among them */
} attend_one;

/* Several attentions of the same heads. One launch computes one wave of blocks: their kept floats fit into scratch. */
typedef struct attend_all {
    attend_one each[AT_ONCE];
    uint32_t n_args;
    uint32_t group;
    uint32_t n_rows; /* of a KV head */
    uint32_t block_rows;
    uint32_t first_block; /* of rows, in this wave */
    uint32_t n_blocks;
    uint32_t most_shares;
    /* [slot][share]: [block_rows] pairs (max, sum), then values [block_rows][head_dim]; unused where n_shares is 1 */
    float *partials;
    float *finals; /* [slot][block_rows] pairs (max, sum) */
    float *kept;   /* [slot][block_rows][kept_stride]: exp(score - max so far) by column; NULL: not asked for */
    float *tops;   /* [slot][block_rows][n_tops]: that max by tile of the runs; -infinity where the row sees none */
    uint32_t kept_stride;
    uint32_t n_tops;
} attend_all;
static_assert(sizeof(attend_all) <= 4096, "what a kernel's arguments have room for");

/* Each block of rows of a KV head of an attention has a slot in the arrays above. */
LQ_DEVICE uint32_t slot_of(const attend_all &all, uint32_t arg, uint32_t kv_head, uint32_t block) {
    return (arg * all.each[0].a.n_kv_heads + kv_head) * all.n_blocks + block;
}

LQ_DEVICE float *partial_at(const attend_all &all, uint32_t slot, uint32_t share) {
    return all.partials + ((size_t)slot * all.most_shares + share) * all.block_rows * (all.each[0].a.head_dim + 2);
}

LQ_DEVICE float *output_row(const attend_all &all, const lq_attention &a, uint32_t kv_head, uint32_t row) {
    size_t token = row / all.group, head = (size_t)kv_head * all.group + row % all.group;
    return a.out + (token * a.n_heads + head) * a.head_dim;
}

/* attention_prompt.cu: one attention of many rows, by tensor cores */
bool lq_cuda_takes_prompt(const lq_backend_cuda *cuda, uint32_t n_tokens, uint32_t n_rows, uint32_t head_dim);
void lq_cuda_attend_prompt(lq_backend_cuda *cuda, const attend_all *all);

/* A tile of a run: cells first_cell to first_cell + n - 1. */
typedef struct run_tile {
    uint32_t run;
    uint32_t first_cell;
    uint32_t n;
    uint32_t column; /* of the first cell, among all runs */
} run_tile;

LQ_DEVICE run_tile find_tile(const lq_attention &a, uint32_t tile) {
    run_tile found = {0, 0, 0, 0};
    for (; found.run < a.n_runs; found.run++) {
        uint32_t n_cells = a.runs[found.run].n_cells, n_tiles = divide_up(n_cells, TILE);
        if (tile < n_tiles) {
            found.first_cell = tile * TILE;
            found.n = n_cells - found.first_cell < TILE ? n_cells - found.first_cell : TILE;
            found.column += found.first_cell;
            return found;
        }
        tile -= n_tiles;
        found.column += n_cells;
    }
    return found;
}

#endif
