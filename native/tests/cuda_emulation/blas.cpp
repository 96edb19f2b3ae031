/* blas.cpp - replaces cuBLAS by a plain product. With LQ_CUDA_BLAS=off there is none. */
#include "backends/cuda/blas.cuh"

#include <stdlib.h>

#include <vector>

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

/* LQ_EMULATED_FAULT=blas: cuBLAS cannot be opened, as without memory; =products: it computes wrong results. */
static bool fault(const char *name) {
    const char *found = getenv("LQ_EMULATED_FAULT");
    return found != NULL && strcmp(found, name) == 0;
}

static std::vector<float> widened(const uint16_t *halves, size_t n) {
    std::vector<float> floats(n);
    for (size_t i = 0; i < n; i++) floats[i] = half_to_float(halves[i]);
    return floats;
}

static void multiply(const void *context) {
    const one_product &p = *(const one_product *)context;
    float factor = fault("products") ? 1.1f : 1.0f;
    std::vector<float> x = widened(p.x, (size_t)p.n_x * p.n_cols);
    for (uint32_t r = 0; r < p.n_rows; r++) {
        std::vector<float> w = widened(p.w + (size_t)r * p.n_cols, p.n_cols);
        for (uint32_t t = 0; t < p.n_x; t++) {
            const float *row = &x[(size_t)t * p.n_cols];
            float sum = 0.0f;
            for (uint32_t c = 0; c < p.n_cols; c++) sum += w[c] * row[c];
            p.y[(size_t)t * p.y_stride + r] = factor * sum;
        }
    }
}

const char *lq_blas_name(void) {
    const char *asked = getenv("LQ_CUDA_BLAS");
    return asked != NULL && strcmp(asked, "off") == 0 ? NULL : "emulated";
}

lq_blas *lq_blas_open(cudaStream_t stream) {
    if (lq_blas_name() == NULL || fault("blas")) return NULL;
    return new lq_blas{stream};
}

void lq_blas_close(lq_blas *blas) { delete blas; }

bool lq_blas_multiply(lq_blas *, float *y, uint32_t y_stride, const uint16_t *w, uint32_t n_rows, const uint16_t *x,
                      uint32_t n_x, uint32_t n_cols) {
    one_product product = {y, y_stride, w, n_rows, x, n_x, n_cols};
    lq_emulated_library_call(multiply, &product);
    return true;
}
