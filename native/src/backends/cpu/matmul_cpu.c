/* matmul_cpu.c - products of packed weights and activations, split over threads by rows of the weights.
 *
 * For an integer kernel the activations are quantized once per group (lq_q8_row). Without one, weight rows are decoded
 * to float one by one, which serves every format and is the specification. From LQ_MANY_X activation rows on other
 * kernels take over (strip_tile.h), which add up columns in another order. So a token's results do not depend on the
 * number of tokens in its pass as long as there are at least LQ_MANY_X; with fewer they differ in their last bits. */
#include <string.h>

#include "backends/cpu/backend_cpu.h"

/* The rows of a task are a multiple of this: kernels work on blocks of rows, and handing out tasks stays cheap. */
#define ROW_STEP 16
#define MANY_ROW_STEP 32
#define PROMPT_X 64 /* activation rows of a prompt's chunk, rather than of sessions decoding together */

typedef struct product {
    lq_backend_cpu *cpu;
    const lq_matmul *group;
    uint32_t n_group;
    const float *x; /* [n_x][n_cols] */
    uint32_t n_x;
    uint32_t n_cols;
    uint32_t rows_per_task;
    bool in_strips; /* n_x is at least LQ_MANY_X, and some weight of the group has a kernel for that */
    void *x_q8;     /* n_x quantized rows, if some weight of the group has an integer kernel */
    float *decoded; /* [n_threads][n_cols rounded up to 16] */
    size_t decoded_stride;
} product;

static uint64_t q8_area(uint64_t n_cols, uint64_t n_x) {
    return n_x * lq_q8_row_bytes((size_t)((n_cols + 31) & ~31ull));
}

static uint64_t decoded_stride(uint64_t n_cols) { return (n_cols + 15) & ~15ull; }

uint64_t lq_cpu_matmul_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec) {
    return q8_area(spec->n_cols, spec->n_tokens) + cpu->n_threads * decoded_stride(spec->n_cols) * sizeof(float);
}

static void quantize_rows(void *context, uint32_t task, uint32_t thread) {
    const product *p = context;
    lq_q8_row row = lq_q8_row_at(p->x_q8, p->n_cols, task);
    (void)thread;
    p->cpu->kernels.quantize_q8(row, p->x + (size_t)task * p->n_cols, p->n_cols);
    if (p->in_strips) p->cpu->kernels.sum_up_q8(row, p->n_cols);
}

static lq_dequantize_fn decoder(const lq_kernels *k, const lq_format *format) {
    return k->dequantize[format->type] != NULL ? k->dequantize[format->type] : format->dequantize;
}

/* Multiplies one weight row with all activation rows, in float. */
static void multiply_decoded(const product *p, const lq_weight *w, const uint8_t *row, float *y, uint32_t r,
                             uint32_t thread) {
    const lq_kernels *k = &p->cpu->kernels;
    int32_t type = w->format->type;
    const float *weights;
    if ((type == LQ_TYPE_F16 || type == LQ_TYPE_BF16) && (uintptr_t)row % 2 == 0) {
        float (*dot)(const uint16_t *, const float *, size_t) = type == LQ_TYPE_F16 ? k->dot_f16_f32 : k->dot_bf16_f32;
        for (uint32_t t = 0; t < p->n_x; t++)
            y[(size_t)t * w->n_rows + r] =
                dot((const uint16_t *)(const void *)row, p->x + (size_t)t * p->n_cols, p->n_cols);
        return;
    }
    if (type == LQ_TYPE_F32 && (uintptr_t)row % 4 == 0) {
        weights = (const float *)(const void *)row;
    } else {
        float *decoded = p->decoded + thread * p->decoded_stride;
        decoder(k, w->format)(decoded, row, p->n_cols);
        weights = decoded;
    }
    for (uint32_t t = 0; t < p->n_x; t++)
        y[(size_t)t * w->n_rows + r] = k->dot_f32(weights, p->x + (size_t)t * p->n_cols, p->n_cols);
}

static void multiply_rows(const product *p, const lq_matmul *job, uint32_t first, uint32_t end, uint32_t thread) {
    const lq_weight *w = job->weight;
    const uint8_t *rows = (const uint8_t *)w->data + (size_t)first * w->row_bytes;
    const lq_kernels *k = &p->cpu->kernels;
    int32_t type = w->format->type;
    bool many = p->n_x >= LQ_MANY_X;
    lq_matmul_q8_fn integer = many && k->matmul_many[type] != NULL ? k->matmul_many[type] : k->matmul_q8[type];
    if (integer == NULL && many && k->matmul_many_f32 != NULL) {
        k->matmul_many_f32(job->y + first, w->n_rows, w->format, decoder(k, w->format), rows, w->row_bytes, end - first,
                           p->n_cols, p->x, p->n_x);
    } else if (integer != NULL) {
        integer(job->y + first, w->n_rows, rows, w->row_bytes, end - first, p->n_cols, p->x_q8, p->n_x);
    } else {
        for (uint32_t r = first; r < end; r++, rows += w->row_bytes) multiply_decoded(p, w, rows, job->y, r, thread);
    }
    if (job->bias != NULL) {
        for (uint32_t t = 0; t < p->n_x; t++)
            for (uint32_t r = first; r < end; r++) job->y[(size_t)t * w->n_rows + r] += job->bias[r];
    }
}

static uint32_t n_row_tasks(const product *p, const lq_weight *w) {
    return (w->n_rows + p->rows_per_task - 1) / p->rows_per_task;
}

static void multiply_task(void *context, uint32_t task, uint32_t thread) {
    const product *p = context;
    for (uint32_t i = 0; i < p->n_group; i++) {
        const lq_weight *w = p->group[i].weight;
        uint32_t n_tasks = n_row_tasks(p, w);
        if (task < n_tasks) {
            uint32_t first = task * p->rows_per_task;
            uint32_t end = first + p->rows_per_task < w->n_rows ? first + p->rows_per_task : w->n_rows;
            multiply_rows(p, &p->group[i], first, end, thread);
            return;
        }
        task -= n_tasks;
    }
}

void lq_cpu_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x) {
    lq_backend_cpu *cpu = lq_cpu(backend);
    uint32_t n_cols = group[0].weight->n_cols, n_rows = 0, n_tasks = 0;
    bool quantize = false, in_strips = false;
    for (uint32_t i = 0; i < n_group; i++) {
        n_rows += group[i].weight->n_rows;
        int32_t type = group[i].weight->format->type;
        quantize = quantize || cpu->kernels.matmul_q8[type] != NULL;
        in_strips = in_strips || (n_x >= LQ_MANY_X && cpu->kernels.matmul_many[type] != NULL);
    }
    product p = {.cpu = cpu, .group = group, .n_group = n_group, .x = x, .n_x = n_x, .n_cols = n_cols};
    p.in_strips = in_strips;
    p.x_q8 = cpu->scratch;
    p.decoded = (float *)(void *)((uint8_t *)cpu->scratch + q8_area(n_cols, n_x));
    p.decoded_stride = (size_t)decoded_stride(n_cols);
    /* About eight tasks for each thread even out cores of unequal speed. With a prompt's tokens tasks are longer, and
     * more of them let threads end together. */
    uint32_t step = n_x >= LQ_MANY_X ? MANY_ROW_STEP : ROW_STEP, wanted = n_x >= PROMPT_X ? 32 : 8;
    p.rows_per_task = (n_rows / (wanted * cpu->n_threads) + step - 1) / step * step;
    if (p.rows_per_task == 0) p.rows_per_task = step;
    if (quantize) {
        if (n_x < 4) {
            for (uint32_t t = 0; t < n_x; t++) quantize_rows(&p, t, 0);
        } else {
            lq_pool_run(cpu->pool, quantize_rows, &p, n_x);
        }
    }
    for (uint32_t i = 0; i < n_group; i++) n_tasks += n_row_tasks(&p, group[i].weight);
    lq_pool_run(cpu->pool, multiply_task, &p, n_tasks);
}
