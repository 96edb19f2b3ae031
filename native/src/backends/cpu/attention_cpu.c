/* attention_cpu.c - causal attention with an online softmax (Milakov & Gimelshein 2018) over blocks of cells and packed
 * pages, as FlashAttention does. A task is one KV head, a block of query tokens with all query heads of the group (so
 * that a key is loaded once for all of them), and a share of the blocks of cells and pages. At the end the shares are
 * merged.
 *
 * Accumulated attention is the sum of the probabilities that a cell of the runs gets. They are final only when the
 * softmax has seen everything. Until then a row keeps exp(score - maximum so far) for each cell, and that maximum for
 * each block; at the end one factor for each block turns them into probabilities. These are summed over the rows of a
 * task, then over the tasks in a fixed order, so that the same input gives the same bits.
 *
 * If several sessions decode one token each, one loop runs over the tasks of all of them. A token that has much more to
 * read than the others is divided into shares. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "backends/cpu/attention_cpu.h"
#include "backends/cpu/kernels/simd.h"

#define MAX_ROWS 64 /* query rows (tokens x heads of a group) that a task holds, unless one group is larger */
/* With at most 16 query rows, process 4 pages per softmax step: the horizontal sum is expensive. */
#define FEW_ROWS 16
#define FEW_ROWS_PAGES 4
#define MIN_SHARE_BLOCKS 4 /* merging a smaller share costs more than sharing saves */
#define TASKS_PER_THREAD 4
/* With accumulated attention, more rows than this make enough tasks without shares. */
#define MAX_SHARED_ROWS 256

static uint32_t block_tokens(uint32_t group, uint32_t n_tokens) {
    uint32_t tokens = group < MAX_ROWS ? MAX_ROWS / group : 1;
    return tokens < n_tokens ? tokens : n_tokens;
}

static uint32_t pages_together(uint32_t rows) { return rows <= FEW_ROWS ? FEW_ROWS_PAGES : 1; }

/* Floats of a thread's workspace. Grows with the rows, so that the smaller blocks of a shorter chunk fit, too. */
static size_t thread_area(uint32_t rows, uint32_t head_dim) {
    size_t lanes = head_dim + (size_t)LQ_PAGE_MAX_TIERS * LQ_PAGE_LANES;
    size_t scores = (size_t)(rows < FEW_ROWS ? rows : FEW_ROWS) * FEW_ROWS_PAGES * BLOCK_CELLS;
    if ((size_t)rows * BLOCK_CELLS > scores) scores = (size_t)rows * BLOCK_CELLS;
    return padded((size_t)rows * head_dim) + padded(rows * lanes) + scores + 3 * padded(rows) +
           rows * padded(head_dim) + (rows >= MANY_ROWS ? lq_attn_many_area(head_dim) : 0);
}

/* Rows of kept probabilities in a block. Queries that lie side by side need a row for every lane. */
static uint32_t kept_rows(uint32_t rows) { return lq_attn_many_rows(rows) ? LQ_MANY_QUERIES : rows; }

static size_t partial_area(uint32_t rows, uint32_t head_dim) { return 2 * padded(rows) + rows * padded(head_dim); }

static uint32_t max_shared_tasks(uint32_t n_threads) { return 2 * TASKS_PER_THREAD * n_threads; }

/* Floats that one row keeps. Every run starts a new block, so each may add a partial block. */
static size_t kept_row(size_t n_columns) { return padded(n_columns) + n_columns / BLOCK_CELLS + LQ_ATTN_MAX_RUNS; }

static uint32_t wave_token_blocks(uint32_t n_threads, uint32_t n_kv_heads) {
    return (2 * TASKS_PER_THREAD * n_threads + n_kv_heads - 1) / n_kv_heads;
}

static uint64_t align_lines(uint64_t n_bytes) { return (n_bytes + 63) & ~63ull; }

/* Scratch for several attentions of one token each. */
static uint64_t together_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec) {
    uint32_t rows = spec->n_heads / spec->n_kv_heads;
    uint64_t n_blocks = (uint64_t)spec->n_together * spec->n_kv_heads;
    uint64_t n = (uint64_t)cpu->n_threads * thread_area(rows, spec->head_dim) +
                 (uint64_t)max_shared_tasks(cpu->n_threads) * partial_area(rows, spec->head_dim);
    if (spec->n_accumulated != 0)
        n += (cpu->n_threads + n_blocks) * kept_rows(rows) * kept_row(spec->n_accumulated) +
             n_blocks * padded(spec->n_accumulated);
    return align_lines(spec->n_together * sizeof(attention)) + sizeof(float) * n;
}

uint64_t lq_cpu_attention_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec) {
    uint32_t group = spec->n_heads / spec->n_kv_heads;
    uint32_t rows = group * block_tokens(group, spec->n_tokens);
    uint64_t n = (uint64_t)cpu->n_threads * thread_area(rows, spec->head_dim) +
                 (uint64_t)max_shared_tasks(cpu->n_threads) * partial_area(rows, spec->head_dim);
    if (spec->n_accumulated != 0) {
        uint64_t block = kept_rows(rows), shared = MAX_SHARED_ROWS > block ? MAX_SHARED_ROWS : block;
        uint64_t blocks = (uint64_t)wave_token_blocks(cpu->n_threads, spec->n_kv_heads) * spec->n_kv_heads;
        n += (cpu->n_threads * block + shared) * kept_row(spec->n_accumulated) + blocks * padded(spec->n_accumulated);
    }
    uint64_t alone = sizeof(float) * n, together = spec->n_together > 1 ? together_scratch(cpu, spec) : 0;
    return alone > together ? alone : together;
}

static void set_kept(const attention *a, workspace *w, size_t area) {
    w->kept = a->kept + area * a->kept_floats;
    w->block_max = w->kept + (a->many ? LQ_MANY_QUERIES : a->max_rows) * padded(a->n_columns);
}

static workspace thread_workspace(const attention *a, uint32_t thread) {
    float *at = a->per_thread + thread * a->thread_floats;
    size_t rows = a->max_rows, head_dim = a->args->head_dim;
    size_t lanes = a->n_pages != 0 ? a->args->pages->format->n_lanes : 0;
    workspace w = {.kept = NULL, .block_max = NULL};
    w.q = at;
    w.q_page = w.q + padded(rows * head_dim);
    w.scores = w.q_page + padded(rows * lanes);
    w.decay = w.scores + rows * pages_together(a->max_rows) * BLOCK_CELLS;
    w.max = w.decay + padded(rows);
    w.sum = w.max + padded(rows);
    w.acc = w.sum + padded(rows);
    return w;
}

/* Sets the scores of the cells that the row's query must not see to -infinity. Returns false if it sees none. */
static bool mask_row(const lq_attention *args, float *scores, uint32_t query_pos, uint32_t cell_pos, uint32_t n) {
    uint32_t first = 0, end = n;
    if (cell_pos + n > query_pos + 1) end = query_pos + 1 > cell_pos ? query_pos + 1 - cell_pos : 0;
    if (args->window != 0 && query_pos >= args->window) {
        uint32_t oldest = query_pos - args->window + 1;
        if (oldest > cell_pos) first = oldest - cell_pos < n ? oldest - cell_pos : n;
    }
    if (first >= end) return false;
    for (uint32_t j = 0; j < first; j++) scores[j] = -INFINITY;
    for (uint32_t j = end; j < n; j++) scores[j] = -INFINITY;
    return true;
}

/* Does the online softmax step for rows first to end - 1. */
static void softmax_cells(const attention *a, const workspace *w, float *scores, size_t stride, uint32_t first,
                          uint32_t end, uint32_t n, uint32_t block) {
    a->cpu->kernels.softmax_step(scores + first * stride, stride, end - first, n, w->max + first, w->sum + first,
                                 w->decay + first);
    for (uint32_t r = first; w->kept != NULL && r < end; r++) w->block_max[r * a->n_run_blocks + block] = w->max[r];
}

/* Attends to n cells of a run (at most BLOCK_CELLS). Among the cells of all runs they start at `column` and are block
 * number `block`. */
static void attend_cells(const attention *a, const workspace *w, const lq_attn_run *run, uint32_t kv_head,
                         uint32_t cell, uint32_t n, uint32_t column, uint32_t block, uint32_t token0,
                         uint32_t n_tokens) {
    const lq_attention *args = a->args;
    const lq_kernels *kernels = &a->cpu->kernels;
    uint32_t head_dim = args->head_dim, rows = n_tokens * a->group, cell_pos = run->pos0 + cell;
    size_t at = kv_head * run->head_bytes + cell * lq_cell_bytes(run->format, head_dim);
    float *scores = w->kept != NULL ? w->kept + column : w->scores;
    size_t stride = w->kept != NULL ? padded(a->n_columns) : BLOCK_CELLS;
    if (run->format == LQ_CELL_F16)
        kernels->attn_scores_f16(scores, stride, w->q, head_dim, rows, (const uint16_t *)(const void *)(run->k + at), n,
                                 head_dim, args->scale);
    else
        kernels->attn_scores_q(scores, stride, w->q, head_dim, rows, run->format, run->k + at, n, head_dim,
                               args->scale);
    uint32_t first = 0;
    for (uint32_t r = 0; r < rows; r++) {
        float *row = scores + r * stride;
        if (args->softcap > 0.0f) kernels->softcap(row, args->softcap, n);
        if (run->history || mask_row(args, row, args->pos0 + token0 + r / a->group, cell_pos, n)) continue;
        softmax_cells(a, w, scores, stride, first, r, n, block);
        memset(row, 0, n * sizeof(float)); /* this row sees none of the cells */
        w->decay[r] = 1.0f;
        if (w->kept != NULL) w->block_max[r * a->n_run_blocks + block] = -INFINITY;
        first = r + 1;
    }
    softmax_cells(a, w, scores, stride, first, rows, n, block);
    if (run->format == LQ_CELL_F16)
        kernels->attn_values_f16(w->acc, a->row_floats, w->decay, scores, stride, rows,
                                 (const uint16_t *)(const void *)(run->v + at), n, head_dim);
    else
        kernels->attn_values_q(w->acc, a->row_floats, w->decay, scores, stride, rows, run->format, run->v + at, n,
                               head_dim);
}

/* Sets the scores of a page's masked tokens to -infinity. */
static void mask_tokens(float *scores, size_t stride, uint32_t rows, uint64_t mask) {
    for (uint64_t left = mask; left != 0; left &= left - 1)
        for (uint32_t r = 0, i = (uint32_t)__builtin_ctzll(left); r < rows; r++) scores[r * stride + i] = -INFINITY;
}

/* Attends to n packed pages, at most pages_together(). Every query sees all their tokens but the masked ones. Meanwhile
 * the kernels prefetch the next n pages, up to `end`: one head's codes of consecutive pages lie apart in memory, a
 * pattern that no hardware prefetcher follows. */
static void attend_pages(const attention *a, const workspace *w, uint32_t kv_head, uint32_t first, uint32_t n,
                         uint32_t end, uint32_t rows) {
    const lq_attention *args = a->args;
    const lq_page_format *format = args->pages->format;
    const lq_kernels *kernels = &a->cpu->kernels;
    uint32_t stride = n * BLOCK_CELLS;
    lq_page_record pages[2 * FEW_ROWS_PAGES];
    for (uint32_t i = 0; i < 2 * n && first + i < end; i++) pages[i] = page_record(args, kv_head, first + i);
    for (uint32_t i = 0; i < n; i++) {
        float *scores = w->scores + i * BLOCK_CELLS;
        kernels->page_scores(scores, stride, w->q_page, format->n_lanes, rows, format, pages[i],
                             first + n + i < end ? &pages[n + i] : NULL, args->scale);
        for (uint32_t r = 0; args->softcap > 0.0f && r < rows; r++)
            kernels->softcap(scores + r * stride, args->softcap, BLOCK_CELLS);
        mask_tokens(scores, stride, rows, *lq_kv_page_mask(args->pages, kv_head, first + i));
    }
    kernels->softmax_step(w->scores, stride, rows, stride, w->max, w->sum, w->decay);
    for (uint32_t i = 0; i < n; i++) {
        kernels->page_values(w->acc, a->row_floats, w->decay, w->scores + i * BLOCK_CELLS, stride, rows, format,
                             pages[i], first + n + i < end ? &pages[n + i] : NULL);
        for (uint32_t r = 0; i == 0 && r < rows; r++) w->decay[r] = 1.0f;
    }
}

/* Prefetches the beginning of block number `block` of pages and runs (attend_blocks() numbers them), if there is one.
 * The kernels prefetch the rest. */
static void prefetch_block(const attention *a, uint32_t kv_head, uint32_t block) {
    const lq_attention *args = a->args;
    if (block < a->n_pages) {
        lq_page_record page = page_record(args, kv_head, args->pages->first_page + block);
        lq_prefetch(page.scales, 0, args->pages->format->scale_bytes + 63);
        lq_prefetch(page.k, 0, args->pages->format->k_bytes);
        return;
    }
    block -= a->n_pages;
    for (uint32_t i = 0; i < args->n_runs; block -= n_run_blocks(&args->runs[i]), i++) {
        const lq_attn_run *run = &args->runs[i];
        if (block >= n_run_blocks(run)) continue;
        uint64_t cell_bytes = lq_cell_bytes(run->format, args->head_dim);
        uint64_t at = kv_head * run->head_bytes + block * BLOCK_CELLS * cell_bytes;
        uint64_t n_bytes = block_cells(run, block) * cell_bytes;
        if (n_bytes > LQ_STREAM_AHEAD) n_bytes = LQ_STREAM_AHEAD;
        lq_prefetch(run->k + at, 0, n_bytes);
        lq_prefetch(run->v + at, 0, n_bytes);
        return;
    }
}

/* Attends to blocks first to end - 1. Pages count first, then the blocks of the runs. */
static void attend_blocks(const attention *a, const workspace *w, uint32_t kv_head, uint32_t token0, uint32_t n_tokens,
                          uint32_t first, uint32_t end) {
    const lq_attention *args = a->args;
    uint32_t block0 = a->n_pages, column0 = 0, together = pages_together(a->max_rows);
    uint32_t end_page = end < a->n_pages ? end : a->n_pages;
    for (uint32_t page = first, n; page < end_page; page += n) {
        n = end_page - page < together ? end_page - page : together;
        if (page + n == end_page && end_page < end) prefetch_block(a, kv_head, end_page);
        attend_pages(a, w, kv_head, args->pages->first_page + page, n, args->pages->first_page + end_page,
                     n_tokens * a->group);
    }
    for (uint32_t i = 0; i < args->n_runs; i++) {
        const lq_attn_run *run = &args->runs[i];
        uint32_t n_blocks = n_run_blocks(run);
        for (uint32_t b = first > block0 ? first - block0 : 0; b < n_blocks && block0 + b < end; b++) {
            uint32_t cell = b * BLOCK_CELLS, n = block_cells(run, b);
            if (!run->history && out_of_sight(args, token0, n_tokens, run->pos0 + cell, n)) continue;
            if (b + 1 == n_blocks && block0 + n_blocks < end) prefetch_block(a, kv_head, block0 + n_blocks);
            attend_cells(a, w, run, kv_head, cell, n, column0 + cell, block0 + b - a->n_pages, token0, n_tokens);
        }
        block0 += n_blocks;
        column0 += run->n_cells;
    }
}

static float *output_row(const attention *a, uint32_t kv_head, uint32_t token0, uint32_t row) {
    size_t token = token0 + row / a->group, head = kv_head * a->group + row % a->group;
    return a->args->out + (token * a->args->n_heads + head) * a->args->head_dim;
}

static void write_output(const attention *a, uint32_t kv_head, uint32_t token0, uint32_t rows, const float *sum,
                         const float *acc) {
    for (uint32_t r = 0; r < rows; r++) {
        float *out = output_row(a, kv_head, token0, r);
        memcpy(out, acc + r * a->row_floats, a->args->head_dim * sizeof(float));
        a->cpu->kernels.mul_scalar(out, 1.0f / sum[r], a->args->head_dim);
    }
}

static float *many_area(const attention *a, uint32_t thread) {
    return a->per_thread + (thread + 1) * a->thread_floats - lq_attn_many_area(a->args->head_dim);
}

/* Sums the final probabilities of a block of queries by column. */
static void sum_accumulated(const attention *a, const workspace *w, uint32_t thread, uint32_t block, uint32_t rows,
                            const float *max, const float *sum) {
    float *accumulated = a->block_accumulated + (size_t)(block - a->first_block) * padded(a->n_columns);
    if (a->many) {
        lq_attn_many_accumulated(a, w, many_area(a, thread), accumulated, rows, max, sum);
        return;
    }
    memset(accumulated, 0, padded(a->n_columns) * sizeof(float));
    for (uint32_t r = 0; r < rows; r++) {
        const float *kept = w->kept + r * padded(a->n_columns), *block_max = w->block_max + (size_t)r * a->n_run_blocks;
        uint32_t column0 = 0;
        for (uint32_t i = 0; i < a->args->n_runs; i++) {
            uint32_t n_cells = a->args->runs[i].n_cells;
            for (uint32_t cell = 0; cell < n_cells; cell += BLOCK_CELLS) {
                uint32_t n = n_cells - cell < BLOCK_CELLS ? n_cells - cell : BLOCK_CELLS;
                float top = *block_max++, factor = top > -INFINITY ? expf(top - max[r]) / sum[r] : 0.0f;
                if (factor > 0.0f) /* the block was seen */
                    a->cpu->kernels.axpy(accumulated + column0 + cell, kept + column0 + cell, factor, n);
            }
            column0 += n_cells;
        }
    }
}

static query_block get_block(const attention *a, uint32_t block) {
    query_block b = {.kv_head = block % a->args->n_kv_heads};
    b.token0 = block / a->args->n_kv_heads * a->tokens_per_block;
    b.n_tokens = a->args->n_tokens - b.token0;
    if (b.n_tokens > a->tokens_per_block) b.n_tokens = a->tokens_per_block;
    b.rows = b.n_tokens * a->group;
    return b;
}

static void load_queries(const attention *a, const workspace *w, const query_block *b) {
    const lq_attention *args = a->args;
    uint32_t head_dim = args->head_dim;
    for (uint32_t t = 0; t < b->n_tokens; t++) {
        size_t head = (size_t)(b->token0 + t) * args->n_heads + (size_t)b->kv_head * a->group;
        memcpy(w->q + (size_t)t * a->group * head_dim, args->q + head * head_dim,
               (size_t)a->group * head_dim * sizeof(float));
    }
    if (a->n_pages == 0) return;
    const uint16_t *order = args->pages->order + (size_t)b->kv_head * head_dim;
    const lq_page_format *format = args->pages->format;
    memset(w->q_page, 0, (size_t)b->rows * format->n_lanes * sizeof(float));
    for (uint32_t r = 0; r < b->rows; r++) {
        const float *q = w->q + (size_t)r * head_dim;
        for (uint32_t t = 0; t < format->n_tiers; t++) {
            float *lanes = w->q_page + (size_t)r * format->n_lanes + format->tiers[t].first_lane;
            const uint16_t *channels = order + format->tiers[t].first_channel;
            for (uint32_t i = 0; i < format->tiers[t].n_channels; i++) lanes[i] = q[channels[i]];
        }
    }
}

/* Attends to blocks first to end - 1 with query rows one below the other. */
static void attend_few(const attention *a, const workspace *w, const query_block *b, uint32_t first, uint32_t end) {
    load_queries(a, w, b);
    memset(w->acc, 0, b->rows * a->row_floats * sizeof(float));
    if (w->kept != NULL) { /* blocks that no query sees keep a maximum of -infinity */
        uint32_t first_run = first > a->n_pages ? first - a->n_pages : 0;
        uint32_t end_run = end > a->n_pages ? end - a->n_pages : 0;
        for (uint32_t r = 0; r < b->rows; r++)
            for (uint32_t i = first_run; i < end_run; i++) w->block_max[(size_t)r * a->n_run_blocks + i] = -INFINITY;
    }
    attend_blocks(a, w, b->kv_head, b->token0, b->n_tokens, first, end);
}

static void attention_task(void *context, uint32_t task, uint32_t thread) {
    const attention *a = context;
    uint32_t share = task % a->n_shares, block = a->first_block + task / a->n_shares;
    uint32_t n_blocks = a->n_pages + a->n_run_blocks;
    query_block b = get_block(a, block);
    workspace w = thread_workspace(a, thread);
    if (a->kept != NULL) set_kept(a, &w, a->n_shares > 1 ? block : thread);
    if (a->n_shares > 1) {
        w.max = a->partials + task * a->partial_floats;
        w.sum = w.max + padded(a->max_rows);
        w.acc = w.sum + padded(a->max_rows);
    }
    uint32_t first = (uint32_t)((uint64_t)n_blocks * share / a->n_shares);
    uint32_t end = (uint32_t)((uint64_t)n_blocks * (share + 1) / a->n_shares);
    for (uint32_t r = 0; r < padded(b.rows); r++) w.max[r] = -FLT_MAX, w.sum[r] = 0.0f;
    prefetch_block(a, b.kv_head, first);
    if (a->many)
        lq_attn_many(a, &w, many_area(a, thread), &b, first, end);
    else
        attend_few(a, &w, &b, first, end);
    if (a->n_shares > 1) return;
    write_output(a, b.kv_head, b.token0, b.rows, w.sum, w.acc);
    if (a->kept != NULL) sum_accumulated(a, &w, thread, block, b.rows, w.max, w.sum);
}

/* Merges the shares of one block of queries into the first of them. */
static void merge_shares(const attention *a, uint32_t block) {
    uint32_t head_dim = a->args->head_dim;
    query_block b = get_block(a, block);
    float *total = a->partials + (size_t)block * a->n_shares * a->partial_floats;
    float *sum = total + padded(a->max_rows), *acc = sum + padded(a->max_rows);
    for (uint32_t share = 1; share < a->n_shares; share++) {
        const float *other = total + share * a->partial_floats;
        const float *other_sum = other + padded(a->max_rows), *other_acc = other_sum + padded(a->max_rows);
        for (uint32_t r = 0; r < b.rows; r++) {
            float max = other[r] > total[r] ? other[r] : total[r];
            float keep = expf(total[r] - max), add = expf(other[r] - max);
            total[r] = max;
            sum[r] = sum[r] * keep + other_sum[r] * add;
            for (size_t d = 0; d < head_dim; d++)
                acc[r * a->row_floats + d] = acc[r * a->row_floats + d] * keep + other_acc[r * a->row_floats + d] * add;
        }
    }
    write_output(a, b.kv_head, b.token0, b.rows, sum, acc);
    if (a->kept == NULL) return;
    workspace w;
    set_kept(a, &w, block);
    sum_accumulated(a, &w, 0, block, b.rows, total, sum);
}

/* Adds the accumulated attention of a wave's blocks to that of their KV heads, in the order of the blocks. */
static void add_accumulated(const attention *a, uint32_t n_blocks) {
    for (uint32_t i = 0; i < n_blocks; i++) {
        uint32_t block = a->first_block + i, kv_head = block % a->args->n_kv_heads;
        float *dst = a->args->accumulated + (size_t)kv_head * a->n_columns;
        const float *src = a->block_accumulated + (size_t)i * padded(a->n_columns);
        if (block < a->args->n_kv_heads)
            memcpy(dst, src, a->n_columns * sizeof(float));
        else
            a->cpu->kernels.add(dst, src, a->n_columns);
    }
}

/* How many shares each block of queries is divided into. Many blocks keep all threads busy without shares. */
static uint32_t choose_shares(const attention *a, uint32_t n_blocks) {
    uint32_t n_threads = a->cpu->n_threads;
    if (n_threads == 1 || n_blocks >= TASKS_PER_THREAD * n_threads) return 1;
    if (a->args->accumulated != NULL && n_blocks * kept_rows(a->max_rows) > MAX_SHARED_ROWS) return 1;
    uint32_t wanted = (TASKS_PER_THREAD * n_threads + n_blocks - 1) / n_blocks;
    uint32_t useful = (a->n_pages + a->n_run_blocks) / MIN_SHARE_BLOCKS;
    uint32_t n = wanted < useful ? wanted : useful;
    return n == 0 ? 1 : n;
}

/* Sets all that follows from the sizes. The memory of the threads and the partial results starts at per_thread. */
static attention prepare(lq_backend_cpu *cpu, const lq_attention *args, float *per_thread) {
    attention a = {.cpu = cpu, .args = args, .group = args->n_heads / args->n_kv_heads};
    a.tokens_per_block = block_tokens(a.group, args->n_tokens);
    a.max_rows = a.tokens_per_block * a.group;
    a.n_token_blocks = (args->n_tokens + a.tokens_per_block - 1) / a.tokens_per_block;
    a.n_pages = args->pages != NULL ? args->pages->end_page - args->pages->first_page : 0;
    for (uint32_t i = 0; i < args->n_runs; i++) {
        a.n_run_blocks += n_run_blocks(&args->runs[i]);
        a.n_columns += args->runs[i].n_cells;
    }
    a.many = lq_attn_many_rows(a.max_rows) && cpu->kernels.scores_many != NULL;
    a.row_floats = padded(args->head_dim);
    a.thread_floats = thread_area(a.max_rows, args->head_dim);
    a.partial_floats = partial_area(a.max_rows, args->head_dim);
    a.kept_floats = kept_rows(a.max_rows) * (padded(a.n_columns) + a.n_run_blocks);
    a.per_thread = per_thread;
    a.partials = a.per_thread + cpu->n_threads * a.thread_floats;
    return a;
}

static void attend_alone(lq_backend_cpu *cpu, const lq_attention *args) {
    attention a = prepare(cpu, args, cpu->scratch);
    uint32_t n_blocks = a.n_token_blocks * args->n_kv_heads, wave = n_blocks;
    a.n_shares = choose_shares(&a, n_blocks);
    if (args->accumulated != NULL) {
        uint32_t most = wave_token_blocks(cpu->n_threads, args->n_kv_heads) * args->n_kv_heads;
        uint32_t n_areas = a.n_shares > 1 ? n_blocks : cpu->n_threads;
        a.kept = a.partials + max_shared_tasks(cpu->n_threads) * a.partial_floats;
        a.block_accumulated = a.kept + n_areas * a.kept_floats;
        if (wave > most) wave = most;
    }
    for (a.first_block = 0; a.first_block < n_blocks; a.first_block += wave) {
        uint32_t n = n_blocks - a.first_block < wave ? n_blocks - a.first_block : wave;
        lq_pool_run(cpu->pool, attention_task, &a, n * a.n_shares);
        for (uint32_t block = 0; a.n_shares > 1 && block < n; block++) merge_shares(&a, block);
        if (args->accumulated != NULL) add_accumulated(&a, n);
    }
}

/* ---- several tokens, each with its own cells and pages: a block is one KV head of one token */

typedef struct together {
    attention *each; /* [n] by rising first_task */
    uint32_t n;
} together;

static void together_task(void *context, uint32_t task, uint32_t thread) {
    const together *t = context;
    uint32_t low = 0, high = t->n;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (t->each[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    attention_task(&t->each[low], task - t->each[low].first_task, thread);
}

/* Gives every attention its number of shares and its memory, which is allocated from `at` on. Returns the number of
 * tasks. A share is about as long as the average task; an attention that is shorter than one and a half of them is not
 * divided, so that there are never more shares than max_shared_tasks(). */
static uint32_t divide(const together *t, float *at) {
    uint32_t n_threads = t->each[0].cpu->n_threads, n_tasks = 0;
    uint64_t work = 0;
    size_t kept_floats = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const attention *a = &t->each[i];
        work += (uint64_t)a->args->n_kv_heads * (a->n_pages + a->n_run_blocks);
        if (a->args->accumulated != NULL && a->kept_floats > kept_floats) kept_floats = a->kept_floats;
    }
    uint64_t n_parts = (uint64_t)TASKS_PER_THREAD * n_threads, part = (work + n_parts - 1) / n_parts;
    if (part < MIN_SHARE_BLOCKS) part = MIN_SHARE_BLOCKS;
    float *kept_by_threads = at; /* all of one size: a thread uses its area for one attention after another */
    at += n_threads * kept_floats;
    for (uint32_t i = 0; i < t->n; i++) {
        attention *a = &t->each[i];
        uint32_t n_heads = a->args->n_kv_heads;
        uint64_t n_shares = (a->n_pages + a->n_run_blocks + part / 2) / part;
        a->n_shares = n_threads > 1 && n_shares > 1 ? (uint32_t)n_shares : 1;
        a->partials = at;
        if (a->n_shares > 1) at += (size_t)n_heads * a->n_shares * a->partial_floats;
        if (a->args->accumulated != NULL) {
            a->kept = a->n_shares > 1 ? at : kept_by_threads;
            a->kept_floats = kept_floats;
            if (a->n_shares > 1) at += n_heads * kept_floats;
            a->block_accumulated = at;
            at += n_heads * padded(a->n_columns);
        }
        a->first_task = n_tasks;
        n_tasks += n_heads * a->n_shares;
    }
    return n_tasks;
}

static void attend_together(lq_backend_cpu *cpu, const lq_attention *args, uint32_t n_args) {
    together t = {cpu->scratch, n_args};
    float *per_thread = (float *)(void *)((uint8_t *)cpu->scratch + align_lines(n_args * sizeof(attention)));
    for (uint32_t i = 0; i < n_args; i++) t.each[i] = prepare(cpu, &args[i], per_thread);
    uint32_t n_tasks = divide(&t, t.each[0].partials);
    lq_pool_run(cpu->pool, together_task, &t, n_tasks);
    for (uint32_t i = 0; i < n_args; i++) {
        const attention *a = &t.each[i];
        uint32_t n_heads = a->args->n_kv_heads;
        for (uint32_t head = 0; a->n_shares > 1 && head < n_heads; head++) merge_shares(a, head);
        if (a->args->accumulated != NULL) add_accumulated(a, n_heads);
    }
}

void lq_cpu_attention(lq_backend *backend, const lq_attention *args, uint32_t n_args) {
    if (n_args == 1)
        attend_alone(lq_cpu(backend), args);
    else
        attend_together(lq_cpu(backend), args, n_args);
}
