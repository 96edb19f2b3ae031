/* ops_avx512.c - elementwise operations with AVX-512. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/ops.h"

static double sum_of_squares(const float *x, size_t n) {
    __m512d sum0 = _mm512_setzero_pd(), sum1 = _mm512_setzero_pd();
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = n - i < 16 ? vf_load_n(x + i, n - i) : vf_load(x + i);
        __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        sum0 = _mm512_fmadd_pd(a, a, sum0);
        sum1 = _mm512_fmadd_pd(b, b, sum1);
    }
    return _mm512_reduce_add_pd(_mm512_add_pd(sum0, sum1));
}

void lq_kernels_init_avx512_ops(lq_kernels *kernels) { init_ops(kernels); }
