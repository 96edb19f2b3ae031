/* ops_buffers.h - device buffers with sentinels behind them, for the programs that check a backend's operations. */
#ifndef LQ_TESTS_OPS_BUFFERS_H
#define LQ_TESTS_OPS_BUFFERS_H

#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "backends/devices.h"
#include "check.h"

#define SENTINEL 1234.5f
#define N_SENTINELS 16
#define MAX_USED 8       /* experts of a token */
#define MAX_COLUMNS 2048 /* cells whose accumulated attention is asked for */

static lq_backend *backend;
static const lq_backend_ops *ops;
static unsigned long long seed = 42;
static uint32_t n_together; /* attentions in one operation, if there are several */

/* Opens the next backend to check: the CPU's with 1, some and many threads or, if the program was started with "cuda",
 * that of the first CUDA device. False after the last. */
static bool next_backend(int argc, char **argv, uint32_t round) {
    static const uint32_t threads[] = {1, 2, 5};
    char name[128];
    bool cuda = argc > 1 && strcmp(argv[1], "cuda") == 0;
    if (round >= (cuda ? 1 : sizeof threads / sizeof threads[0])) return false;
    backend = NULL;
    CHECK_STATUS(cuda ? lq_backend_cuda_create(NULL, 0, name, &backend)
                      : lq_backend_cpu_create(threads[round], &backend),
                 LQ_OK);
    if (backend == NULL) return false;
    ops = backend->ops;
    return true;
}

static void close_backend(void) {
    CHECK_STATUS(ops->sync(backend), LQ_OK);
    ops->free(backend);
    backend = NULL;
}

typedef struct buffer {
    float *data;
    size_t n;
} buffer;

static float uniform(void) { return (float)((double)(check_random(&seed) >> 11) * 0x1p-53 * 2.0 - 1.0); }

static buffer make(size_t n, float scale) {
    buffer b = {NULL, n};
    void *memory;
    float *host = malloc((n + N_SENTINELS) * sizeof *host);
    for (size_t i = 0; i < n; i++) host[i] = scale != 0.0f ? scale * uniform() : 0.0f;
    for (size_t i = 0; i < N_SENTINELS; i++) host[n + i] = SENTINEL;
    CHECK_STATUS(ops->alloc(backend, (n + N_SENTINELS) * sizeof *host, "test", &memory), LQ_OK);
    b.data = memory;
    ops->upload(backend, b.data, host, (n + N_SENTINELS) * sizeof *host);
    free(host);
    return b;
}

/* Checks the sentinels and returns the buffer's values in host memory. */
static float *fetch(const buffer *b, const char *what) {
    float *host = malloc((b->n + N_SENTINELS) * sizeof *host);
    CHECK_STATUS(ops->sync(backend), LQ_OK);
    ops->download(backend, host, b->data, (b->n + N_SENTINELS) * sizeof *host);
    for (size_t i = 0; i < N_SENTINELS; i++)
        CHECK_MSG(host[b->n + i] == SENTINEL, "%s wrote %zu past its end", what, i);
    return host;
}

static void release(buffer *b) { ops->release(backend, b->data, (b->n + N_SENTINELS) * sizeof(float)); }

/* Checks the normalised squared error: sum (got - wanted)^2 / sum wanted^2. */
static inline void check_close(const char *what, const float *got, const double *wanted, size_t n, double bound) {
    double error = 0.0, norm = 1e-30;
    for (size_t i = 0; i < n; i++) {
        error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
        norm += wanted[i] * wanted[i];
    }
    CHECK_MSG(error / norm <= bound, "%s: normalised error %.3g above %.3g", what, error / norm, bound);
}

static void begin(uint32_t n_tokens, uint32_t n_cols, uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim,
                  buffer *scratch) {
    lq_scratch_spec spec = {n_tokens, n_cols, n_heads, n_kv_heads, head_dim, MAX_COLUMNS, MAX_USED, n_together};
    *scratch = make((size_t)(ops->scratch_bytes(backend, &spec) / sizeof(float)) + 1, 0.0f);
    ops->begin(backend, scratch->data);
}

static void end(buffer *scratch) {
    float *host = fetch(scratch, "scratch");
    ops->end(backend);
    free(host);
    release(scratch);
}

#endif
