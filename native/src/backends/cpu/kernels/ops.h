/* ops.h - the elementwise operations, written once in the vector vocabulary: the including file has chosen a width
 * (vec_128.h, vec_256.h or vec_512.h) and defines sum_of_squares(), whose order of additions is its own. */
#ifndef LQ_CPU_OPS_H
#define LQ_CPU_OPS_H

#include <math.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

/* In double: squares of any float fit, and none is lost. */
static double sum_of_squares(const float *x, size_t n);

/* e^x: x = k ln 2 + r with |r| <= ln 2 / 2, so it is 2^k times the series of e^r to r^7 (the next term is below 2^-27).
 * Outside of [-87, 88] the value at the edge; a NaN stays a NaN. */
LQ_INLINE vfloat vf_exp(vfloat x) {
    x = vf_min(vf_set1(88.0f), vf_max(vf_set1(-87.0f), x)); /* the second operand survives a NaN */
    vfloat k = vf_round(vf_mul(x, vf_set1(0x1.715476p+0f)));
    vfloat r = vf_fnma(k, vf_set1(0x1.62e4p-1f), x);
    r = vf_fnma(k, vf_set1(0x1.7f7d1cp-20f), r); /* the rest of ln 2 */
    vfloat p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_scale_2(p, k);
}

/* x / (1 + e^-z) */
LQ_INLINE vfloat times_sigmoid(vfloat x, vfloat z) {
    vfloat minus_z = vf_neg(z);
    vfloat e = vf_if_greater(minus_z, vf_set1(88.0f), vf_set1(INFINITY), vf_exp(minus_z));
    return vf_div(x, vf_add(vf_set1(1.0f), e));
}

LQ_INLINE vfloat silu(vfloat x) { return times_sigmoid(x, x); }

/* x (1 + tanh u) / 2 = x / (1 + e^-2u), which does not cancel for u far below 0. */
LQ_INLINE vfloat gelu_tanh(vfloat x) {
    vfloat cube = vf_mul(vf_mul(x, x), x);
    vfloat u = vf_fma(cube, vf_set1(0.044715f), x);
    return times_sigmoid(x, vf_mul(u, vf_set1(2.0f * 0.797884560802865f)));
}

static void silu_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(gate + i, vf_mul(silu(vf_load(gate + i)), vf_load(up + i)));
    if (i == n) return;
    vf_store_n(gate + i, vf_mul(silu(vf_load_n(gate + i, n - i)), vf_load_n(up + i, n - i)), n - i);
}

static void gelu_tanh_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(gate + i, vf_mul(gelu_tanh(vf_load(gate + i)), vf_load(up + i)));
    if (i == n) return;
    vf_store_n(gate + i, vf_mul(gelu_tanh(vf_load_n(gate + i, n - i)), vf_load_n(up + i, n - i)), n - i);
}

/* cap tanh u = 2 cap / (1 + e^-2u) - cap */
LQ_INLINE vfloat capped(vfloat x, float cap) {
    vfloat z = vf_mul(x, vf_set1(2.0f / cap));
    return vf_add(times_sigmoid(vf_set1(2.0f * cap), z), vf_set1(-cap));
}

static void softcap(float *x, float cap, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(x + i, capped(vf_load(x + i), cap));
    if (i < n) vf_store_n(x + i, capped(vf_load_n(x + i, n - i), cap), n - i);
}

static void rms_norm(float *dst, const float *x, const float *weight, size_t n, float eps) {
    float scale = (float)(1.0 / sqrt(sum_of_squares(x, n) / (double)n + (double)eps));
    vfloat s = vf_set1(scale);
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + i, vf_mul(vf_mul(vf_load(x + i), s), vf_load(weight + i)));
    for (; i < n; i++) dst[i] = x[i] * scale * weight[i];
}

static void add(float *dst, const float *x, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + i, vf_add(vf_load(dst + i), vf_load(x + i)));
    for (; i < n; i++) dst[i] += x[i];
}

static void mul_scalar(float *dst, float a, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + i, vf_mul(vf_load(dst + i), vf_set1(a)));
    for (; i < n; i++) dst[i] *= a;
}

/* Fused in whole vectors only. */
static void axpy(float *dst, const float *x, float a, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + i, vf_fma(vf_load(x + i), vf_set1(a), vf_load(dst + i)));
    for (; i < n; i++) dst[i] += a * x[i];
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store_half(dst + i, vf_load(src + i));
    if (i < n) vf_store_half_n(dst + i, vf_load_n(src + i, n - i), n - i);
}

static void dequantize_f16(float *dst, const void *src, size_t n) {
    const uint8_t *from = src; /* of any alignment */
    size_t i = 0;
    for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + i, vf_load_half(from + 2 * i));
    if (i < n) vf_store_n(dst + i, vf_load_half_n(from + 2 * i, n - i), n - i);
}

static void f16_to_f32(float *dst, const uint16_t *src, size_t n) { dequantize_f16(dst, src, n); }

/* ---- the Walsh-Hadamard transform */

/* Stages inside a vector, then between vectors; n is a power of two, at least V_LANES. */
static void hadamard_block(float *x, size_t n) {
    vfloat norm = vf_set1(1.0f / sqrtf((float)n));
    for (size_t i = 0; i < n; i += V_LANES) vf_store(x + i, vf_hadamard(vf_load(x + i)));
    for (size_t half = V_LANES; half < n; half *= 2) {
        for (size_t i = 0; i < n; i += 2 * half) {
            for (size_t j = i; j < i + half; j += V_LANES) {
                vfloat a = vf_load(x + j), b = vf_load(x + j + half);
                vf_store(x + j, vf_add(a, b));
                vf_store(x + j + half, vf_sub(a, b));
            }
        }
    }
    for (size_t i = 0; i < n; i += V_LANES) vf_store(x + i, vf_mul(vf_load(x + i), norm));
}

static void hadamard(float *x, size_t head_dim) {
    bool whole = (head_dim & (head_dim - 1)) == 0 && head_dim >= V_LANES;
    if (whole) {
        hadamard_block(x, head_dim);
        return;
    }
    if (head_dim < LQ_PAGE_GROUP) {
        lq_hadamard(x, head_dim);
        return;
    }
    for (; head_dim >= LQ_PAGE_GROUP; head_dim -= LQ_PAGE_GROUP, x += LQ_PAGE_GROUP) hadamard_block(x, LQ_PAGE_GROUP);
    if (head_dim > 0) lq_hadamard(x, head_dim); /* less than 64: the same blocks as at the end of a longer head */
}

static void init_ops(lq_kernels *kernels) {
    kernels->dequantize[LQ_TYPE_F16] = dequantize_f16;
    kernels->f32_to_f16 = f32_to_f16;
    kernels->f16_to_f32 = f16_to_f32;
    kernels->rms_norm = rms_norm;
    kernels->add = add;
    kernels->mul_scalar = mul_scalar;
    kernels->silu_mul = silu_mul;
    kernels->gelu_tanh_mul = gelu_tanh_mul;
    kernels->softcap = softcap;
    kernels->hadamard = hadamard;
    kernels->axpy = axpy;
}

#endif
