/* ops_avx2.c - elementwise operations, exponentials and attention over f16 keys and values, with AVX2, FMA and F16C. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"
#include "core/half.h"

LQ_INLINE __m128 fold(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

/* Lanes below n (at most 8). */
LQ_INLINE __m256i first_lanes(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* 8 halves, or the first n and zeros. */
LQ_INLINE __m256 load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
LQ_INLINE __m256 load_half_n(const uint16_t *p, size_t n) {
    uint16_t values[8] = {0};
    memcpy(values, p, n * sizeof(*values));
    return load_half(values);
}

/* ---- exponential: x = k ln 2 + r, |r| <= ln 2 / 2; e^r by its series to r^7 (the next term is below 2^-27), times
 * 2^k. x in [-87, 88], outside of it the value at the edge; NaN stays NaN. */
LQ_INLINE __m256 exp_ps(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x); /* the second operand survives a NaN */
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), x);
    __m256 k = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.7f7d1cp-20f), r); /* the rest of ln 2 */
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(k), 23)));
}

/* x / (1 + e^-z) */
LQ_INLINE __m256 times_sigmoid(__m256 x, __m256 z) {
    __m256 minus_z = _mm256_sub_ps(_mm256_setzero_ps(), z);
    __m256 e = _mm256_blendv_ps(exp_ps(minus_z), _mm256_set1_ps(INFINITY),
                                _mm256_cmp_ps(minus_z, _mm256_set1_ps(88.0f), _CMP_GT_OQ));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

LQ_INLINE __m256 silu(__m256 x) { return times_sigmoid(x, x); }

/* (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel for u far below 0. */
LQ_INLINE __m256 gelu_tanh(__m256 x) {
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
    __m256 u = _mm256_fmadd_ps(cube, _mm256_set1_ps(0.044715f), x);
    return times_sigmoid(x, _mm256_mul_ps(u, _mm256_set1_ps(2.0f * 0.797884560802865f)));
}

/* ---- elementwise */

/* tanh u = 2 / (1 + e^-2u) - 1 */
static void softcap(float *x, float cap, size_t n) {
    __m256 twice = _mm256_set1_ps(2.0f * cap), inverse = _mm256_set1_ps(2.0f / cap), minus = _mm256_set1_ps(-cap);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 z = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
        _mm256_storeu_ps(x + i, _mm256_add_ps(times_sigmoid(twice, z), minus));
    }
    if (i < n) {
        __m256i lanes = first_lanes(n - i);
        __m256 z = _mm256_mul_ps(_mm256_maskload_ps(x + i, lanes), inverse);
        _mm256_maskstore_ps(x + i, lanes, _mm256_add_ps(times_sigmoid(twice, z), minus));
    }
}

static void silu_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(silu(_mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
    if (i < n) {
        __m256i lanes = first_lanes(n - i);
        __m256 x = silu(_mm256_maskload_ps(gate + i, lanes));
        _mm256_maskstore_ps(gate + i, lanes, _mm256_mul_ps(x, _mm256_maskload_ps(up + i, lanes)));
    }
}

static void gelu_tanh_mul(float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(gelu_tanh(_mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
    if (i < n) {
        __m256i lanes = first_lanes(n - i);
        __m256 x = gelu_tanh(_mm256_maskload_ps(gate + i, lanes));
        _mm256_maskstore_ps(gate + i, lanes, _mm256_mul_ps(x, _mm256_maskload_ps(up + i, lanes)));
    }
}

static void add(float *dst, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_add_ps(_mm256_loadu_ps(dst + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) dst[i] += x[i];
}

static void mul_scalar(float *dst, float a, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_mul_ps(_mm256_loadu_ps(dst + i), _mm256_set1_ps(a)));
    for (; i < n; i++) dst[i] *= a;
}

static void rms_norm(float *dst, const float *x, const float *weight, size_t n, float eps) {
    __m256d sum0 = _mm256_setzero_pd(), sum1 = _mm256_setzero_pd(); /* double: squares of any float fit, none is lost */
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256d a = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), b = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        sum0 = _mm256_fmadd_pd(a, a, sum0);
        sum1 = _mm256_fmadd_pd(b, b, sum1);
    }
    double parts[4], sum = 0.0;
    _mm256_storeu_pd(parts, _mm256_add_pd(sum0, sum1));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    sum += (parts[0] + parts[1]) + (parts[2] + parts[3]);
    float scale = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(scale));
        _mm256_storeu_ps(dst + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
    }
    for (; i < n; i++) dst[i] = x[i] * scale * weight[i];
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) dst[i] = lq_float_to_half(src[i]);
}

static void f16_to_f32(float *dst, const uint16_t *src, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, load_half(src + i));
    for (; i < n; i++) dst[i] = lq_half_to_float(src[i]);
}

static void dequantize_f16(float *dst, const void *src, size_t n) {
    const uint8_t *from = src;
    size_t i = 0;
    for (; i + 8 <= n; i += 8, from += 16)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)));
    for (; i < n; i++, from += 2) dst[i] = lq_half_to_float((uint16_t)(from[0] | from[1] << 8));
}

/* ---- attention. Four keys at once for up to three queries: 12 sums, 3 queries and one key fill the registers. */

#define KEYS 4
#define QUERIES 3

/* Sums of four vectors' lanes. */
LQ_INLINE __m128 sums_of_4(__m256 a, __m256 b, __m256 c, __m256 d) {
    return fold(_mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)));
}

LQ_INLINE void scores_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                           const uint16_t *const *k, size_t n_real_k, size_t head_dim, float scale) {
    __m256 acc[QUERIES][KEYS];
    size_t d = 0;
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) acc[i][j] = _mm256_setzero_ps();
    }
    for (; d + 8 <= head_dim; d += 8) {
        __m256 query[QUERIES];
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) query[i] = _mm256_loadu_ps(q + i * q_stride + d);
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) {
            __m256 key = load_half(k[j] + d);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) acc[i][j] = _mm256_fmadd_ps(query[i], key, acc[i][j]);
        }
    }
    if (d < head_dim) {
        __m256i lanes = first_lanes(head_dim - d);
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) {
            __m256 key = load_half_n(k[j] + d, head_dim - d);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++)
                acc[i][j] = _mm256_fmadd_ps(_mm256_maskload_ps(q + i * q_stride + d, lanes), key, acc[i][j]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        __m128 s = _mm_mul_ps(sums_of_4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), _mm_set1_ps(scale));
        _mm_maskstore_ps(scores + i * s_stride, _mm256_castsi256_si128(first_lanes(n_real_k)), s);
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
        for (; i + 3 <= n_q; i += 3)
            scores_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, 3, keys, n_real, head_dim,
                        scale);
        if (n_q - i == 2)
            scores_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, 2, keys, n_real, head_dim,
                        scale);
        else if (n_q - i == 1)
            scores_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, 1, keys, n_real, head_dim,
                        scale);
    }
}

/* n_vectors * 8 dimensions (or, with n_vectors 1, the first n_dims of 8) of n_q queries over all values. */
LQ_INLINE void values_tile(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim, size_t n_vectors,
                           size_t n_dims) {
    __m256 sum[QUERIES][4];
    __m256i lanes = first_lanes(n_dims);
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            const float *from = acc + i * acc_stride + 8 * d;
            sum[i][d] = n_dims < 8 ? _mm256_maskload_ps(from, lanes) : _mm256_loadu_ps(from);
            sum[i][d] = _mm256_mul_ps(sum[i][d], _mm256_set1_ps(decay[i]));
        }
    }
    for (size_t j = 0; j < n_k; j++) {
        __m256 weight[QUERIES];
        lq_ask_for(v + j * head_dim, LQ_STREAM_AHEAD, n_vectors * 8 * sizeof(uint16_t));
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) weight[i] = _mm256_broadcast_ss(p + i * p_stride + j);
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            const uint16_t *from = v + j * head_dim + 8 * d;
            __m256 value = n_dims < 8 ? load_half_n(from, n_dims) : load_half(from);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) sum[i][d] = _mm256_fmadd_ps(weight[i], value, sum[i][d]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            float *to = acc + i * acc_stride + 8 * d;
            if (n_dims < 8)
                _mm256_maskstore_ps(to, lanes, sum[i][d]);
            else
                _mm256_storeu_ps(to, sum[i][d]);
        }
    }
}

LQ_INLINE void values_rows(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t d = 0;
    for (; d + 32 <= head_dim; d += 32)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 4, 8);
    for (; d + 8 <= head_dim; d += 8)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, 8);
    if (d < head_dim) values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, head_dim - d);
}

static void attn_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t i = 0;
    for (; i + 3 <= n_q; i += 3)
        values_rows(acc + i * acc_stride, acc_stride, decay + i, p + i * p_stride, p_stride, 3, v, n_k, head_dim);
    if (n_q - i == 2)
        values_rows(acc + i * acc_stride, acc_stride, decay + i, p + i * p_stride, p_stride, 2, v, n_k, head_dim);
    else if (n_q - i == 1)
        values_rows(acc + i * acc_stride, acc_stride, decay + i, p + i * p_stride, p_stride, 1, v, n_k, head_dim);
}

void lq_kernels_init_avx2_ops(lq_kernels *kernels) {
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
