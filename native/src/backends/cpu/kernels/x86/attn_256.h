/* attn_256.h - attn_page.h with 256-bit vectors, shared by attn_avx2.c and attn_avxvnni.c. The including file has
 * included words_256.h or vnni_256.h. */
#ifndef LQ_CPU_ATTN_256_H
#define LQ_CPU_ATTN_256_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

#define VF __m256
#define VI __m256i
#define VN 8
#define DOT_GROUPS 2

LQ_INLINE VF vf_load(const float *p) { return _mm256_loadu_ps(p); }
LQ_INLINE void vf_store(float *p, VF x) { _mm256_storeu_ps(p, x); }
LQ_INLINE VF vf_set1(float x) { return _mm256_set1_ps(x); }
LQ_INLINE VF vf_add(VF a, VF b) { return _mm256_add_ps(a, b); }
LQ_INLINE VF vf_sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
LQ_INLINE VF vf_mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
LQ_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
LQ_INLINE VF vf_max(VF a, VF b) { return _mm256_max_ps(a, b); }
LQ_INLINE VF vf_min(VF a, VF b) { return _mm256_min_ps(a, b); }
LQ_INLINE VF vf_abs(VF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LQ_INLINE float vf_sum(VF a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
LQ_INLINE float vf_largest(VF a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
LQ_INLINE void vf_largest_of_4(float *out, VF a, VF b, VF c, VF d) {
    VF ab = vf_max(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    VF cd = vf_max(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    VF s = vf_max(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
LQ_INLINE void vf_sums_of_4(float *out, VF a, VF b, VF c, VF d) {
    VF s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
LQ_INLINE VF vf_from_int(VI a) { return _mm256_cvtepi32_ps(a); }
LQ_INLINE VF vf_from_bytes(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
LQ_INLINE VF vf_from_codes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
LQ_INLINE VI vi_from_float(VF a) { return _mm256_cvtps_epi32(a); }
LQ_INLINE void vi_store(uint8_t *p, VI a) { _mm256_storeu_si256((__m256i *)(void *)p, a); }
LQ_INLINE void vi_store_s8(int8_t *p, VI a) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packs_epi16(words, words));
}
LQ_INLINE void vi_store_s16(int16_t *p, VI a) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storeu_si128((__m128i *)(void *)p, words);
}
LQ_INLINE VI vi_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
LQ_INLINE VI vi_set1(int x) { return _mm256_set1_epi32(x); }
LQ_INLINE VI vi_and(VI a, VI b) { return _mm256_and_si256(a, b); }
LQ_INLINE VI vi_or(VI a, VI b) { return _mm256_or_si256(a, b); }
/* A float's bits, and a float plus a number on its bits: 2^k times it for k << 23. */
LQ_INLINE VI vf_bits(VF a) { return _mm256_castps_si256(a); }
LQ_INLINE VF vf_add_bits(VF a, VI b) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), b)); }
LQ_INLINE VI vi_srl(VI a, uint32_t n) { return _mm256_srli_epi32(a, (int)n); }
LQ_INLINE VI vi_sll(VI a, uint32_t n) { return _mm256_slli_epi32(a, (int)n); }
/* Planes of one bit have as many lanes as a vector: there is nothing to load twice. */
LQ_INLINE VI vi_load_twice(const uint8_t *p, uint32_t low, uint32_t high) {
    (void)high;
    return vi_srl(vi_load(p), low);
}

/* (a, b) -> (a + b, a - b) for neighbours, then pairs, fours: the partner's lane plus or minus the own one. */
LQ_INLINE VF vf_hadamard(VF x) {
    VF partner = _mm256_permute_ps(x, 0xb1);
    x = _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xaa);
    partner = _mm256_permute_ps(x, 0x4e);
    x = _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xcc);
    partner = _mm256_permute2f128_ps(x, x, 0x01);
    return _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xf0);
}

/* Four codes a lane times the same four weights. */
LQ_INLINE VI vi_dot(VI acc, VI codes, const int8_t *four) {
    int weights;
    memcpy(&weights, four, 4);
    return add_dot(acc, codes, _mm256_set1_epi32(weights));
}

LQ_INLINE VF vf_sqrt(VF a) { return _mm256_sqrt_ps(a); }
LQ_INLINE VF vf_div(VF a, VF b) { return _mm256_div_ps(a, b); }
/* 16 bits and 8 are packed within 128: a b, then a b c d of four lanes each, which have to change places. */
LQ_INLINE VI vi_pack(VI a, VI b, VI c, VI d) {
    const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    VI bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(turn));
}

#include "backends/cpu/kernels/attn_page.h"

#define MANY_ITEMS 4
#define MANY_VECTORS 2

#include "backends/cpu/kernels/attn_many.h"

#endif
