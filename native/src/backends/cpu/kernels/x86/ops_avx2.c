/* ops_avx2.c - elementwise operations with AVX2, FMA and F16C. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/ops.h"

static double sum_of_squares(const float *x, size_t n) {
    __m256d sum0 = _mm256_setzero_pd(), sum1 = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        sum0 = _mm256_fmadd_pd(a, a, sum0);
        sum1 = _mm256_fmadd_pd(b, b, sum1);
    }
    double lanes[4], sum = 0.0;
    _mm256_storeu_pd(lanes, _mm256_add_pd(sum0, sum1));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    return sum + ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
}

void lq_kernels_init_avx2_ops(lq_kernels *kernels) { init_ops(kernels); }
