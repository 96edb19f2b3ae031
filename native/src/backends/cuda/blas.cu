/* blas.cu - loads cuBLAS and calls the four functions that are needed. Their C interface has been the same since CUDA
 * 11 (cuBLAS documentation, "cublasGemmEx()"), so this does without its headers, which many toolkits lack. */
#include "backends/cuda/blas.cuh"

#include <stdio.h>
#include <stdlib.h>

#include <new>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#define BLAS_OK 0          /* CUBLAS_STATUS_SUCCESS */
#define OP_AS_IS 0         /* CUBLAS_OP_N */
#define OP_TRANSPOSED 1    /* CUBLAS_OP_T */
#define TYPE_FLOAT 0       /* CUDA_R_32F */
#define TYPE_HALF 2        /* CUDA_R_16F */
#define COMPUTE_FLOAT 68   /* CUBLAS_COMPUTE_32F */
#define ANY_ALGORITHM (-1) /* CUBLAS_GEMM_DEFAULT */

typedef void *blas_handle;

struct lq_blas {
    blas_handle handle;
};

typedef struct blas_library {
    char name[64];
    bool loaded;
    int (*create)(blas_handle *);
    int (*destroy)(blas_handle);
    int (*set_stream)(blas_handle, cudaStream_t);
    int (*multiply)(blas_handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                    int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc,
                    int compute, int algorithm);
} blas_library;

static void *find(void *library, const char *name) {
#ifdef _WIN32
    return (void *)GetProcAddress((HMODULE)library, name);
#else
    return dlsym(library, name);
#endif
}

/* Loads the cuBLAS of the toolkit's major version and never unloads it. */
static blas_library load(void) {
    blas_library blas = {};
    int major = CUDART_VERSION / 1000;
#ifdef _WIN32
    snprintf(blas.name, sizeof blas.name, "cublas64_%d.dll", major);
    void *library = (void *)LoadLibraryA(blas.name);
#else
    snprintf(blas.name, sizeof blas.name, "libcublas.so.%d", major);
    void *library = dlopen(blas.name, RTLD_NOW | RTLD_LOCAL);
#endif
    if (library == NULL) return blas;
    *(void **)(void *)&blas.create = find(library, "cublasCreate_v2");
    *(void **)(void *)&blas.destroy = find(library, "cublasDestroy_v2");
    *(void **)(void *)&blas.set_stream = find(library, "cublasSetStream_v2");
    *(void **)(void *)&blas.multiply = find(library, "cublasGemmEx");
    blas.loaded = blas.create != NULL && blas.destroy != NULL && blas.set_stream != NULL && blas.multiply != NULL;
    return blas;
}

static const blas_library *library(void) {
    static const blas_library blas = load();
    return blas.loaded ? &blas : NULL;
}

const char *lq_blas_name(void) {
    const char *asked = getenv("LQ_CUDA_BLAS");
    if (asked != NULL && strcmp(asked, "off") == 0) return NULL;
    return library() != NULL ? library()->name : NULL;
}

lq_blas *lq_blas_open(cudaStream_t stream) {
    const blas_library *functions = library();
    lq_blas *blas = lq_blas_name() != NULL ? new (std::nothrow) lq_blas() : NULL;
    if (blas == NULL) return NULL;
    if (functions->create(&blas->handle) != BLAS_OK) {
        delete blas;
        return NULL;
    }
    if (functions->set_stream(blas->handle, stream) == BLAS_OK) return blas;
    lq_blas_close(blas);
    return NULL;
}

void lq_blas_close(lq_blas *blas) {
    if (blas == NULL) return;
    library()->destroy(blas->handle);
    delete blas;
}

/* cuBLAS is column-major: the row-major y [n_x][n_rows] is its matrix of n_rows x n_x. */
bool lq_blas_multiply(lq_blas *blas, float *y, uint32_t y_stride, const uint16_t *w, uint32_t n_rows, const uint16_t *x,
                      uint32_t n_x, uint32_t n_cols) {
    const float one = 1.0f, zero = 0.0f;
    return library()->multiply(blas->handle, OP_TRANSPOSED, OP_AS_IS, (int)n_rows, (int)n_x, (int)n_cols, &one, w,
                               TYPE_HALF, (int)n_cols, x, TYPE_HALF, (int)n_cols, &zero, y, TYPE_FLOAT, (int)y_stride,
                               COMPUTE_FLOAT, ANY_ALGORITHM) == BLAS_OK;
}
