/* softmax.h - the online softmax step, written once for any vector width: scores of some more tokens join the running
 * maximum and sum of their row. The including file has chosen the width. */
#ifndef LQ_CPU_SOFTMAX_H
#define LQ_CPU_SOFTMAX_H

#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

/* e^x for x <= 0. With x log2(e) = k + r and |r| <= 0.5, a polynomial gives 2^r within 8e-8. Rounding the product adds
 * a relative error of |x| 6e-8. Below -69 the result is that of -69: almost nothing, but not 0 and no denormal, which
 * would make later products slow. A NaN stays a NaN. */
LQ_INLINE vfloat exp_below(vfloat x) {
    const vfloat round = vf_set1(12582912.0f); /* 1.5 * 2^23: a sum with it has k in its lowest bits */
    x = vf_max(vf_set1(-100.0f), vf_mul(x, vf_set1(0x1.715476p+0f))); /* the second survives a NaN */
    vfloat shifted = vf_add(x, round), r = vf_sub(x, vf_sub(shifted, round));
    vfloat p = vf_fma(r, vf_set1(0x1.5c08e4p-10f), vf_set1(0x1.3d0c54p-7f));
    p = vf_fma(p, r, vf_set1(0x1.c6b6e6p-5f));
    p = vf_fma(p, r, vf_set1(0x1.ebf918p-3f));
    p = vf_fma(p, r, vf_set1(0x1.62e428p-1f));
    p = vf_fma(p, r, vf_set1(0x1.000002p+0f));
    return vf_as_float(vi_add(vi_as_int(p), vi_sll(vi_as_int(shifted), 23)));
}

/* Returns the last n < V_LANES scores of a row; the other lanes are -infinity. */
LQ_INLINE vfloat rest_of(const float *scores, size_t n) {
    float lanes[V_LANES];
    for (size_t i = 0; i < V_LANES; i++) lanes[i] = i < n ? scores[i] : -INFINITY;
    return vf_load(lanes);
}

LQ_INLINE void softmax_rows(float *scores, size_t stride, size_t n_rows, size_t n, float *max, float *sum,
                            float *decay) {
    size_t whole = n / V_LANES * V_LANES;
    float tops[4], sums[4];
    vfloat v[4];
    LQ_UNROLL
    for (size_t r = 0; r < 4; r++) {
        v[r] = vf_set1(-INFINITY);
        if (r >= n_rows) continue;
        for (size_t i = 0; i < whole; i += V_LANES) v[r] = vf_max(v[r], vf_load(scores + r * stride + i));
        if (whole < n) v[r] = vf_max(v[r], rest_of(scores + r * stride + whole, n - whole));
    }
    vf_largest_of_4(tops, v[0], v[1], v[2], v[3]);
    LQ_UNROLL
    for (size_t r = 0; r < n_rows; r++) {
        decay[r] = 1.0f;
        if (tops[r] > max[r]) {
            decay[r] = max[r] > tops[r] - 104.0f ? expf(max[r] - tops[r]) : 0.0f; /* 0: this is the row's first step */
            max[r] = tops[r];
        }
        vfloat top = vf_set1(max[r]);
        v[r] = vf_set1(0.0f);
        for (size_t i = 0; i < whole; i += V_LANES) {
            vfloat e = exp_below(vf_sub(vf_load(scores + r * stride + i), top));
            vf_store(scores + r * stride + i, e);
            v[r] = vf_add(v[r], e);
        }
        if (whole < n) {
            float lanes[V_LANES];
            vfloat e = exp_below(vf_sub(rest_of(scores + r * stride + whole, n - whole), top));
            vf_store(lanes, e);
            memcpy(scores + r * stride + whole, lanes, (n - whole) * sizeof(float));
            v[r] = vf_add(v[r], e);
        }
    }
    vf_sums_of_4(sums, v[0], v[1], v[2], v[3]);
    LQ_UNROLL
    for (size_t r = 0; r < n_rows; r++) sum[r] = sum[r] * decay[r] + sums[r];
}

static void softmax_step(float *scores, size_t stride, size_t n_rows, size_t n, float *max, float *sum, float *decay) {
    size_t r = 0;
    for (; r + 4 <= n_rows; r += 4) softmax_rows(scores + r * stride, stride, 4, n, max + r, sum + r, decay + r);
    scores += r * stride, max += r, sum += r, decay += r;
    if (n_rows - r == 3) softmax_rows(scores, stride, 3, n, max, sum, decay);
    if (n_rows - r == 2) softmax_rows(scores, stride, 2, n, max, sum, decay);
    if (n_rows - r == 1) softmax_rows(scores, stride, 1, n, max, sum, decay);
}

#endif
