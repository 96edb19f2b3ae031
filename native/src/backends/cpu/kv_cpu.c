/* kv_cpu.c - what the KV cache asks of the CPU besides attention: storing cells, coding pages, moving cells. */
#include <string.h>

#include "backends/cpu/backend_cpu.h"

uint64_t lq_cpu_kv_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec) {
    return (uint64_t)cpu->n_threads * LQ_PAGE_TOKENS * spec->head_dim * sizeof(float);
}

/* f16 cells are 2-byte aligned. q8_0 and q4_0 cells are read byte by byte. */
static uint16_t *halves(uint8_t *cell) { return (uint16_t *)(void *)cell; }

static bool has_nan(const float *x, uint32_t n) {
    float sum = 0.0f; /* a value times 0 is 0, or NaN if the value is NaN or infinite */
    for (uint32_t i = 0; i < n; i++) sum += x[i] * 0.0f;
    return sum != sum;
}

static void store_cell(const lq_kernels *kernels, lq_cell_format format, uint8_t *dst, const float *x,
                       uint32_t head_dim) {
    if (format == LQ_CELL_F16) {
        kernels->f32_to_f16(halves(dst), x, head_dim);
        return;
    }
    kernels->cell_store_q(format, dst, x, head_dim);
    if (has_nan(x, head_dim)) { /* codes cannot hold a NaN: the first scale becomes one, so that attention sees it */
        dst[0] = LQ_CELL_NAN & 255;
        dst[1] = LQ_CELL_NAN >> 8;
    }
}

static void load_cell(const lq_kernels *kernels, lq_cell_format format, float *dst, uint8_t *src, uint32_t head_dim) {
    if (format == LQ_CELL_F16)
        kernels->f16_to_f32(dst, halves(src), head_dim);
    else
        kernels->cell_load_q(format, dst, src, head_dim);
}

/* ---- storing a chunk: a task is a token */

typedef struct store_op {
    const lq_kernels *kernels;
    lq_cell_format format;
    uint8_t *dst;
    uint64_t head_bytes;
    const float *x;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t cell0;
    uint32_t n_cells;
    uint32_t n_tokens;
    uint32_t tokens_per_task;
} store_op;

static void store_tokens(void *context, uint32_t task, uint32_t thread) {
    const store_op *op = context;
    size_t cell_bytes = lq_cell_bytes(op->format, op->head_dim);
    uint32_t end = (task + 1) * op->tokens_per_task;
    (void)thread;
    for (uint32_t t = task * op->tokens_per_task; t < end && t < op->n_tokens; t++) {
        uint64_t cell = ((uint64_t)op->cell0 + t) % op->n_cells;
        for (uint32_t head = 0; head < op->n_kv_heads; head++)
            store_cell(op->kernels, op->format, op->dst + head * op->head_bytes + cell * cell_bytes,
                       op->x + ((size_t)t * op->n_kv_heads + head) * op->head_dim, op->head_dim);
    }
}

void lq_cpu_kv_store(lq_backend *backend, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                     uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells) {
    lq_backend_cpu *cpu = lq_cpu(backend);
    store_op op = {.kernels = &cpu->kernels,
                   .format = format,
                   .dst = dst,
                   .head_bytes = head_bytes,
                   .x = x,
                   .n_kv_heads = n_kv_heads,
                   .head_dim = head_dim,
                   .cell0 = cell0,
                   .n_cells = n_cells,
                   .n_tokens = n_tokens};
    uint32_t n_tasks = n_tokens < 64 ? 1 : 4 * cpu->n_threads;
    op.tokens_per_task = (n_tokens + n_tasks - 1) / n_tasks;
    lq_pool_run(cpu->pool, store_tokens, &op, (n_tokens + op.tokens_per_task - 1) / op.tokens_per_task);
}

/* ---- rotation: a task is a block of rows */

#define HADAMARD_ROWS 64

typedef struct hadamard_op {
    const lq_kernels *kernels;
    float *x;
    uint32_t n_rows;
    uint32_t head_dim;
} hadamard_op;

static void hadamard_rows(void *context, uint32_t task, uint32_t thread) {
    const hadamard_op *op = context;
    uint32_t end = (task + 1) * HADAMARD_ROWS;
    (void)thread;
    for (uint32_t r = task * HADAMARD_ROWS; r < end && r < op->n_rows; r++)
        op->kernels->hadamard(op->x + (size_t)r * op->head_dim, op->head_dim);
}

void lq_cpu_hadamard(lq_backend *backend, float *x, uint32_t n_rows, uint32_t head_dim) {
    hadamard_op op = {&lq_cpu(backend)->kernels, x, n_rows, head_dim};
    lq_pool_run(lq_cpu(backend)->pool, hadamard_rows, &op, (n_rows + HADAMARD_ROWS - 1) / HADAMARD_ROWS);
}

/* ---- coding pages: a task is a page of one head, keys or values */

typedef struct pack_op {
    lq_backend_cpu *cpu;
    const lq_kv_pack *args;
} pack_op;

/* Loads the 64 tokens of a page as floats. */
static void load_page(const pack_op *op, uint32_t page, uint32_t head, bool keys, float *tile) {
    const lq_kv_pack *args = op->args;
    uint32_t head_dim = args->pages->format->head_dim;
    uint32_t token = page * LQ_PAGE_TOKENS, source = 0;
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++, token++) {
        uint32_t cell = token;
        for (source = 0; cell >= args->sources[source].n_cells; source++) cell -= args->sources[source].n_cells;
        const lq_attn_run *run = &args->sources[source];
        load_cell(&op->cpu->kernels, run->format, tile + (size_t)t * head_dim,
                  (keys ? run->k : run->v) + head * run->head_bytes + cell * lq_cell_bytes(run->format, head_dim),
                  head_dim);
    }
}

static float *thread_tile(const pack_op *op, uint32_t thread) {
    return (float *)op->cpu->scratch + (size_t)thread * LQ_PAGE_TOKENS * op->args->pages->format->head_dim;
}

static void learn_head(void *context, uint32_t head, uint32_t thread) {
    const pack_op *op = context;
    const lq_kv_pages *pages = op->args->pages;
    load_page(op, 0, head, true, thread_tile(op, thread));
    lq_page_learn_order(pages->format, thread_tile(op, thread), pages->order + (size_t)head * pages->format->head_dim);
}

static void pack_page(void *context, uint32_t task, uint32_t thread) {
    const pack_op *op = context;
    const lq_kv_pages *pages = op->args->pages;
    bool keys = task % 2 == 0;
    uint32_t head = task / 2 % op->args->n_kv_heads, page = task / 2 / op->args->n_kv_heads;
    float *tile = thread_tile(op, thread);
    lq_page_record record = lq_page_record_at(pages->format, lq_kv_page_block(pages, op->args->first_page + page),
                                              op->args->n_kv_heads, head);
    load_page(op, page, head, keys, tile);
    if (keys)
        op->cpu->kernels.page_encode_keys(pages->format, tile, pages->order + (size_t)head * pages->format->head_dim,
                                          record);
    else
        op->cpu->kernels.page_encode_values(pages->format, tile, record);
}

void lq_cpu_kv_pack(lq_backend *backend, const lq_kv_pack *args) {
    pack_op op = {lq_cpu(backend), args};
    if (args->learn_order) lq_pool_run(op.cpu->pool, learn_head, &op, args->n_kv_heads);
    lq_pool_run(op.cpu->pool, pack_page, &op, 2 * args->n_pages * args->n_kv_heads);
}

/* ---- moving cells: a task is a head, keys or values */

#define PARALLEL_CELLS 16 /* fewer cost less than waking a second thread */

typedef struct gather_op {
    lq_backend_cpu *cpu;
    const lq_kv_gather *args;
} gather_op;

static void gather_head(void *context, uint32_t task, uint32_t thread) {
    const gather_op *op = context;
    const lq_kv_gather *args = op->args;
    bool keys = task % 2 == 0;
    uint32_t head = task / 2, source = 0, before = 0;
    size_t dst_bytes = lq_cell_bytes(args->dst.format, args->head_dim);
    const uint32_t *columns = args->columns != NULL ? args->columns + (size_t)head * args->head_columns : NULL;
    uint8_t *dst = (keys ? args->dst.k : args->dst.v) + head * args->dst.head_bytes;
    float *cell = (float *)op->cpu->scratch + (size_t)thread * LQ_PAGE_TOKENS * args->head_dim;
    for (uint32_t i = 0; i < args->n_cells; i++, dst += dst_bytes) {
        uint32_t column = columns != NULL ? columns[i] : args->first + i;
        while (column - before >= args->sources[source].n_cells) before += args->sources[source++].n_cells;
        const lq_attn_run *run = &args->sources[source];
        uint8_t *src = (keys ? run->k : run->v) + head * run->head_bytes +
                       (column - before) * lq_cell_bytes(run->format, args->head_dim);
        if (run->format == args->dst.format) {
            memmove(dst, src, dst_bytes);
        } else {
            load_cell(&op->cpu->kernels, run->format, cell, src, args->head_dim);
            store_cell(&op->cpu->kernels, args->dst.format, dst, cell, args->head_dim);
        }
    }
}

void lq_cpu_kv_gather(lq_backend *backend, const lq_kv_gather *args) {
    gather_op op = {lq_cpu(backend), args};
    if (args->n_cells == 0) return;
    if (args->n_cells >= PARALLEL_CELLS) {
        lq_pool_run(op.cpu->pool, gather_head, &op, 2 * args->n_kv_heads);
    } else {
        for (uint32_t task = 0; task < 2 * args->n_kv_heads; task++) gather_head(&op, task, 0);
    }
}

/* ---- choosing tokens: a task is a head */

static void add_accumulated(const lq_kv_accumulated *args, uint32_t head, float *sums) {
    const float *so_far = args->so_far + head * args->head_floats;
    const float *now = args->now + (size_t)head * args->n_columns;
    for (uint32_t i = 0; i < args->n_columns; i++) sums[i] = i < args->n_before ? so_far[i] + now[i] : now[i];
}

static void select_head(void *context, uint32_t head, uint32_t thread) {
    const lq_kv_selection *args = context;
    uint32_t *kept = args->columns + (size_t)head * args->n_full;
    uint32_t *positions = args->positions + head * args->head_positions;
    const float *sums = NULL;
    (void)thread;
    if (args->policy->needs_accumulated) {
        float *row = args->accumulated.now + (size_t)head * args->accumulated.n_columns;
        add_accumulated(&args->accumulated, head, row);
        sums = row;
    }
    lq_kv_select(args->policy, args->window, args->n_tokens, sums != NULL ? sums + args->n_sinks : NULL, kept);
    for (uint32_t i = 0; i < args->n_overlay; i++) /* kept[i] >= i: what is read was not overwritten yet */
        positions[i] = kept[i] < args->n_listed ? positions[kept[i]] : args->pos0 + (kept[i] - args->n_listed);
    if (sums == NULL) return;
    float *so_far = args->accumulated.so_far + head * args->accumulated.head_floats;
    memcpy(so_far, sums, args->n_sinks * sizeof *so_far);
    for (uint32_t i = 0; i < args->n_full; i++) so_far[args->n_sinks + i] = sums[args->n_sinks + kept[i]];
}

void lq_cpu_kv_select(lq_backend *backend, const lq_kv_selection *args) {
    lq_kv_selection op = *args;
    lq_pool_run(lq_cpu(backend)->pool, select_head, &op, args->n_kv_heads);
}

void lq_cpu_kv_accumulated(lq_backend *backend, const lq_kv_accumulated *args) {
    (void)backend;
    for (uint32_t head = 0; head < args->n_kv_heads; head++)
        add_accumulated(args, head, args->so_far + head * args->head_floats);
}

/* ---- masks */

void lq_cpu_kv_masks(lq_backend *backend, const lq_kv_masks *args) {
    const lq_kv_pages *pages = args->pages;
    (void)backend;
    for (uint32_t head = 0; head < args->n_kv_heads; head++) {
        for (uint32_t page = pages->first_page; page < pages->end_page; page++) *lq_kv_page_mask(pages, head, page) = 0;
        for (uint32_t i = 0; i < args->n_tokens; i++) {
            uint32_t token = args->positions[head * args->head_positions + i] - args->pos0,
                     page = token / LQ_PAGE_TOKENS;
            if (page >= pages->first_page) *lq_kv_page_mask(pages, head, page) |= (uint64_t)1 << token % LQ_PAGE_TOKENS;
        }
    }
}
