/* attention_many.c - attention with many queries (prompts). All query rows of a task lie side by side in the lanes of
 * vectors, and one online softmax step takes in a block of cells or a page for all of them. Cells are decoded to floats
 * once for all rows. A token that a query must not see gets the score -infinity in its lane; a token that no query of
 * the task sees is left out. */
#include <math.h>
#include <string.h>

#include "backends/cpu/attention_cpu.h"

typedef struct many_space {
    float *q;       /* [head_dim][LQ_MANY_QUERIES], zeros beyond the rows */
    float *q_page;  /* q with channels in page order */
    float *q_cells; /* q as scores_many() wants it */
    float *scores;  /* [BLOCK_CELLS][LQ_MANY_QUERIES] */
    float *decay;   /* [LQ_MANY_QUERIES] */
    float *acc;     /* [head_dim][LQ_MANY_QUERIES] */
    float *tile;    /* [BLOCK_CELLS][head_dim]: decoded keys or values */
} many_space;

size_t lq_attn_many_area(uint32_t head_dim) {
    size_t transposed = (size_t)head_dim * LQ_MANY_QUERIES;
    return 3 * transposed + LQ_MANY_QUERY_FLOATS(head_dim) + (BLOCK_CELLS + 1) * LQ_MANY_QUERIES +
           padded((size_t)BLOCK_CELLS * head_dim);
}

static many_space space_in(const attention *a, float *area) {
    size_t transposed = (size_t)a->args->head_dim * LQ_MANY_QUERIES;
    many_space s = {.q = area};
    s.q_page = s.q + transposed;
    s.q_cells = s.q_page + transposed;
    s.scores = s.q_cells + LQ_MANY_QUERY_FLOATS(a->args->head_dim);
    s.decay = s.scores + BLOCK_CELLS * LQ_MANY_QUERIES;
    s.acc = s.decay + LQ_MANY_QUERIES;
    s.tile = s.acc + transposed;
    return s;
}

static void transpose_queries(const attention *a, many_space *s, const query_block *b) {
    const lq_attention *args = a->args;
    uint32_t head_dim = args->head_dim;
    memset(s->q, 0, (size_t)head_dim * LQ_MANY_QUERIES * sizeof(float));
    for (uint32_t r = 0; r < b->rows; r++) {
        size_t token = b->token0 + r / a->group, head = b->kv_head * a->group + r % a->group;
        const float *q = args->q + (token * args->n_heads + head) * head_dim;
        for (uint32_t d = 0; d < head_dim; d++) s->q[d * LQ_MANY_QUERIES + r] = q[d];
    }
    if (a->cpu->kernels.queries_many != NULL)
        a->cpu->kernels.queries_many(s->q_cells, s->q, b->rows, head_dim);
    else
        s->q_cells = s->q;
    if (a->n_pages == 0) return;
    const uint16_t *order = args->pages->order + (size_t)b->kv_head * head_dim;
    for (uint32_t i = 0; i < head_dim; i++)
        memcpy(s->q_page + i * LQ_MANY_QUERIES, s->q + order[i] * LQ_MANY_QUERIES, LQ_MANY_QUERIES * sizeof(float));
}

static void mask_rows(float *scores, uint32_t first_row, uint32_t end_row) {
    for (uint32_t r = first_row; r < end_row; r++) scores[r] = -INFINITY;
}

static void attend_page(const attention *a, const workspace *w, const many_space *s, const query_block *b,
                        uint32_t page, uint32_t end) {
    const lq_attention *args = a->args;
    const lq_page_format *format = args->pages->format;
    const lq_kernels *kernels = &a->cpu->kernels;
    lq_page_record record = page_record(args, b->kv_head, page), following;
    const lq_page_record *next = page + 1 < end ? &following : NULL;
    if (next != NULL) following = page_record(args, b->kv_head, page + 1);
    kernels->page_scores_many(s->scores, s->q_page, b->rows, format, record, next, args->scale);
    if (args->softcap > 0.0f) kernels->softcap(s->scores, args->softcap, BLOCK_CELLS * LQ_MANY_QUERIES);
    for (uint64_t left = *lq_kv_page_mask(args->pages, b->kv_head, page); left != 0; left &= left - 1)
        mask_rows(s->scores + (size_t)__builtin_ctzll(left) * LQ_MANY_QUERIES, 0, LQ_MANY_QUERIES);
    kernels->softmax_step_many(s->scores, b->rows, BLOCK_CELLS, w->max, w->sum, s->decay);
    kernels->page_values_many(s->acc, s->decay, s->scores, b->rows, format, record, next);
}

static void decode_cells(const attention *a, float *tile, const lq_attn_run *run, const uint8_t *cells, uint32_t n) {
    const lq_kernels *kernels = &a->cpu->kernels;
    uint32_t head_dim = a->args->head_dim;
    if (run->format == LQ_CELL_F16) {
        kernels->f16_to_f32(tile, (const uint16_t *)(const void *)cells, (size_t)n * head_dim);
        return;
    }
    for (uint32_t i = 0; i < n; i++, cells += lq_cell_bytes(run->format, head_dim))
        kernels->cell_load_q(run->format, tile + (size_t)i * head_dim, cells, head_dim);
}

/* Attends to n cells from `cell` on (at most BLOCK_CELLS). Among the cells of all runs they start at `column` and are
 * block number `block`. */
static void attend_cells(const attention *a, const workspace *w, const many_space *s, const query_block *b,
                         const lq_attn_run *run, uint32_t cell, uint32_t n, uint32_t column, uint32_t block) {
    const lq_attention *args = a->args;
    const lq_kernels *kernels = &a->cpu->kernels;
    uint32_t head_dim = args->head_dim, cell_pos = run->pos0 + cell, first_query = args->pos0 + b->token0;
    uint32_t n_seen = n;
    size_t at = b->kv_head * run->head_bytes + cell * lq_cell_bytes(run->format, head_dim);
    float *scores = w->kept != NULL ? w->kept + (size_t)column * LQ_MANY_QUERIES : s->scores;
    if (!run->history && cell_pos + n > first_query + b->n_tokens) n_seen = first_query + b->n_tokens - cell_pos;
    decode_cells(a, s->tile, run, run->k + at, n_seen);
    kernels->scores_many(scores, s->q_cells, b->rows, s->tile, n_seen, head_dim, args->scale);
    if (args->softcap > 0.0f) kernels->softcap(scores, args->softcap, (size_t)n_seen * LQ_MANY_QUERIES);
    for (uint32_t j = 0; j < n_seen && !run->history; j++) {
        float *row = scores + (size_t)j * LQ_MANY_QUERIES;
        uint32_t pos = cell_pos + j;
        if (pos > first_query) mask_rows(row, 0, (pos - first_query) * a->group);
        if (args->window == 0 || pos + args->window >= first_query + b->n_tokens) continue;
        mask_rows(row, pos + args->window > first_query ? (pos + args->window - first_query) * a->group : 0, b->rows);
    }
    kernels->softmax_step_many(scores, b->rows, n_seen, w->max, w->sum, s->decay);
    if (w->kept != NULL) {
        memset(scores + (size_t)n_seen * LQ_MANY_QUERIES, 0, (size_t)(n - n_seen) * LQ_MANY_QUERIES * sizeof(float));
        memcpy(w->block_max + (size_t)block * LQ_MANY_QUERIES, w->max, b->rows * sizeof(float));
    }
    decode_cells(a, s->tile, run, run->v + at, n_seen);
    kernels->values_many(s->acc, s->decay, scores, b->rows, s->tile, n_seen, head_dim);
}

static void attend_runs(const attention *a, const workspace *w, const many_space *s, const query_block *b,
                        uint32_t first, uint32_t end) {
    const lq_attention *args = a->args;
    uint32_t block0 = 0, column0 = 0;
    for (uint32_t i = 0; i < args->n_runs; i++) {
        const lq_attn_run *run = &args->runs[i];
        uint32_t n_blocks = n_run_blocks(run);
        for (uint32_t j = first > block0 ? first - block0 : 0; j < n_blocks && block0 + j < end; j++) {
            uint32_t cell = j * BLOCK_CELLS, n = block_cells(run, j);
            if (!run->history && out_of_sight(args, b->token0, b->n_tokens, run->pos0 + cell, n)) continue;
            attend_cells(a, w, s, b, run, cell, n, column0 + cell, block0 + j);
        }
        block0 += n_blocks;
        column0 += run->n_cells;
    }
}

void lq_attn_many(const attention *a, const workspace *w, float *area, const query_block *b, uint32_t first,
                  uint32_t end) {
    uint32_t head_dim = a->args->head_dim, end_page = end < a->n_pages ? end : a->n_pages;
    uint32_t first_run = first > a->n_pages ? first - a->n_pages : 0, end_run = end > a->n_pages ? end - a->n_pages : 0;
    many_space s = space_in(a, area);
    transpose_queries(a, &s, b);
    memset(s.acc, 0, (size_t)head_dim * LQ_MANY_QUERIES * sizeof(float));
    if (w->kept != NULL) /* blocks that no query sees keep a maximum of -infinity */
        for (uint32_t i = first_run * LQ_MANY_QUERIES; i < end_run * LQ_MANY_QUERIES; i++) w->block_max[i] = -INFINITY;
    for (uint32_t page = first; page < end_page; page++)
        attend_page(a, w, &s, b, a->args->pages->first_page + page, a->args->pages->first_page + end_page);
    attend_runs(a, w, &s, b, first_run, end_run);
    for (uint32_t r = 0; r < b->rows; r++)
        for (uint32_t d = 0; d < head_dim; d++) w->acc[r * a->row_floats + d] = s.acc[(size_t)d * LQ_MANY_QUERIES + r];
}

void lq_attn_many_accumulated(const attention *a, const workspace *w, float *area, float *accumulated, uint32_t rows,
                              const float *max, const float *sum) {
    const float *block_max = w->block_max, *kept = w->kept;
    float *factor = space_in(a, area).decay;
    memset(factor, 0, LQ_MANY_QUERIES * sizeof(float));
    for (uint32_t i = 0; i < a->args->n_runs; i++) {
        uint32_t n_cells = a->args->runs[i].n_cells;
        for (uint32_t cell = 0; cell < n_cells; cell += BLOCK_CELLS, block_max += LQ_MANY_QUERIES) {
            uint32_t n = n_cells - cell < BLOCK_CELLS ? n_cells - cell : BLOCK_CELLS;
            if (block_max[0] == -INFINITY) { /* no row saw the block */
                memset(accumulated, 0, n * sizeof(float));
            } else {
                for (uint32_t r = 0; r < rows; r++) factor[r] = expf(block_max[r] - max[r]) / sum[r];
                a->cpu->kernels.weighted_sums_many(accumulated, kept, factor, rows, n);
            }
            accumulated += n;
            kept += (size_t)n * LQ_MANY_QUERIES;
        }
    }
}
