/* ops_neon.c - elementwise operations, exponentials and attention over f16 keys and values, with NEON. */
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"
#include "core/half.h"

/* The first n of four floats and zeros, and back. */
LQ_INLINE float32x4_t load_n(const float *p, size_t n) {
    float values[4] = {0.0f};
    memcpy(values, p, n * sizeof *p);
    return vld1q_f32(values);
}

LQ_INLINE void store_n(float *p, float32x4_t v, size_t n) {
    float values[4];
    vst1q_f32(values, v);
    memcpy(p, values, n * sizeof *p);
}

LQ_INLINE float32x4_t half_to_float(uint16x4_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }

/* Eight halves. */
LQ_INLINE void load_halves(float32x4_t out[2], const uint16_t *p) {
    float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(p));
    out[0] = vcvt_f32_f16(vget_low_f16(v));
    out[1] = vcvt_high_f32_f16(v);
}

/* ---- exponential: x = k ln 2 + r, |r| <= ln 2 / 2; e^r by its series to r^7 (the next term is below 2^-27), times
 * 2^k. x in [-87, 88], outside of it the value at the edge; NaN stays NaN. */
LQ_INLINE float32x4_t exp_f32(float32x4_t x) {
    x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87.0f)), vdupq_n_f32(88.0f)); /* both keep a NaN */
    float32x4_t k = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    float32x4_t r = vfmsq_f32(x, k, vdupq_n_f32(0x1.62e4p-1f));
    r = vfmsq_f32(r, k, vdupq_n_f32(0x1.7f7d1cp-20f)); /* the rest of ln 2 */
    float32x4_t p = vdupq_n_f32(1.0f / 5040);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(k), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}

/* x / (1 + e^-z) */
LQ_INLINE float32x4_t times_sigmoid(float32x4_t x, float32x4_t z) {
    float32x4_t minus_z = vnegq_f32(z);
    uint32x4_t beyond = vcgtq_f32(minus_z, vdupq_n_f32(88.0f));
    float32x4_t e = vbslq_f32(beyond, vdupq_n_f32(INFINITY), exp_f32(minus_z));
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), e));
}

LQ_INLINE float32x4_t silu(float32x4_t x) { return times_sigmoid(x, x); }

/* (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel for u far below 0. */
LQ_INLINE float32x4_t gelu_tanh(float32x4_t x) {
    float32x4_t cube = vmulq_f32(vmulq_f32(x, x), x);
    float32x4_t u = vfmaq_f32(x, cube, vdupq_n_f32(0.044715f));
    return times_sigmoid(x, vmulq_n_f32(u, 2.0f * 0.797884560802865f));
}

/* ---- elementwise */

/* tanh u = 2 / (1 + e^-2u) - 1 */
LQ_INLINE float32x4_t capped(float32x4_t x, float cap) {
    float32x4_t z = vmulq_n_f32(x, 2.0f / cap);
    return vaddq_f32(times_sigmoid(vdupq_n_f32(2.0f * cap), z), vdupq_n_f32(-cap));
}

static void softcap(float *x, float cap, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(x + i, capped(vld1q_f32(x + i), cap));
    if (i < n) store_n(x + i, capped(load_n(x + i, n - i), cap), n - i);
}

static void silu_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(gate + i, vmulq_f32(silu(vld1q_f32(gate + i)), vld1q_f32(up + i)));
    if (i < n) store_n(gate + i, vmulq_f32(silu(load_n(gate + i, n - i)), load_n(up + i, n - i)), n - i);
}

static void gelu_tanh_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(gate + i, vmulq_f32(gelu_tanh(vld1q_f32(gate + i)), vld1q_f32(up + i)));
    if (i < n) store_n(gate + i, vmulq_f32(gelu_tanh(load_n(gate + i, n - i)), load_n(up + i, n - i)), n - i);
}

static void add(float *dst, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vaddq_f32(vld1q_f32(dst + i), vld1q_f32(x + i)));
    for (; i < n; i++) dst[i] += x[i];
}

static void mul_scalar(float *dst, float a, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vmulq_n_f32(vld1q_f32(dst + i), a));
    for (; i < n; i++) dst[i] *= a;
}

static void rms_norm(float *dst, const float *x, const float *weight, size_t n, float eps) {
    float64x2_t sum0 = vdupq_n_f64(0.0), sum1 = sum0; /* double: squares of any float fit, none is lost */
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        float64x2_t a = vcvt_f64_f32(vget_low_f32(v)), b = vcvt_high_f64_f32(v);
        sum0 = vfmaq_f64(sum0, a, a);
        sum1 = vfmaq_f64(sum1, b, b);
    }
    double sum = vaddvq_f64(vaddq_f64(sum0, sum1));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(dst + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(weight + i)));
    for (; i < n; i++) dst[i] = x[i] * scale * weight[i];
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    for (; i < n; i++) dst[i] = lq_float_to_half(src[i]);
}

static void f16_to_f32(float *dst, const uint16_t *src, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, half_to_float(vld1_u16(src + i)));
    for (; i < n; i++) dst[i] = lq_half_to_float(src[i]);
}

static void dequantize_f16(float *dst, const void *src, size_t n) {
    const uint8_t *from = src;
    size_t i = 0;
    for (; i + 4 <= n; i += 4, from += 8) vst1q_f32(dst + i, half_to_float(vreinterpret_u16_u8(vld1_u8(from))));
    for (; i < n; i++, from += 2) dst[i] = lq_half_to_float((uint16_t)(from[0] | from[1] << 8));
}

/* ---- attention. Four keys at once for up to four queries: 16 sums, 2 vectors of a key and of a query. */

#define KEYS 4
#define QUERIES 4

LQ_INLINE void scores_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                           const uint16_t *const *k, size_t n_real_k, size_t head_dim, float scale) {
    float32x4_t acc[QUERIES][KEYS];
    size_t d = 0;
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) acc[i][j] = vdupq_n_f32(0.0f);
    }
    for (; d + 8 <= head_dim; d += 8) {
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) {
            float32x4_t key[2];
            load_halves(key, k[j] + d);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                acc[i][j] = vfmaq_f32(acc[i][j], vld1q_f32(q + i * q_stride + d), key[0]);
                acc[i][j] = vfmaq_f32(acc[i][j], vld1q_f32(q + i * q_stride + d + 4), key[1]);
            }
        }
    }
    for (; d < head_dim; d += 4) {
        size_t n = head_dim - d < 4 ? head_dim - d : 4;
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) {
            uint16_t halves[4] = {0};
            memcpy(halves, k[j] + d, n * sizeof *halves);
            float32x4_t key = half_to_float(vld1_u16(halves));
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) acc[i][j] = vfmaq_f32(acc[i][j], load_n(q + i * q_stride + d, n), key);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        float32x4_t s = vpaddq_f32(vpaddq_f32(acc[i][0], acc[i][1]), vpaddq_f32(acc[i][2], acc[i][3]));
        s = vmulq_n_f32(s, scale);
        if (n_real_k == KEYS)
            vst1q_f32(scores + i * s_stride, s);
        else
            store_n(scores + i * s_stride, s, n_real_k);
    }
}

static void attn_scores_f16(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    for (size_t j = 0; j < n_k; j += KEYS) {
        const uint16_t *keys[KEYS];
        size_t n_real = n_k - j < KEYS ? n_k - j : KEYS;
        for (size_t i = 0; i < KEYS; i++) keys[i] = k + (j + (i < n_real ? i : n_real - 1)) * head_dim;
        lq_ask_for(keys[0], LQ_STREAM_AHEAD, KEYS * head_dim * sizeof(uint16_t));
        size_t i = 0;
        for (; i + QUERIES <= n_q; i += QUERIES)
            scores_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, QUERIES, keys, n_real,
                        head_dim, scale);
        scores += i * s_stride + j, q += i * q_stride;
        if (n_q - i == 3)
            scores_tile(scores, s_stride, q, q_stride, 3, keys, n_real, head_dim, scale);
        else if (n_q - i == 2)
            scores_tile(scores, s_stride, q, q_stride, 2, keys, n_real, head_dim, scale);
        else if (n_q - i == 1)
            scores_tile(scores, s_stride, q, q_stride, 1, keys, n_real, head_dim, scale);
        scores -= i * s_stride + j, q -= i * q_stride;
    }
}

/* n_vectors times four dimensions (or, with n_vectors 1, the first n_dims of four) of n_q queries over all values. */
LQ_INLINE void values_tile(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim, size_t n_vectors,
                           size_t n_dims) {
    float32x4_t sum[QUERIES][4];
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            const float *from = acc + i * acc_stride + 4 * d;
            sum[i][d] = vmulq_n_f32(n_dims < 4 ? load_n(from, n_dims) : vld1q_f32(from), decay[i]);
        }
    }
    for (size_t j = 0; j < n_k; j++) {
        const uint16_t *from = v + j * head_dim;
        float32x4_t value[4];
        lq_ask_for(from, LQ_STREAM_AHEAD, n_vectors * 4 * sizeof(uint16_t));
        if (n_vectors == 4) {
            load_halves(value, from);
            load_halves(value + 2, from + 8);
        } else {
            uint16_t halves[4] = {0};
            memcpy(halves, from, n_dims * sizeof *halves);
            value[0] = half_to_float(vld1_u16(halves));
        }
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            float32x4_t weight = vld1q_dup_f32(p + i * p_stride + j);
            LQ_UNROLL
            for (size_t d = 0; d < n_vectors; d++) sum[i][d] = vfmaq_f32(sum[i][d], weight, value[d]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            float *to = acc + i * acc_stride + 4 * d;
            if (n_dims < 4)
                store_n(to, sum[i][d], n_dims);
            else
                vst1q_f32(to, sum[i][d]);
        }
    }
}

LQ_INLINE void values_rows(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t d = 0;
    for (; d + 16 <= head_dim; d += 16)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 4, 4);
    for (; d + 4 <= head_dim; d += 4)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, 4);
    if (d < head_dim) values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, head_dim - d);
}

static void attn_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t i = 0;
    for (; i + QUERIES <= n_q; i += QUERIES)
        values_rows(acc + i * acc_stride, acc_stride, decay + i, p + i * p_stride, p_stride, QUERIES, v, n_k, head_dim);
    acc += i * acc_stride, decay += i, p += i * p_stride;
    if (n_q - i == 3)
        values_rows(acc, acc_stride, decay, p, p_stride, 3, v, n_k, head_dim);
    else if (n_q - i == 2)
        values_rows(acc, acc_stride, decay, p, p_stride, 2, v, n_k, head_dim);
    else if (n_q - i == 1)
        values_rows(acc, acc_stride, decay, p, p_stride, 1, v, n_k, head_dim);
}

void lq_kernels_init_neon_ops(lq_kernels *kernels) {
    kernels->dequantize[LQ_TYPE_F16] = dequantize_f16;
    kernels->f32_to_f16 = f32_to_f16;
    kernels->f16_to_f32 = f16_to_f32;
    kernels->rms_norm = rms_norm;
    kernels->add = add;
    kernels->mul_scalar = mul_scalar;
    kernels->silu_mul = silu_mul;
    kernels->gelu_tanh_mul = gelu_tanh_mul;
    kernels->softcap = softcap;
    kernels->attn_scores_f16 = attn_scores_f16;
    kernels->attn_values_f16 = attn_values_f16;
}
