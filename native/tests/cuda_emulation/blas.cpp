/* blas.cpp - in place of cuBLAS: the plain product. LQ_CUDA_BLAS=off: as if it were not there. */
#include "backends/cuda/blas.cuh"

#include <stdlib.h>

struct lq_blas {
    cudaStream_t stream;
};

struct one_product {
    float *y;
    uint32_t y_stride;
    const uint16_t *w;
    uint32_t n_rows;
    const uint16_t *x;
    uint32_t n_x, n_cols;
};

static void multiply(const void *context) {
    const one_product &p = *(const one_product *)context;
    for (uint32_t r = 0; r < p.n_rows; r++) {
        for (uint32_t t = 0; t < p.n_x; t++) {
            float sum = 0.0f;
            for (uint32_t c = 0; c < p.n_cols; c++)
                sum +=
                    lq_half_to_float(p.w[(size_t)r * p.n_cols + c]) * lq_half_to_float(p.x[(size_t)t * p.n_cols + c]);
            p.y[(size_t)t * p.y_stride + r] = sum;
        }
    }
}

const char *lq_blas_name(void) {
    const char *asked = getenv("LQ_CUDA_BLAS");
    return asked != NULL && strcmp(asked, "off") == 0 ? NULL : "emulated";
}

/* LQ_EMULATED_FAULT=blas: a device without memory for it. */
lq_blas *lq_blas_open(cudaStream_t stream) {
    const char *fault = getenv("LQ_EMULATED_FAULT");
    if (lq_blas_name() == NULL || (fault != NULL && strcmp(fault, "blas") == 0)) return NULL;
    return new lq_blas{stream};
}

void lq_blas_close(lq_blas *blas) { delete blas; }

bool lq_blas_multiply(lq_blas *, float *y, uint32_t y_stride, const uint16_t *w, uint32_t n_rows, const uint16_t *x,
                      uint32_t n_x, uint32_t n_cols) {
    one_product product = {y, y_stride, w, n_rows, x, n_x, n_cols};
    lq_emulated_library_call(multiply, &product);
    return true;
}
