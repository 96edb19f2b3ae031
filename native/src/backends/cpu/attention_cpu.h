/* attention_cpu.h - what the two forms of attention share. attention_cpu.c divides the work, and handles few query
 * rows, one below the other. attention_many.c handles many query rows, side by side in the lanes of vectors. */
#ifndef LQ_CPU_ATTENTION_CPU_H
#define LQ_CPU_ATTENTION_CPU_H

#include "backends/cpu/backend_cpu.h"

#define BLOCK_CELLS LQ_PAGE_TOKENS
/* From this many rows on queries lie side by side, up to LQ_MANY_QUERIES; fewer would leave too many lanes empty. */
#define MANY_ROWS 17

typedef struct attention {
    lq_backend_cpu *cpu;
    const lq_attention *args;
    uint32_t group; /* query heads for each KV head */
    uint32_t tokens_per_block;
    uint32_t max_rows;
    uint32_t n_token_blocks;
    uint32_t first_block; /* of the current wave; a block is some query tokens of one KV head */
    uint32_t first_task;  /* among the tasks of all attentions that run together */
    uint32_t n_shares;
    uint32_t n_pages;
    uint32_t n_run_blocks;
    uint32_t n_columns; /* cells of all runs together */
    bool many;          /* queries lie side by side (attention_many.c) */
    size_t row_floats;  /* head_dim rounded up: stride of accumulator rows */
    float *per_thread;  /* [n_threads] areas of thread_floats */
    size_t thread_floats;
    float *partials; /* if n_shares > 1: [task] with max [rows], sum [rows], acc [rows][row_floats] */
    size_t partial_floats;
    float *kept; /* [thread], or [block] if n_shares > 1: areas of kept_floats, kept probabilities and block maxima */
    size_t kept_floats;
    float *block_accumulated; /* [block of the wave][n_columns rounded up] */
} attention;

/* A thread's memory. With queries side by side only max, sum, acc, kept and block_max are used. If shares are merged
 * later, max, sum and acc lie in the partial result itself. */
typedef struct workspace {
    float *q;         /* [rows][head_dim] */
    float *q_page;    /* [rows][lanes of a page's format]: q with channels in page order (kernels.h) */
    float *scores;    /* [rows][BLOCK_CELLS of pages_together()] */
    float *decay;     /* [rows] */
    float *max;       /* [rows] */
    float *sum;       /* [rows] */
    float *acc;       /* [rows][row_floats] */
    float *kept;      /* [rows][n_columns rounded up], or side by side [n_columns][LQ_MANY_QUERIES]: exp(score -
                         block_max); NULL: nothing is kept */
    float *block_max; /* [rows][n_run_blocks], or side by side [n_run_blocks][LQ_MANY_QUERIES]: the maximum so far after
                         that block, -infinity if the row saw nothing of it */
} workspace;

typedef struct query_block {
    uint32_t kv_head;
    uint32_t token0;
    uint32_t n_tokens;
    uint32_t rows;
} query_block;

static inline size_t padded(size_t n_floats) { return (n_floats + 15) & ~(size_t)15; }

static inline lq_page_record page_record(const lq_attention *args, uint32_t kv_head, uint32_t page) {
    return lq_page_record_at(args->pages->format, lq_kv_page_block(args->pages, page), args->n_kv_heads, kv_head);
}

/* Says whether no query of the block sees any of the n cells from cell_pos on. */
static inline bool out_of_sight(const lq_attention *args, uint32_t token0, uint32_t n_tokens, uint32_t cell_pos,
                                uint32_t n) {
    uint32_t first_query = args->pos0 + token0, last_query = first_query + n_tokens - 1;
    if (cell_pos > last_query) return true;
    return args->window != 0 && first_query >= args->window && cell_pos + n - 1 <= first_query - args->window;
}

static inline uint32_t n_run_blocks(const lq_attn_run *run) { return (run->n_cells + BLOCK_CELLS - 1) / BLOCK_CELLS; }

static inline uint32_t block_cells(const lq_attn_run *run, uint32_t b) {
    uint32_t left = run->n_cells - b * BLOCK_CELLS;
    return left < BLOCK_CELLS ? left : BLOCK_CELLS;
}

/* ---- attention_many.c */

static inline bool lq_attn_many_rows(uint32_t rows) { return rows >= MANY_ROWS && rows <= LQ_MANY_QUERIES; }

/* Floats that a thread needs besides its workspace. */
size_t lq_attn_many_area(uint32_t head_dim);

/* Attends to blocks first to end - 1 (pages first, then the blocks of the runs) with one block of queries. Writes
 * w->max, w->sum and w->acc, and w->kept and w->block_max unless they are NULL. area: lq_attn_many_area() floats of the
 * thread. */
void lq_attn_many(const attention *a, const workspace *w, float *area, const query_block *b, uint32_t first,
                  uint32_t end);

/* Sums the final probabilities of a block of queries by column. area: as above. */
void lq_attn_many_accumulated(const attention *a, const workspace *w, float *area, float *accumulated, uint32_t rows,
                              const float *max, const float *sum);

#endif
