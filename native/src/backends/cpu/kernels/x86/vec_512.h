/* vec_512.h - the vector vocabulary with 512 bits: AVX-512 F, BW, VL and DQ, and VNNI where the including file has it.
 * vec_256.h explains the words. */
#ifndef LQ_CPU_VEC_512_H
#define LQ_CPU_VEC_512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

#define V_LANES 16
#define V_REGISTERS 32

typedef __m512 vfloat;
typedef __m512i vint;

/* ---- floats */

LQ_INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1); } /* n < 16 */

LQ_INLINE vfloat vf_load(const float *p) { return _mm512_loadu_ps(p); }
LQ_INLINE vfloat vf_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
LQ_INLINE void vf_store(float *p, vfloat a) { _mm512_storeu_ps(p, a); }
LQ_INLINE void vf_store_n(float *p, vfloat a, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
LQ_INLINE vfloat vf_set1(float x) { return _mm512_set1_ps(x); }
LQ_INLINE vfloat vf_add(vfloat a, vfloat b) { return _mm512_add_ps(a, b); }
LQ_INLINE vfloat vf_sub(vfloat a, vfloat b) { return _mm512_sub_ps(a, b); }
LQ_INLINE vfloat vf_mul(vfloat a, vfloat b) { return _mm512_mul_ps(a, b); }
LQ_INLINE vfloat vf_div(vfloat a, vfloat b) { return _mm512_div_ps(a, b); }
LQ_INLINE vfloat vf_sqrt(vfloat a) { return _mm512_sqrt_ps(a); }
LQ_INLINE vfloat vf_neg(vfloat a) { return _mm512_sub_ps(_mm512_setzero_ps(), a); }
LQ_INLINE vfloat vf_abs(vfloat a) { return _mm512_abs_ps(a); }
LQ_INLINE vfloat vf_max(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
LQ_INLINE vfloat vf_min(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
LQ_INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }
LQ_INLINE vfloat vf_fnma(vfloat a, vfloat b, vfloat c) { return _mm512_fnmadd_ps(a, b, c); }
LQ_INLINE vfloat vf_round(vfloat a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LQ_INLINE vfloat vf_if_greater(vfloat a, vfloat b, vfloat yes, vfloat no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes);
}
LQ_INLINE vfloat vf_scale_2(vfloat a, vfloat k) { return _mm512_scalef_ps(a, k); }

/* ---- floats: across the lanes */

LQ_INLINE float vf_sum(vfloat a) { return _mm512_reduce_add_ps(a); }
LQ_INLINE float vf_largest(vfloat a) { return _mm512_reduce_max_ps(a); }
LQ_INLINE __m128 sums_of_4(vfloat a, vfloat b, vfloat c, vfloat d) {
    vfloat ab = vf_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vfloat cd = vf_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vfloat s = vf_add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
LQ_INLINE void vf_sums_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    _mm_storeu_ps(out, sums_of_4(a, b, c, d));
}
LQ_INLINE void vf_largest_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    vfloat ab = vf_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vfloat cd = vf_max(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vfloat s = vf_max(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
/* (a, b) -> (a + b, a - b) for neighbours, then pairs, fours, eights. */
LQ_INLINE vfloat butterfly(vfloat x, vfloat partner, __mmask16 second) {
    return _mm512_mask_sub_ps(_mm512_add_ps(partner, x), second, partner, x);
}
LQ_INLINE vfloat vf_hadamard(vfloat x) {
    x = butterfly(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
    x = butterfly(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
    x = butterfly(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
    return butterfly(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00);
}

/* ---- sums of a dot product */

typedef __m512 vsum;

LQ_INLINE vsum vs_zero(void) { return _mm512_setzero_ps(); }
LQ_INLINE vsum vs_add_products(vsum sum, vfloat a, vfloat b) { return _mm512_fmadd_ps(a, b, sum); }
LQ_INLINE void vs_store_4(float *p, vsum a, vsum b, vsum c, vsum d, float factor, size_t n) {
    _mm_mask_storeu_ps(p, (__mmask8)((1u << n) - 1), _mm_mul_ps(sums_of_4(a, b, c, d), _mm_set1_ps(factor)));
}

/* ---- conversions */

LQ_INLINE vint vi_as_int(vfloat a) { return _mm512_castps_si512(a); }
LQ_INLINE vfloat vf_as_float(vint a) { return _mm512_castsi512_ps(a); }
LQ_INLINE vint vi_from_float(vfloat a) { return _mm512_cvtps_epi32(a); }
LQ_INLINE vfloat vf_from_int(vint a) { return _mm512_cvtepi32_ps(a); }
LQ_INLINE vfloat vf_from_int8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LQ_INLINE vfloat vf_from_uint8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
LQ_INLINE vfloat vf_load_half(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
LQ_INLINE vfloat vf_load_half_n(const void *p, size_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
LQ_INLINE void vf_store_half(uint16_t *p, vfloat a) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
LQ_INLINE void vf_store_half_n(uint16_t *p, vfloat a, size_t n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
LQ_INLINE vfloat vf_from_low_half(vint v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
LQ_INLINE vfloat vf_from_high_half(vint v) { return vf_from_low_half(_mm512_srli_epi32(v, 16)); }

/* ---- integers */

LQ_INLINE vint vi_load(const void *p) { return _mm512_loadu_si512(p); }
LQ_INLINE void vi_store(void *p, vint a) { _mm512_storeu_si512(p, a); }
LQ_INLINE void vi_store_int8(int8_t *p, vint a) { _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtsepi32_epi8(a)); }
LQ_INLINE void vi_store_int16(int16_t *p, vint a) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtsepi32_epi16(a));
}
LQ_INLINE vint vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
LQ_INLINE vint vi_set1_int8(int x) { return _mm512_set1_epi8((char)x); }
LQ_INLINE vint vi_and(vint a, vint b) { return _mm512_and_si512(a, b); }
LQ_INLINE vint vi_or(vint a, vint b) { return _mm512_or_si512(a, b); }
LQ_INLINE vint vi_xor(vint a, vint b) { return _mm512_xor_si512(a, b); }
LQ_INLINE vint vi_add(vint a, vint b) { return _mm512_add_epi32(a, b); }
LQ_INLINE vint vi_srl(vint a, uint32_t n) { return _mm512_srli_epi32(a, n); }
LQ_INLINE vint vi_sll(vint a, uint32_t n) { return _mm512_slli_epi32(a, n); }
LQ_INLINE vint vi_sra(vint a, uint32_t n) { return _mm512_srai_epi32(a, n); }
LQ_INLINE vint vi_load_twice(const void *p, uint32_t low, uint32_t high) {
    vint v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
    vint n = _mm512_inserti64x4(_mm512_set1_epi32((int)low), _mm256_set1_epi32((int)high), 1);
    return _mm512_srlv_epi32(v, n);
}
LQ_INLINE vint vi_pack_int8(vint a, vint b, vint c, vint d) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    vint bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
}

/* ---- integers: what strip_*.h asks for besides */

LQ_INLINE vint vi_unpack_low_32(vint a, vint b) { return _mm512_unpacklo_epi32(a, b); }
LQ_INLINE vint vi_unpack_high_32(vint a, vint b) { return _mm512_unpackhi_epi32(a, b); }
LQ_INLINE vint vi_unpack_low_64(vint a, vint b) { return _mm512_unpacklo_epi64(a, b); }
LQ_INLINE vint vi_unpack_high_64(vint a, vint b) { return _mm512_unpackhi_epi64(a, b); }
LQ_INLINE vint vi_shuffle_int8(vint a, vint indices) { return _mm512_shuffle_epi8(a, indices); }
LQ_INLINE vint vi_equal_int8(vint a, vint b) { return _mm512_movm_epi8(_mm512_cmpeq_epi8_mask(a, b)); }
LQ_INLINE vint vi_indices_of_byte(int i) {
    __m128i lane = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_add_epi8(_mm512_broadcast_i32x4(lane), _mm512_set1_epi8((char)i));
}
LQ_INLINE vint vi_look_up_int8(const int8_t values[16], vint b) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)values)), b);
}
/* 16 bytes of rows i, 4 + i, 8 + i, 12 + i. */
LQ_INLINE vint vi_load_rows(const uint8_t *const rows[V_LANES], int i, size_t offset) {
    vint v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(rows[i] + offset)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(rows[4 + i] + offset)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(rows[8 + i] + offset)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(rows[12 + i] + offset)), 3);
}

/* ---- integer products: unsigned bytes u and signed bytes s, four products a lane added up in 32 bits */

#ifdef __AVX512VNNI__
/* A file whose sums live through a loop defines LQ_DOT_ASM: there GCC 12 copies every sum before and after the
 * intrinsic, which takes a third of the time of a page. */
#ifdef LQ_DOT_ASM
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
    return sum;
}
#else
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) { return _mm512_dpbusd_epi32(sum, u, s); }
#endif
LQ_INLINE vint vi_dot(vint u, vint s) { return vi_add_dot(_mm512_setzero_si512(), u, s); }
/* The sum of two such products. */
LQ_INLINE vint vi_add_dot_2(vint sum, vint u0, vint s0, vint u1, vint s1) {
    return vi_add_dot(vi_add_dot(sum, u0, s0), u1, s1);
}
/* Two products a lane of numbers of 16 bits. */
#define V_HAS_DOT_INT16
LQ_INLINE vint vi_add_dot_int16(vint sum, vint a, vint b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
#else
LQ_INLINE vint vi_add_pairs(vint sums_16, vint u, vint s) {
    return _mm512_add_epi16(sums_16, _mm512_maddubs_epi16(u, s));
}
LQ_INLINE vint vi_from_pairs(vint sums_16) { return _mm512_madd_epi16(sums_16, _mm512_set1_epi16(1)); }
LQ_INLINE vint vi_dot(vint u, vint s) { return vi_from_pairs(_mm512_maddubs_epi16(u, s)); }
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) { return _mm512_add_epi32(sum, vi_dot(u, s)); }
LQ_INLINE vint vi_add_dot_2(vint sum, vint u0, vint s0, vint u1, vint s1) { /* u at most 31 */
    vint pairs = _mm512_add_epi16(_mm512_maddubs_epi16(u0, s0), _mm512_maddubs_epi16(u1, s1));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
/* Signed bytes w, as |w| times s with the sign of w. */
LQ_INLINE vint vi_dot_signed(vint w, vint s) {
    vint signed_s = _mm512_mask_sub_epi8(s, _mm512_movepi8_mask(w), _mm512_setzero_si512(), s);
    return vi_dot(_mm512_abs_epi8(w), signed_s);
}
#endif

#endif
