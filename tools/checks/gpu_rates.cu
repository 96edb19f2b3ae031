/* gpu_rates.cu - what a GPU can do at most, for tools/checks/gpu_suite.py: bytes that a kernel reads from memory in a
 * second, the bound of decoding, and products of F16 that cuBLAS makes in a second for a feed-forward block's size, the
 * yardstick of prompts. Prints both; 0 = not to be had. With cuBLAS: nvcc -DWITH_CUBLAS ... -lcublas. */
#include <stdio.h>
#ifdef WITH_CUBLAS
#include <cublas_v2.h>
#endif

#define ROUNDS 20

/* The shortest of some runs, in seconds; a negative number if they fail. */
template <class F> static double shortest(const F &work) {
    cudaEvent_t begin, end;
    float best = 1e30f, ms;
    if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess) return -1.0;
    for (int i = 0; i < ROUNDS; i++) {
        cudaEventRecord(begin);
        if (!work()) return -1.0;
        cudaEventRecord(end);
        if (cudaEventSynchronize(end) != cudaSuccess) return -1.0;
        cudaEventElapsedTime(&ms, begin, end);
        best = ms < best ? ms : best;
    }
    return best * 1e-3;
}

static __global__ void read_all(const uint4 *x, size_t n, unsigned *out) {
    unsigned sum = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint4 v = x[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345) *out = sum;
}

static double read_rate(void) {
    size_t n_bytes = (size_t)1 << 30;
    uint4 *x;
    unsigned *out;
    if (cudaMalloc(&x, n_bytes) != cudaSuccess || cudaMalloc(&out, 4) != cudaSuccess) return 0.0;
    cudaMemset(x, 0, n_bytes);
    double seconds = shortest([&] {
        read_all<<<4096, 256>>>(x, n_bytes / sizeof *x, out);
        return cudaGetLastError() == cudaSuccess;
    });
    cudaFree(x);
    return seconds > 0.0 ? (double)n_bytes / seconds : 0.0;
}

static double dense_rate(void) {
#ifdef WITH_CUBLAS
    const int rows = 14336, columns = 4096, tokens = 4096;
    const float one = 1.0f, zero = 0.0f;
    size_t w_bytes = 2ull * rows * columns, x_bytes = 2ull * tokens * columns;
    void *w, *x, *y;
    cublasHandle_t blas;
    if (cudaMalloc(&w, w_bytes) != cudaSuccess || cudaMalloc(&x, x_bytes) != cudaSuccess) return 0.0;
    if (cudaMalloc(&y, 4ull * rows * tokens) != cudaSuccess || cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) return 0.0;
    cudaMemset(w, 0x2c, w_bytes), cudaMemset(x, 0x2c, x_bytes); /* halves of 0.07 */
    double seconds = shortest([&] {
        return cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, rows, tokens, columns, &one, w, CUDA_R_16F, columns, x,
                            CUDA_R_16F, columns, &zero, y, CUDA_R_32F, rows, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
    });
    return seconds > 0.0 ? (double)rows * columns * tokens / seconds : 0.0;
#else
    return 0.0;
#endif
}

int main(void) {
    printf("%.6g %.6g\n", read_rate(), dense_rate());
    return 0;
}
