/* measure_cpu.c - measures the bounds that a model's speed is compared with: how fast all threads together read memory,
 * and how many 8-bit products they compute at the SIMD level in use. */
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "core/pool.h"
#include "core/system.h"

#define MEASURE_SECONDS 0.5
#define MIN_PASSES 3
#define TASKS_PER_THREAD 8 /* small tasks, so that nobody waits long for a thread that started late */

/* Runs passes until the time is over. Returns units per second of the fastest pass. */
static double fastest(lq_pool *pool, lq_task_fn function, void *context, uint32_t n_tasks, double units) {
    double best = 0.0, begin = lq_seconds();
    for (int pass = 0; pass < MIN_PASSES || lq_seconds() - begin < MEASURE_SECONDS; pass++) {
        double start = lq_seconds();
        lq_pool_run(pool, function, context, n_tasks);
        double per_s = units / (lq_seconds() - start);
        best = per_s > best ? per_s : best;
    }
    return best;
}

static lq_status make_pool(uint32_t n_threads, lq_pool **pool, uint32_t *n_tasks) {
    LQ_TRY(lq_pool_create(n_threads != 0 ? n_threads : lq_cpu_cores(), pool));
    *n_tasks = TASKS_PER_THREAD * lq_pool_n_threads(*pool);
    return LQ_OK;
}

/* ---- reading */

/* A task reads its part of the buffer as four streams, a cache line of each in turn, and prefetches: a core that walks
 * one stream alone requests only a few lines at a time, and reaches two thirds of what memory gives. */
#define STREAMS 4
#define LINE_NUMBERS 8
#define NUMBERS_AT_ONCE (STREAMS * LINE_NUMBERS)
#define AHEAD_BYTES 2048

typedef struct read_job {
    uint64_t *data;
    size_t n_numbers; /* that one task reads */
    uint64_t *sums;   /* [n_tasks], a cache line each: results, so that no compiler leaves the reading out */
} read_job;

#define SUM_STRIDE 8

static void write_task(void *context, uint32_t task, uint32_t thread) {
    const read_job *job = context;
    (void)thread;
    memset(job->data + task * job->n_numbers, 1, job->n_numbers * sizeof *job->data);
}

static void read_task(void *context, uint32_t task, uint32_t thread) {
    const read_job *job = context;
    const uint64_t *data = job->data + task * job->n_numbers;
    size_t n_stream = job->n_numbers / STREAMS;
    uint64_t lanes[LINE_NUMBERS] = {0}, sum = 0;
    (void)thread;
    for (size_t i = 0; i < n_stream; i += LINE_NUMBERS)
        for (size_t stream = 0; stream < STREAMS; stream++) {
            const uint64_t *line = data + stream * n_stream + i;
            __builtin_prefetch((const void *)((uintptr_t)line + AHEAD_BYTES)); /* harmless behind the end */
            for (int j = 0; j < LINE_NUMBERS; j++) lanes[j] += line[j];
        }
    for (int j = 0; j < LINE_NUMBERS; j++) sum += lanes[j];
    job->sums[(size_t)task * SUM_STRIDE] = sum;
}

/* Allocates n_bytes and measures how fast they are read. */
static lq_status measure_read(lq_pool *pool, uint32_t n_tasks, uint64_t n_bytes, double *bytes_per_s) {
    void *data, *sums;
    uint64_t available = lq_memory_available();
    if (available != 0 && n_bytes > available)
        return lq_fail(LQ_E_MEMORY, "measuring how fast memory is read needs %llu bytes, %llu are free",
                       (unsigned long long)n_bytes, (unsigned long long)available);
    LQ_TRY(lq_alloc((uint64_t)n_tasks * SUM_STRIDE * sizeof(uint64_t), "sums", &sums));
    lq_status status = lq_reserve(n_bytes, "the buffer to read", &data);
    if (status == LQ_OK) {
        read_job job = {data, (size_t)(n_bytes / sizeof(uint64_t) / n_tasks), sums};
        lq_pool_run(pool, write_task, &job, n_tasks); /* backs every page with memory of its own */
        *bytes_per_s = fastest(pool, read_task, &job, n_tasks, (double)n_bytes);
        lq_release(data, n_bytes);
    }
    lq_free(sums);
    return status;
}

lq_status lq_measure_read(uint32_t n_threads, uint64_t n_bytes, double *bytes_per_s) {
    lq_pool *pool;
    uint32_t n_tasks;
    if (bytes_per_s == NULL) return lq_fail(LQ_E_ARG, "bytes_per_s must be given");
    LQ_TRY(make_pool(n_threads, &pool, &n_tasks));
    uint64_t step = (uint64_t)n_tasks * NUMBERS_AT_ONCE * sizeof(uint64_t);
    lq_status status = n_bytes < step ? lq_fail(LQ_E_ARG, "%llu bytes are too few to measure reading: at least %llu",
                                                (unsigned long long)n_bytes, (unsigned long long)step)
                                      : measure_read(pool, n_tasks, n_bytes / step * step, bytes_per_s);
    lq_pool_free(pool);
    return status;
}

/* ---- products */

#define ROUNDS_PER_TASK 20000

typedef struct int8_job {
    const lq_kernels *kernels;
    uint8_t u[64];
    int8_t s[64];
    uint32_t *sums; /* [n_tasks] */
} int8_job;

static void int8_task(void *context, uint32_t task, uint32_t thread) {
    const int8_job *job = context;
    (void)thread;
    job->sums[(size_t)task * 2 * SUM_STRIDE] = job->kernels->int8_peak(job->u, job->s, ROUNDS_PER_TASK);
}

lq_status lq_measure_int8(uint32_t n_threads, double *products_per_s) {
    lq_kernels kernels;
    lq_pool *pool;
    uint32_t n_tasks;
    void *sums;
    if (products_per_s == NULL) return lq_fail(LQ_E_ARG, "products_per_s must be given");
    LQ_TRY(lq_kernels_select(&kernels, NULL));
    LQ_TRY(make_pool(n_threads, &pool, &n_tasks));
    lq_status status = lq_alloc((uint64_t)n_tasks * SUM_STRIDE * sizeof(uint64_t), "sums", &sums);
    if (status == LQ_OK) {
        int8_job job = {.kernels = &kernels, .sums = sums};
        memset(job.u, 3, sizeof job.u);
        memset(job.s, 5, sizeof job.s);
        *products_per_s = fastest(pool, int8_task, &job, n_tasks, 64.0 * LQ_PEAK_DOTS * ROUNDS_PER_TASK * n_tasks);
        lq_free(sums);
    }
    lq_pool_free(pool);
    return status;
}
