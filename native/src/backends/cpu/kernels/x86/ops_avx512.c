/* ops_avx512.c - exponentials, conversions and attention over f16 keys and values with AVX-512; what memory bounds
 * (add, mul_scalar, max) stays with AVX2. */
#include <immintrin.h>
#include <math.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

/* Lanes below n, at most 16. */
LQ_INLINE __mmask16 first_lanes(size_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

LQ_INLINE __m512 load_half(const void *p, __mmask16 lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
}

/* ---- exponential: x = k ln 2 + r, |r| <= ln 2 / 2; e^r by its series to r^7 (the next term is below 2^-27), times
 * 2^k. x in [-87, 88], outside of it the value at the edge; NaN stays NaN. */
LQ_INLINE __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x); /* the second operand survives a NaN */
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), x);
    __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0x1.7f7d1cp-20f), r); /* the rest of ln 2 */
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, k);
}

/* x / (1 + e^-z) */
LQ_INLINE __m512 times_sigmoid(__m512 x, __m512 z) {
    __m512 minus_z = _mm512_sub_ps(_mm512_setzero_ps(), z);
    __mmask16 overflow = _mm512_cmp_ps_mask(minus_z, _mm512_set1_ps(88.0f), _CMP_GT_OQ);
    __m512 e = _mm512_mask_mov_ps(exp_ps(minus_z), overflow, _mm512_set1_ps(INFINITY));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(lanes, gate + i);
        x = _mm512_mul_ps(times_sigmoid(x, x), _mm512_maskz_loadu_ps(lanes, up + i));
        _mm512_mask_storeu_ps(gate + i, lanes, x);
    }
}

/* (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel for u far below 0. */
static void gelu_tanh_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(lanes, gate + i);
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
        x = times_sigmoid(x, _mm512_mul_ps(u, _mm512_set1_ps(2.0f * 0.797884560802865f)));
        _mm512_mask_storeu_ps(gate + i, lanes, _mm512_mul_ps(x, _mm512_maskz_loadu_ps(lanes, up + i)));
    }
}

/* tanh u = 2 / (1 + e^-2u) - 1 */
static void softcap(float *x, float cap, size_t n) {
    __m512 twice = _mm512_set1_ps(2.0f * cap), inverse = _mm512_set1_ps(2.0f / cap), minus = _mm512_set1_ps(-cap);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        __m512 z = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_add_ps(times_sigmoid(twice, z), minus));
    }
}

static void rms_norm(float *dst, const float *x, const float *weight, size_t n, float eps) {
    __m512d sum0 = _mm512_setzero_pd(), sum1 = _mm512_setzero_pd(); /* double: squares of any float fit, none is lost */
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        sum0 = _mm512_fmadd_pd(a, a, sum0);
        sum1 = _mm512_fmadd_pd(b, b, sum1);
    }
    double sum = _mm512_reduce_add_pd(_mm512_add_pd(sum0, sum1));
    __m512 scale = _mm512_set1_ps((float)(1.0 / sqrt(sum / (double)n + (double)eps)));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), scale);
        _mm512_mask_storeu_ps(dst + i, lanes, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, weight + i)));
    }
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        __m256i h = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(lanes, src + i), _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(dst + i, lanes, h);
    }
}

static void dequantize_f16(float *dst, const void *src, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 lanes = first_lanes(n - i);
        _mm512_mask_storeu_ps(dst + i, lanes, load_half((const uint8_t *)src + 2 * i, lanes));
    }
}

static void f16_to_f32(float *dst, const uint16_t *src, size_t n) { dequantize_f16(dst, src, n); }

/* ---- attention. Four keys at once for up to five queries: 20 sums, 5 queries and a key fill most of the registers. */

#define KEYS 4
#define QUERIES 5

/* Sums of four vectors' lanes. */
LQ_INLINE __m128 sums_of_4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 s = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

LQ_INLINE void scores_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                           const uint16_t *const *k, size_t n_real_k, size_t head_dim, float scale) {
    __m512 acc[QUERIES][KEYS];
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) acc[i][j] = _mm512_setzero_ps();
    }
    for (size_t d = 0; d < head_dim; d += 16) {
        __mmask16 lanes = first_lanes(head_dim - d);
        __m512 query[QUERIES];
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) query[i] = _mm512_maskz_loadu_ps(lanes, q + i * q_stride + d);
        LQ_UNROLL
        for (size_t j = 0; j < KEYS; j++) {
            __m512 key = load_half(k[j] + d, lanes);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) acc[i][j] = _mm512_fmadd_ps(query[i], key, acc[i][j]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        __m128 s = _mm_mul_ps(sums_of_4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), _mm_set1_ps(scale));
        _mm_mask_storeu_ps(scores + i * s_stride, (__mmask8)((1u << n_real_k) - 1), s);
    }
}

LQ_INLINE void scores_rows(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                           const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    for (size_t j = 0; j < n_k; j += KEYS) {
        const uint16_t *keys[KEYS];
        size_t n_real = n_k - j < KEYS ? n_k - j : KEYS;
        for (size_t i = 0; i < KEYS; i++) keys[i] = k + (j + (i < n_real ? i : n_real - 1)) * head_dim;
        lq_ask_for(keys[0], LQ_STREAM_AHEAD, KEYS * head_dim * sizeof(uint16_t));
        scores_tile(scores + j, s_stride, q, q_stride, n_q, keys, n_real, head_dim, scale);
    }
}

static void attn_scores_f16(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    while (n_q > 0) {
        size_t n = n_q > QUERIES ? (n_q == QUERIES + 1 ? 3 : QUERIES) : n_q; /* 6 as 3 + 3 rather than 5 + 1 */
        switch (n) {
        case 1:
            scores_rows(scores, s_stride, q, q_stride, 1, k, n_k, head_dim, scale);
            break;
        case 2:
            scores_rows(scores, s_stride, q, q_stride, 2, k, n_k, head_dim, scale);
            break;
        case 3:
            scores_rows(scores, s_stride, q, q_stride, 3, k, n_k, head_dim, scale);
            break;
        case 4:
            scores_rows(scores, s_stride, q, q_stride, 4, k, n_k, head_dim, scale);
            break;
        default:
            scores_rows(scores, s_stride, q, q_stride, 5, k, n_k, head_dim, scale);
            break;
        }
        scores += n * s_stride;
        q += n * q_stride;
        n_q -= n;
    }
}

/* n_vectors * 16 dimensions (or, with n_vectors 1, those of lanes) of n_q queries over all values. */
LQ_INLINE void values_tile(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim, size_t n_vectors,
                           __mmask16 lanes) {
    __m512 sum[QUERIES][4];
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++)
            sum[i][d] =
                _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, acc + i * acc_stride + 16 * d), _mm512_set1_ps(decay[i]));
    }
    for (size_t j = 0; j < n_k; j++) {
        __m512 value[4];
        lq_ask_for(v + j * head_dim, LQ_STREAM_AHEAD, n_vectors * 16 * sizeof(uint16_t));
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) value[d] = load_half(v + j * head_dim + 16 * d, lanes);
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            __m512 weight = _mm512_set1_ps(p[i * p_stride + j]);
            LQ_UNROLL
            for (size_t d = 0; d < n_vectors; d++) sum[i][d] = _mm512_fmadd_ps(weight, value[d], sum[i][d]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) _mm512_mask_storeu_ps(acc + i * acc_stride + 16 * d, lanes, sum[i][d]);
    }
}

LQ_INLINE void values_rows(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t d = 0;
    for (; d + 64 <= head_dim; d += 64)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 4, 0xffff);
    if (d + 32 <= head_dim) {
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 2, 0xffff);
        d += 32;
    }
    for (; d < head_dim; d += 16)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, first_lanes(head_dim - d));
}

static void attn_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    while (n_q > 0) {
        size_t n = n_q > QUERIES ? (n_q == QUERIES + 1 ? 3 : QUERIES) : n_q;
        switch (n) {
        case 1:
            values_rows(acc, acc_stride, decay, p, p_stride, 1, v, n_k, head_dim);
            break;
        case 2:
            values_rows(acc, acc_stride, decay, p, p_stride, 2, v, n_k, head_dim);
            break;
        case 3:
            values_rows(acc, acc_stride, decay, p, p_stride, 3, v, n_k, head_dim);
            break;
        case 4:
            values_rows(acc, acc_stride, decay, p, p_stride, 4, v, n_k, head_dim);
            break;
        default:
            values_rows(acc, acc_stride, decay, p, p_stride, 5, v, n_k, head_dim);
            break;
        }
        acc += n * acc_stride;
        decay += n;
        p += n * p_stride;
        n_q -= n;
    }
}

void lq_kernels_init_avx512_ops(lq_kernels *kernels) {
    kernels->dequantize[LQ_TYPE_F16] = dequantize_f16;
    kernels->f32_to_f16 = f32_to_f16;
    kernels->f16_to_f32 = f16_to_f32;
    kernels->rms_norm = rms_norm;
    kernels->silu_mul = silu_mul;
    kernels->gelu_tanh_mul = gelu_tanh_mul;
    kernels->softcap = softcap;
    kernels->attn_scores_f16 = attn_scores_f16;
    kernels->attn_values_f16 = attn_values_f16;
}
