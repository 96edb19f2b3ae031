/* dot_avx512.c - products with AVX-512 (F, BW, VL, DQ): packed weights with int8 activations, and plain floats. */
#include <immintrin.h>

static inline __m512i pairs_to_sums(__m512i acc, __m512i pairs) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

/* maddubs makes pairs of 16 bits: at most 63 * 127 * 2, or 31 * 127 * 4 where two are added, fits. */
static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) {
    return pairs_to_sums(acc, _mm512_maddubs_epi16(u, s));
}

static inline __m512i add_dots(__m512i acc, __m512i u0, __m512i s0, __m512i u1, __m512i s1) {
    return pairs_to_sums(acc, _mm512_add_epi16(_mm512_maddubs_epi16(u0, s0), _mm512_maddubs_epi16(u1, s1)));
}

/* Signed weights go in as |w|, and activations with the sign of w: at most 128 * 127 * 2. */
static inline __m512i signed_offset(__m512i s) {
    (void)s;
    return _mm512_setzero_si512();
}

static inline __m512i add_signed_dot(__m512i offset, __m512i w, __m512i s) {
    __m512i signed_s = _mm512_mask_sub_epi8(s, _mm512_movepi8_mask(w), _mm512_setzero_si512(), s);
    return pairs_to_sums(offset, _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_s));
}

#include "backends/cpu/dot_avx512.h"

LQ_INLINE __m512 load_half(const uint16_t *p) { return _mm512_cvtph_ps(load256(p)); }

static float dot_f32(const float *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        acc[0] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, a + i), _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

static float dot_f16_f32(const uint16_t *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(load_half(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 halves = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, a + i));
        acc[0] = _mm512_fmadd_ps(halves, _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

LQ_INLINE __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(widen(load256(a + i + 16 * j)), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 values = widen(_mm256_maskz_loadu_epi16(lanes, a + i));
        acc[0] = _mm512_fmadd_ps(values, _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

static void quantize_q8(lq_q8_row row, const float *x, size_t n) {
    const __m512 low = _mm512_set1_ps(-127.0f), high = _mm512_set1_ps(127.0f);
    for (size_t b = 0; b < n / LQ_Q8_BLOCK; b++, x += LQ_Q8_BLOCK) {
        __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16);
        /* the operand order passes NaN over here, and makes it -127 below, as in the scalar form */
        __m512 top = _mm512_max_ps(_mm512_abs_ps(v0), _mm512_setzero_ps());
        top = _mm512_max_ps(_mm512_abs_ps(v1), top);
        float d = _mm512_reduce_max_ps(top) / 127.0f;
        __m512 d16 = _mm512_set1_ps(d);
        __mmask16 nonzero = d > 0.0f ? 0xffff : 0;
        v0 = _mm512_min_ps(_mm512_max_ps(_mm512_maskz_div_ps(nonzero, v0, d16), low), high);
        v1 = _mm512_min_ps(_mm512_max_ps(_mm512_maskz_div_ps(nonzero, v1, d16), low), high);
        __m512i q0 = _mm512_cvtps_epi32(v0), q1 = _mm512_cvtps_epi32(v1);
        _mm_storeu_si128((__m128i *)(row.q + b * LQ_Q8_BLOCK), _mm512_cvtepi32_epi8(q0));
        _mm_storeu_si128((__m128i *)(row.q + b * LQ_Q8_BLOCK + 16), _mm512_cvtepi32_epi8(q1));
        row.d[b] = d;
        row.sums[2 * b] = (int16_t)_mm512_reduce_add_epi32(q0);
        row.sums[2 * b + 1] = (int16_t)_mm512_reduce_add_epi32(q1);
    }
}

void lq_kernels_init_avx512_dot(lq_kernels *kernels) {
    kernels->quantize_q8 = quantize_q8;
    kernels->dot_f32 = dot_f32;
    kernels->dot_f16_f32 = dot_f16_f32;
    kernels->dot_bf16_f32 = dot_bf16_f32;
    set_products(kernels);
}
