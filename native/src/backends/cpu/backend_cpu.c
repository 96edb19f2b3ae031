/* backend_cpu.c - the CPU as a backend: host memory, and elementwise operations divided among threads. */
#include "backends/cpu/backend_cpu.h"

#include <string.h>

#include "core/system.h"

/* An operation on fewer values costs less than waking a second thread. */
#define SERIAL_VALUES 16384

static void cpu_free(lq_backend *backend) {
    if (backend == NULL) return;
    lq_pool_free(lq_cpu(backend)->pool);
    lq_free(backend);
}

static lq_status cpu_alloc(lq_backend *backend, uint64_t n_bytes, const char *purpose, void **out) {
    (void)backend;
    return lq_reserve(n_bytes, purpose, out);
}

static void cpu_release(lq_backend *backend, void *memory, uint64_t n_bytes) {
    (void)backend;
    lq_release(memory, n_bytes);
}

static void cpu_hint_full(lq_backend *backend, void *memory, uint64_t n_bytes) {
    (void)backend;
    lq_settle(memory, n_bytes);
}

static lq_status cpu_map(lq_backend *backend, const void *host, uint64_t n_bytes) {
    (void)backend, (void)host, (void)n_bytes;
    return LQ_OK;
}

static lq_status cpu_adopt(lq_backend *backend, const void *host, uint64_t n_bytes, const void **out) {
    (void)backend;
    (void)n_bytes;
    *out = host;
    return LQ_OK;
}

static void cpu_copy(lq_backend *backend, void *dst, const void *src, size_t n_bytes) {
    (void)backend;
    memcpy(dst, src, n_bytes);
}

static uint64_t cpu_available(lq_backend *backend) {
    (void)backend;
    return lq_memory_available();
}

/* Operations never run at the same time, so they share one area. */
static uint64_t cpu_scratch_bytes(lq_backend *backend, const lq_scratch_spec *spec) {
    uint64_t matmul = lq_cpu_matmul_scratch(lq_cpu(backend), spec);
    uint64_t attention = lq_cpu_attention_scratch(lq_cpu(backend), spec);
    uint64_t kv = lq_cpu_kv_scratch(lq_cpu(backend), spec);
    uint64_t routing = (uint64_t)spec->n_tokens * spec->n_used * sizeof(uint32_t);
    uint64_t most = matmul > attention ? matmul : attention;
    if (kv > most) most = kv;
    return routing > most ? routing : most;
}

static void cpu_begin(lq_backend *backend, void *scratch) {
    lq_pool_lock(lq_cpu(backend)->pool);
    lq_cpu(backend)->scratch = scratch;
}

static lq_status cpu_sync(lq_backend *backend) {
    (void)backend;
    return LQ_OK;
}

static void cpu_watch(lq_backend *backend, bool (*should_stop)(const void *context), const void *context) {
    lq_pool_watch(lq_cpu(backend)->pool, should_stop, context);
}

static void cpu_end(lq_backend *backend) {
    lq_pool_watch(lq_cpu(backend)->pool, NULL, NULL);
    lq_cpu(backend)->scratch = NULL;
    lq_pool_unlock(lq_cpu(backend)->pool);
}

/* ---- row-wise operations: one struct serves all of them, and a task is a block of rows */

typedef struct row_op {
    lq_backend_cpu *cpu;
    float *dst;
    const float *x;
    const float *weight;
    uint32_t n_rows;
    uint32_t n_cols;
    uint32_t rows_per_task;
    float number; /* eps, or a scale */
    /* embed */
    const lq_weight *table;
    const int32_t *tokens;
    /* rope */
    uint32_t head_dim;
    uint32_t n_rot;
    lq_rope_style style;
} row_op;

static uint32_t task_end(const row_op *op, uint32_t task) {
    uint32_t end = (task + 1) * op->rows_per_task;
    return end < op->n_rows ? end : op->n_rows;
}

static void run_rows(row_op *op, lq_task_fn function) {
    uint64_t n_values = (uint64_t)op->n_rows * op->n_cols;
    uint32_t n_tasks = n_values < SERIAL_VALUES ? 1 : 4 * op->cpu->n_threads;
    if (op->n_rows == 0) return;
    if (n_tasks > op->n_rows) n_tasks = op->n_rows;
    op->rows_per_task = (op->n_rows + n_tasks - 1) / n_tasks;
    lq_pool_run(op->cpu->pool, function, op, (op->n_rows + op->rows_per_task - 1) / op->rows_per_task);
}

static void embed_rows(void *context, uint32_t task, uint32_t thread) {
    const row_op *op = context;
    const lq_weight *table = op->table;
    lq_dequantize_fn decode = op->cpu->kernels.dequantize[table->format->type];
    (void)thread;
    if (decode == NULL) decode = table->format->dequantize;
    for (uint32_t r = task * op->rows_per_task; r < task_end(op, task); r++) {
        float *dst = op->dst + (size_t)r * op->n_cols;
        decode(dst, (const uint8_t *)table->data + (size_t)op->tokens[r] * table->row_bytes, op->n_cols);
        if (op->number != 1.0f) op->cpu->kernels.mul_scalar(dst, op->number, op->n_cols);
    }
}

static void cpu_embed(lq_backend *backend, float *dst, const lq_weight *table, const int32_t *tokens, uint32_t n_tokens,
                      float scale) {
    row_op op = {.cpu = lq_cpu(backend),
                 .dst = dst,
                 .table = table,
                 .tokens = tokens,
                 .n_rows = n_tokens,
                 .n_cols = table->n_cols,
                 .number = scale};
    run_rows(&op, embed_rows);
}

static void norm_rows(void *context, uint32_t task, uint32_t thread) {
    const row_op *op = context;
    (void)thread;
    for (uint32_t r = task * op->rows_per_task; r < task_end(op, task); r++) {
        size_t at = (size_t)r * op->n_cols;
        op->cpu->kernels.rms_norm(op->dst + at, op->x + at, op->weight, op->n_cols, op->number);
    }
}

static void cpu_rms_norm(lq_backend *backend, float *dst, const float *x, const float *weight, uint32_t n_rows,
                         uint32_t n_cols, float eps) {
    row_op op = {.cpu = lq_cpu(backend),
                 .dst = dst,
                 .x = x,
                 .weight = weight,
                 .n_rows = n_rows,
                 .n_cols = n_cols,
                 .number = eps};
    run_rows(&op, norm_rows);
}

static void rotate_head(float *x, const float *rotations, uint32_t n_rot, lq_rope_style style) {
    uint32_t half = n_rot / 2;
    if (style == LQ_ROPE_PAIRS) {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1], c = rotations[2 * i], s = rotations[2 * i + 1];
            x[2 * i] = a * c - b * s;
            x[2 * i + 1] = a * s + b * c;
        }
    } else {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half], c = rotations[2 * i], s = rotations[2 * i + 1];
            x[i] = a * c - b * s;
            x[i + half] = a * s + b * c;
        }
    }
}

static void rope_rows(void *context, uint32_t task, uint32_t thread) {
    const row_op *op = context;
    (void)thread;
    for (uint32_t r = task * op->rows_per_task; r < task_end(op, task); r++) {
        float *row = op->dst + (size_t)r * op->n_cols;
        for (uint32_t at = 0; at < op->n_cols; at += op->head_dim)
            rotate_head(row + at, op->x + (size_t)r * op->n_rot, op->n_rot, op->style);
    }
}

static void cpu_rope(lq_backend *backend, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim,
                     uint32_t n_rot, const float *rotations, lq_rope_style style) {
    row_op op = {.cpu = lq_cpu(backend),
                 .dst = x,
                 .x = rotations,
                 .n_rows = n_tokens,
                 .n_cols = n_heads * head_dim,
                 .head_dim = head_dim,
                 .n_rot = n_rot,
                 .style = style};
    run_rows(&op, rope_rows);
}

/* ---- elementwise operations: a task is a block of values, wherever rows begin */

#define ELEMENTS_PER_TASK 8192

typedef struct element_op {
    const lq_kernels *kernels;
    float *dst;
    const float *x;
    size_t n;
    lq_activation activation;
    float number; /* a scale, or a cap */
} element_op;

static size_t block_len(const element_op *op, uint32_t task) {
    size_t left = op->n - (size_t)task * ELEMENTS_PER_TASK;
    return left < ELEMENTS_PER_TASK ? left : ELEMENTS_PER_TASK;
}

static void glu_block(void *context, uint32_t task, uint32_t thread) {
    const element_op *op = context;
    size_t at = (size_t)task * ELEMENTS_PER_TASK;
    (void)thread;
    if (op->activation == LQ_ACT_SILU) {
        op->kernels->silu_mul(op->dst + at, op->x + at, block_len(op, task));
    } else {
        op->kernels->gelu_tanh_mul(op->dst + at, op->x + at, block_len(op, task));
    }
}

static void add_block(void *context, uint32_t task, uint32_t thread) {
    const element_op *op = context;
    size_t at = (size_t)task * ELEMENTS_PER_TASK;
    (void)thread;
    if (op->number == 1.0f) {
        op->kernels->add(op->dst + at, op->x + at, block_len(op, task));
    } else {
        op->kernels->axpy(op->dst + at, op->x + at, op->number, block_len(op, task));
    }
}

static void softcap_block(void *context, uint32_t task, uint32_t thread) {
    const element_op *op = context;
    (void)thread;
    op->kernels->softcap(op->dst + (size_t)task * ELEMENTS_PER_TASK, op->number, block_len(op, task));
}

static void run_elements(lq_backend *backend, element_op *op, lq_task_fn function) {
    op->kernels = &lq_cpu(backend)->kernels;
    lq_pool_run(lq_cpu(backend)->pool, function, op, (uint32_t)((op->n + ELEMENTS_PER_TASK - 1) / ELEMENTS_PER_TASK));
}

static void cpu_glu(lq_backend *backend, float *gate, const float *up, size_t n, lq_activation activation) {
    element_op op = {.dst = gate, .x = up, .n = n, .activation = activation};
    run_elements(backend, &op, glu_block);
}

static void cpu_add(lq_backend *backend, float *dst, const float *x, float scale, size_t n) {
    element_op op = {.dst = dst, .x = x, .n = n, .number = scale};
    run_elements(backend, &op, add_block);
}

static void cpu_softcap(lq_backend *backend, float *x, float cap, size_t n) {
    element_op op = {.dst = x, .n = n, .number = cap};
    run_elements(backend, &op, softcap_block);
}

/* Runs on one thread: few model files have factors. */
static void cpu_scale(lq_backend *backend, float *x, uint32_t n_rows, uint32_t n_cols, const float *factors,
                      const lq_expert_choice *choice) {
    const lq_kernels *kernels = &lq_cpu(backend)->kernels;
    if (choice == NULL) {
        kernels->mul_scalar(x, factors[0], (size_t)n_rows * n_cols);
        return;
    }
    for (uint32_t e = 0; e < choice->n_experts; e++) {
        size_t first = choice->first[e], n = choice->first[e + 1] - first;
        kernels->mul_scalar(x + first * n_cols, factors[e], n * n_cols);
    }
}

static const lq_backend_ops cpu_ops = {
    .name = "cpu",
    .most_alike = UINT32_MAX,
    .free = cpu_free,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .hint_full = cpu_hint_full,
    .map = cpu_map,
    .adopt = cpu_adopt,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .available = cpu_available,
    .scratch_bytes = cpu_scratch_bytes,
    .begin = cpu_begin,
    .sync = cpu_sync,
    .end = cpu_end,
    .watch = cpu_watch,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .matmul = lq_cpu_matmul,
    .rope = cpu_rope,
    .glu = cpu_glu,
    .add = cpu_add,
    .softcap = cpu_softcap,
    .route = lq_cpu_route,
    .expert_gather = lq_cpu_expert_gather,
    .expert_matmul = lq_cpu_expert_matmul,
    .scale = cpu_scale,
    .expert_sum = lq_cpu_expert_sum,
    .hadamard = lq_cpu_hadamard,
    .kv_store = lq_cpu_kv_store,
    .kv_pack = lq_cpu_kv_pack,
    .kv_gather = lq_cpu_kv_gather,
    .kv_select = lq_cpu_kv_select,
    .kv_masks = lq_cpu_kv_masks,
    .kv_accumulated = lq_cpu_kv_accumulated,
    .attention = lq_cpu_attention,
    .short_conv = lq_cpu_short_conv,
};

lq_status lq_backend_cpu_create(uint32_t n_threads, lq_backend **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_backend_cpu), "CPU backend", &memory));
    lq_backend_cpu *cpu = memory;
    cpu->base.ops = &cpu_ops;
    lq_status status = lq_kernels_select(&cpu->kernels, NULL);
    if (status == LQ_OK) status = lq_pool_create(n_threads ? n_threads : lq_cpu_cores(), &cpu->pool);
    if (status != LQ_OK) {
        lq_free(cpu);
        return status;
    }
    cpu->n_threads = lq_pool_n_threads(cpu->pool);
    *out = &cpu->base;
    return LQ_OK;
}

uint32_t lq_backend_cpu_n_threads(const lq_backend *backend) {
    return ((const lq_backend_cpu *)(const void *)backend)->n_threads;
}
