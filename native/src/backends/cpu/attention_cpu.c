/* attention_cpu.c - causal attention as one running softmax over blocks of cells (Milakov & Gimelshein 2018; the
 * blocked form is FlashAttention's). A task is one KV head, a block of query tokens with all query heads of the group
 * (so that a key is loaded once for all of them), and a share of the cells; shares are merged at the end. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "backends/cpu/backend_cpu.h"

#define BLOCK_CELLS 64
#define MAX_ROWS 64        /* query rows (tokens x heads of a group) a task holds, if a group is not larger */
#define MIN_SHARE_BLOCKS 4 /* a share smaller than this costs more to merge than it saves */
#define TASKS_PER_THREAD 4

typedef struct attention {
    lq_backend_cpu *cpu;
    const lq_attention *args;
    uint32_t group; /* query heads a KV head */
    uint32_t tokens_per_block;
    uint32_t n_token_blocks;
    uint32_t n_shares;
    uint32_t n_cell_blocks; /* over all runs */
    size_t row_floats;      /* head_dim rounded up: stride of accumulator rows */
    float *per_thread;      /* [n_threads] areas of thread_floats */
    size_t thread_floats;
    float *partials; /* [task][max, sum][rows] and [rows][row_floats]; used if n_shares > 1 */
    size_t partial_floats;
} attention;

/* What a thread works in; the accumulator is the partial result itself where shares are merged later. */
typedef struct workspace {
    float *q;      /* [rows][head_dim] */
    float *scores; /* [rows][BLOCK_CELLS] */
    float *decay;  /* [rows] */
    float *max;    /* [rows] */
    float *sum;    /* [rows] */
    float *acc;    /* [rows][row_floats] */
} workspace;

static uint32_t block_tokens(uint32_t group, uint32_t n_tokens) {
    uint32_t tokens = group < MAX_ROWS ? MAX_ROWS / group : 1;
    return tokens < n_tokens ? tokens : n_tokens;
}

static size_t padded(size_t n_floats) { return (n_floats + 15) & ~(size_t)15; }

static size_t thread_area(uint32_t rows, uint32_t head_dim) {
    return padded((size_t)rows * head_dim) + (size_t)rows * BLOCK_CELLS + 3 * padded(rows) + rows * padded(head_dim);
}

static size_t partial_area(uint32_t rows, uint32_t head_dim) { return 2 * padded(rows) + rows * padded(head_dim); }

static uint32_t max_shared_tasks(uint32_t n_threads) { return 2 * TASKS_PER_THREAD * n_threads; }

uint64_t lq_cpu_attention_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec) {
    uint32_t group = spec->n_heads / spec->n_kv_heads;
    uint32_t rows = group * block_tokens(group, spec->n_tokens);
    return sizeof(float) * ((uint64_t)cpu->n_threads * thread_area(rows, spec->head_dim) +
                            (uint64_t)max_shared_tasks(cpu->n_threads) * partial_area(rows, spec->head_dim));
}

static workspace thread_workspace(const attention *a, uint32_t thread, uint32_t rows) {
    float *at = a->per_thread + thread * a->thread_floats;
    workspace w;
    w.q = at;
    w.scores = w.q + padded((size_t)rows * a->args->head_dim);
    w.decay = w.scores + (size_t)rows * BLOCK_CELLS;
    w.max = w.decay + padded(rows);
    w.sum = w.max + padded(rows);
    w.acc = w.sum + padded(rows);
    return w;
}

/* Sets the scores of cells that row's query may not see to -infinity; false if it sees none of them. */
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

/* Takes n cells (at most BLOCK_CELLS) into the running softmax of all rows. */
static void attend_cells(const attention *a, const workspace *w, const lq_attn_run *run, uint32_t kv_head,
                         uint32_t cell, uint32_t n, uint32_t token0, uint32_t n_tokens) {
    const lq_attention *args = a->args;
    const lq_kernels *kernels = &a->cpu->kernels;
    uint32_t head_dim = args->head_dim, rows = n_tokens * a->group, cell_pos = run->pos0 + cell;
    size_t at = kv_head * run->head_stride + (size_t)cell * head_dim;
    kernels->attn_scores_f16(w->scores, BLOCK_CELLS, w->q, head_dim, rows, run->k + at, n, head_dim, args->scale);
    for (uint32_t r = 0; r < rows; r++) {
        float *scores = w->scores + (size_t)r * BLOCK_CELLS;
        uint32_t query_pos = args->pos0 + token0 + r / a->group;
        if (!mask_row(args, scores, query_pos, cell_pos, n)) {
            memset(scores, 0, n * sizeof(float));
            w->decay[r] = 1.0f;
            continue;
        }
        float top = kernels->max(scores, n);
        float max = top > w->max[r] ? top : w->max[r];
        w->decay[r] = w->max[r] == max ? 1.0f : expf(w->max[r] - max);
        w->max[r] = max;
        w->sum[r] = w->sum[r] * w->decay[r] + kernels->exp_sum(scores, max, n);
    }
    kernels->attn_values_f16(w->acc, a->row_floats, w->decay, w->scores, BLOCK_CELLS, rows, run->v + at, n, head_dim);
}

/* True if no query of the block sees any of the cells. */
static bool out_of_sight(const lq_attention *args, uint32_t token0, uint32_t n_tokens, uint32_t cell_pos, uint32_t n) {
    uint32_t first_query = args->pos0 + token0, last_query = first_query + n_tokens - 1;
    if (cell_pos > last_query) return true;
    return args->window != 0 && first_query >= args->window && cell_pos + n - 1 <= first_query - args->window;
}

static void attend_share(const attention *a, const workspace *w, uint32_t kv_head, uint32_t token0, uint32_t n_tokens,
                         uint32_t share) {
    const lq_attention *args = a->args;
    uint32_t first = (uint32_t)((uint64_t)a->n_cell_blocks * share / a->n_shares);
    uint32_t end = (uint32_t)((uint64_t)a->n_cell_blocks * (share + 1) / a->n_shares);
    uint32_t block0 = 0;
    for (uint32_t i = 0; i < args->n_runs; i++) {
        const lq_attn_run *run = &args->runs[i];
        uint32_t n_blocks = (run->n_cells + BLOCK_CELLS - 1) / BLOCK_CELLS;
        for (uint32_t b = first > block0 ? first - block0 : 0; b < n_blocks && block0 + b < end; b++) {
            uint32_t cell = b * BLOCK_CELLS;
            uint32_t n = run->n_cells - cell < BLOCK_CELLS ? run->n_cells - cell : BLOCK_CELLS;
            if (!out_of_sight(args, token0, n_tokens, run->pos0 + cell, n))
                attend_cells(a, w, run, kv_head, cell, n, token0, n_tokens);
        }
        block0 += n_blocks;
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

static void attention_task(void *context, uint32_t task, uint32_t thread) {
    const attention *a = context;
    const lq_attention *args = a->args;
    uint32_t share = task % a->n_shares, block = task / a->n_shares;
    uint32_t kv_head = block % args->n_kv_heads, token0 = block / args->n_kv_heads * a->tokens_per_block;
    uint32_t n_tokens = args->n_tokens - token0 < a->tokens_per_block ? args->n_tokens - token0 : a->tokens_per_block;
    uint32_t rows = n_tokens * a->group, max_rows = a->tokens_per_block * a->group;
    workspace w = thread_workspace(a, thread, max_rows);
    if (a->n_shares > 1) {
        w.max = a->partials + task * a->partial_floats;
        w.sum = w.max + padded(max_rows);
        w.acc = w.sum + padded(max_rows);
    }
    for (uint32_t t = 0; t < n_tokens; t++) {
        size_t head = (size_t)(token0 + t) * args->n_heads + (size_t)kv_head * a->group;
        memcpy(w.q + (size_t)t * a->group * args->head_dim, args->q + head * args->head_dim,
               (size_t)a->group * args->head_dim * sizeof(float));
    }
    for (uint32_t r = 0; r < rows; r++) w.max[r] = -FLT_MAX;
    memset(w.sum, 0, rows * sizeof(float));
    memset(w.acc, 0, rows * a->row_floats * sizeof(float));
    attend_share(a, &w, kv_head, token0, n_tokens, share);
    if (a->n_shares == 1) write_output(a, kv_head, token0, rows, w.sum, w.acc);
}

/* Merges the shares of one block of queries into the first of them. */
static void merge_shares(const attention *a, uint32_t block) {
    const lq_attention *args = a->args;
    uint32_t kv_head = block % args->n_kv_heads, token0 = block / args->n_kv_heads * a->tokens_per_block;
    uint32_t n_tokens = args->n_tokens - token0 < a->tokens_per_block ? args->n_tokens - token0 : a->tokens_per_block;
    uint32_t rows = n_tokens * a->group, max_rows = a->tokens_per_block * a->group;
    float *total = a->partials + (size_t)block * a->n_shares * a->partial_floats;
    float *sum = total + padded(max_rows), *acc = sum + padded(max_rows);
    for (uint32_t share = 1; share < a->n_shares; share++) {
        const float *other = total + share * a->partial_floats;
        const float *other_sum = other + padded(max_rows), *other_acc = other_sum + padded(max_rows);
        for (uint32_t r = 0; r < rows; r++) {
            float max = other[r] > total[r] ? other[r] : total[r];
            float keep = expf(total[r] - max), add = expf(other[r] - max);
            total[r] = max;
            sum[r] = sum[r] * keep + other_sum[r] * add;
            for (size_t d = 0; d < args->head_dim; d++)
                acc[r * a->row_floats + d] = acc[r * a->row_floats + d] * keep + other_acc[r * a->row_floats + d] * add;
        }
    }
    write_output(a, kv_head, token0, rows, sum, acc);
}

void lq_cpu_attention(lq_backend *backend, const lq_attention *args) {
    lq_backend_cpu *cpu = lq_cpu(backend);
    attention a = {.cpu = cpu, .args = args, .group = args->n_heads / args->n_kv_heads};
    a.tokens_per_block = block_tokens(a.group, args->n_tokens);
    a.n_token_blocks = (args->n_tokens + a.tokens_per_block - 1) / a.tokens_per_block;
    for (uint32_t i = 0; i < args->n_runs; i++)
        a.n_cell_blocks += (args->runs[i].n_cells + BLOCK_CELLS - 1) / BLOCK_CELLS;
    uint32_t n_blocks = a.n_token_blocks * args->n_kv_heads;
    uint32_t rows = a.tokens_per_block * a.group;
    a.row_floats = padded(args->head_dim);
    a.thread_floats = thread_area(rows, args->head_dim);
    a.partial_floats = partial_area(rows, args->head_dim);
    a.per_thread = cpu->scratch;
    a.partials = a.per_thread + cpu->n_threads * a.thread_floats;
    a.n_shares = 1;
    if (cpu->n_threads > 1 && n_blocks < TASKS_PER_THREAD * cpu->n_threads) {
        uint32_t wanted = (TASKS_PER_THREAD * cpu->n_threads + n_blocks - 1) / n_blocks;
        uint32_t useful = a.n_cell_blocks / MIN_SHARE_BLOCKS;
        a.n_shares = wanted < useful ? wanted : useful;
        if (a.n_shares == 0) a.n_shares = 1;
    }
    lq_pool_run(cpu->pool, attention_task, &a, n_blocks * a.n_shares);
    if (a.n_shares > 1) {
        for (uint32_t block = 0; block < n_blocks; block++) merge_shares(&a, block);
    }
}
