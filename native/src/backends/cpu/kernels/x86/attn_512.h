/* attn_512.h - attn_page.h with 512-bit vectors, shared by attn_avx512.c and attn_avx512vnni.c. The including file
 * defines
 *   __m512i add_dot(__m512i acc, __m512i u, __m512i s)    acc + 16 sums of 4 products, u unsigned bytes up to 31 */
#ifndef LQ_CPU_ATTN_512_H
#define LQ_CPU_ATTN_512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

#define VF __m512
#define VI __m512i
#define VN 16
#define DOT_GROUPS 4

LQ_INLINE VF vf_load(const float *p) { return _mm512_loadu_ps(p); }
LQ_INLINE void vf_store(float *p, VF x) { _mm512_storeu_ps(p, x); }
LQ_INLINE VF vf_set1(float x) { return _mm512_set1_ps(x); }
LQ_INLINE VF vf_add(VF a, VF b) { return _mm512_add_ps(a, b); }
LQ_INLINE VF vf_sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
LQ_INLINE VF vf_mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
LQ_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
LQ_INLINE VF vf_max(VF a, VF b) { return _mm512_max_ps(a, b); }
LQ_INLINE VF vf_min(VF a, VF b) { return _mm512_min_ps(a, b); }
LQ_INLINE VF vf_abs(VF a) { return _mm512_abs_ps(a); }
LQ_INLINE float vf_sum(VF a) { return _mm512_reduce_add_ps(a); }
LQ_INLINE float vf_largest(VF a) { return _mm512_reduce_max_ps(a); }
LQ_INLINE void vf_largest_of_4(float *out, VF a, VF b, VF c, VF d) {
    VF ab = vf_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    VF cd = vf_max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    VF s = vf_max(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
LQ_INLINE void vf_sums_of_4(float *out, VF a, VF b, VF c, VF d) {
    VF ab = vf_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    VF cd = vf_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    VF s = vf_add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
LQ_INLINE VF vf_from_int(VI a) { return _mm512_cvtepi32_ps(a); }
LQ_INLINE VF vf_from_bytes(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LQ_INLINE VF vf_from_codes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LQ_INLINE VI vi_from_float(VF a) { return _mm512_cvtps_epi32(a); }
LQ_INLINE void vi_store(uint8_t *p, VI a) { _mm512_storeu_si512(p, a); }
LQ_INLINE void vi_store_s8(int8_t *p, VI a) { _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtsepi32_epi8(a)); }
LQ_INLINE void vi_store_s16(int16_t *p, VI a) { _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtsepi32_epi16(a)); }
LQ_INLINE VI vi_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
LQ_INLINE VI vi_set1(int x) { return _mm512_set1_epi32(x); }
LQ_INLINE VI vi_and(VI a, VI b) { return _mm512_and_si512(a, b); }
LQ_INLINE VI vi_or(VI a, VI b) { return _mm512_or_si512(a, b); }
/* A float's bits, and a float plus a number on its bits: 2^k times it for k << 23. */
LQ_INLINE VI vf_bits(VF a) { return _mm512_castps_si512(a); }
LQ_INLINE VF vf_add_bits(VF a, VI b) { return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), b)); }
LQ_INLINE VI vi_srl(VI a, uint32_t n) { return _mm512_srli_epi32(a, n); }
LQ_INLINE VI vi_sll(VI a, uint32_t n) { return _mm512_slli_epi32(a, n); }
/* 32 bytes in both halves, shifted right by low and by high bits. */
LQ_INLINE VI vi_load_twice(const uint8_t *p, uint32_t low, uint32_t high) {
    VI v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
    VI n = _mm512_inserti64x4(_mm512_set1_epi32((int)low), _mm256_set1_epi32((int)high), 1);
    return _mm512_srlv_epi32(v, n);
}

/* (a, b) -> (a + b, a - b) for neighbours, then pairs, fours, eights: the partner's lane plus or minus the own one. */
LQ_INLINE VF butterfly(VF x, VF partner, __mmask16 second) {
    return _mm512_mask_sub_ps(_mm512_add_ps(partner, x), second, partner, x);
}
LQ_INLINE VF vf_hadamard(VF x) {
    x = butterfly(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
    x = butterfly(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
    x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
    return butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00);
}

/* Four codes a lane times the same four weights. */
LQ_INLINE VI vi_dot(VI acc, VI codes, const int8_t *four) {
    int weights;
    memcpy(&weights, four, 4);
    return add_dot(acc, codes, _mm512_set1_epi32(weights));
}

LQ_INLINE VF vf_sqrt(VF a) { return _mm512_sqrt_ps(a); }
LQ_INLINE VF vf_div(VF a, VF b) { return _mm512_div_ps(a, b); }
/* 16 bits and 8 are packed within 128: a b, then a b c d of four lanes each, which have to change places. */
LQ_INLINE VI vi_pack(VI a, VI b, VI c, VI d) {
    const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    VI bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turn));
}

#include "backends/cpu/kernels/attn_page.h"

#define MANY_ITEMS 8
#define MANY_VECTORS 2

#include "backends/cpu/kernels/attn_many.h"

#endif
