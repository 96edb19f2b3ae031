/* blas.cuh - dense products by cuBLAS, a part of the toolkit. It is not linked but loaded when a prompt first needs it;
 * without it other kernels do the work. */
#ifndef LQ_CUDA_BLAS_CUH
#define LQ_CUDA_BLAS_CUH

#include "backends/cuda/compat.cuh"

typedef struct lq_blas lq_blas;

/* The library's file name; NULL: it cannot be loaded, or LQ_CUDA_BLAS=off. */
const char *lq_blas_name(void);
/* For work on a stream of the current device. NULL: cuBLAS is not available, or failed to start. */
lq_blas *lq_blas_open(cudaStream_t stream);
void lq_blas_close(lq_blas *blas);
/* y[t][r] = sum_c x[t][c] w[r][c], halves into floats; rows of y are y_stride apart. False: it failed. */
bool lq_blas_multiply(lq_blas *blas, float *y, uint32_t y_stride, const uint16_t *w, uint32_t n_rows, const uint16_t *x,
                      uint32_t n_x, uint32_t n_cols);

#endif
