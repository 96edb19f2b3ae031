/* device_check.c - whether a CUDA device computes at all: a known product, through the operations that a model uses. */
#include <math.h>
#include <string.h>

#include "backends/devices.h"
#include "core/half.h"
#include "logquant_device.h"

#define N_ROWS 96
#define N_COLS 256
#define N_BLOCKS (N_COLS / 32)
#define BLOCK_BYTES 34 /* of Q8_0 */

/* Row r has scale 2^-4 and weights (r + 3 c) mod 15 - 7; x is 1 where c is even, -0.5 elsewhere: codes of 8 bits hold
 * both, so that the product is exact but for the last bits. */
static int weight_of(uint32_t r, uint32_t c) { return (int)((r + 3 * c) % 15) - 7; }

static float x_of(uint32_t c) { return c % 2 == 0 ? 127.0f / 128.0f : -63.0f / 128.0f; }

static void fill(uint8_t *rows, float *x) {
    uint16_t scale = lq_float_to_half(0.0625f);
    for (uint32_t r = 0; r < N_ROWS; r++) {
        for (uint32_t c = 0; c < N_COLS; c++) {
            uint8_t *block = rows + ((size_t)r * N_BLOCKS + c / 32) * BLOCK_BYTES;
            if (c % 32 == 0) memcpy(block, &scale, 2);
            block[2 + c % 32] = (uint8_t)(int8_t)weight_of(r, c);
        }
    }
    for (uint32_t c = 0; c < N_COLS; c++) x[c] = x_of(c);
}

static lq_status compare(const float *y) {
    for (uint32_t r = 0; r < N_ROWS; r++) {
        double wanted = 0.0;
        for (uint32_t c = 0; c < N_COLS; c++) wanted += 0.0625 * weight_of(r, c) * (double)x_of(c);
        if (!(fabs((double)y[r] - wanted) < 1e-4))
            return lq_fail(LQ_E_INTERNAL,
                           "the device computes wrongly: row %u is %.6g, not %.6g; build the library again, or report "
                           "a defect",
                           (unsigned)r, (double)y[r], wanted);
    }
    return LQ_OK;
}

static lq_status multiply(lq_backend *backend, float *y) {
    static const size_t row_bytes = (size_t)N_BLOCKS * BLOCK_BYTES;
    const lq_backend_ops *ops = backend->ops;
    lq_scratch_spec spec = {.n_tokens = 1, .n_cols = N_COLS, .n_heads = 1, .n_kv_heads = 1, .head_dim = 4};
    uint8_t rows[N_ROWS * N_BLOCKS * BLOCK_BYTES];
    float x[N_COLS];
    const void *weights = NULL;
    void *x_memory = NULL, *y_memory = NULL, *scratch = NULL;
    uint64_t scratch_bytes = ops->scratch_bytes(backend, &spec);
    fill(rows, x);
    lq_status status = ops->adopt(backend, rows, sizeof rows, &weights);
    if (status == LQ_OK) status = ops->alloc(backend, sizeof x, "self-test", &x_memory);
    if (status == LQ_OK) status = ops->alloc(backend, N_ROWS * sizeof(float), "self-test", &y_memory);
    if (status == LQ_OK) status = ops->alloc(backend, scratch_bytes, "self-test", &scratch);
    if (status == LQ_OK) {
        lq_weight weight = {weights, lq_format_find(LQ_TYPE_Q8_0), N_ROWS, N_COLS, row_bytes};
        lq_matmul job = {&weight, NULL, y_memory};
        ops->begin(backend, scratch);
        ops->upload(backend, x_memory, x, sizeof x);
        ops->matmul(backend, &job, 1, x_memory, 1);
        ops->download(backend, y, y_memory, N_ROWS * sizeof(float));
        status = ops->sync(backend);
        ops->end(backend);
    }
    ops->release(backend, x_memory, sizeof x);
    ops->release(backend, y_memory, N_ROWS * sizeof(float));
    ops->release(backend, scratch, scratch_bytes);
    return status;
}

lq_status lq_cuda_check(const char *library, uint32_t index) {
    lq_backend *backend;
    char name[128];
    float y[N_ROWS];
    LQ_TRY(lq_backend_cuda_create(library, index, name, &backend));
    lq_status status = multiply(backend, y);
    backend->ops->free(backend);
    return status == LQ_OK ? compare(y) : status;
}
