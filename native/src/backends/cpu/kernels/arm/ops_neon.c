/* ops_neon.c - elementwise operations with NEON. */
#include "backends/cpu/kernels/arm/vec_128.h"

#include "backends/cpu/kernels/ops.h"

static double sum_of_squares(const float *x, size_t n) {
    float64x2_t sum0 = vdupq_n_f64(0.0), sum1 = sum0;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        float64x2_t a = vcvt_f64_f32(vget_low_f32(v)), b = vcvt_high_f64_f32(v);
        sum0 = vfmaq_f64(sum0, a, a);
        sum1 = vfmaq_f64(sum1, b, b);
    }
    double sum = vaddvq_f64(vaddq_f64(sum0, sum1));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

void lq_kernels_init_neon_ops(lq_kernels *kernels) { init_ops(kernels); }
