/* vec_256.h - the vector vocabulary with 256 bits: AVX2, FMA, F16C, and AVX-VNNI where the including file has it.
 * Bodies that all widths share (ops.h, attn_*.h, strip_*.h) are written in these words.
 *
 *   vfloat, vint   V_LANES floats, or as many bytes as integers of 32 bits (or 8, 16: then the name says so)
 *   vf_*           gives or takes floats
 *   vi_*           works on integers
 *   *_n            only the first n lanes: a load sets the others to 0, a store leaves them
 *
 * Of a NaN and a number, vf_max() and vf_min() give the second operand. */
#ifndef LQ_CPU_VEC_256_H
#define LQ_CPU_VEC_256_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

#define V_LANES 8
#define V_REGISTERS 16

typedef __m256 vfloat;
typedef __m256i vint;

/* ---- floats */

LQ_INLINE __m256i first_lanes(size_t n) { /* n < 8 */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

LQ_INLINE vfloat vf_load(const float *p) { return _mm256_loadu_ps(p); }
LQ_INLINE vfloat vf_load_n(const float *p, size_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
LQ_INLINE void vf_store(float *p, vfloat a) { _mm256_storeu_ps(p, a); }
LQ_INLINE void vf_store_n(float *p, vfloat a, size_t n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
LQ_INLINE vfloat vf_set1(float x) { return _mm256_set1_ps(x); }
LQ_INLINE vfloat vf_add(vfloat a, vfloat b) { return _mm256_add_ps(a, b); }
LQ_INLINE vfloat vf_sub(vfloat a, vfloat b) { return _mm256_sub_ps(a, b); }
LQ_INLINE vfloat vf_mul(vfloat a, vfloat b) { return _mm256_mul_ps(a, b); }
LQ_INLINE vfloat vf_div(vfloat a, vfloat b) { return _mm256_div_ps(a, b); }
LQ_INLINE vfloat vf_sqrt(vfloat a) { return _mm256_sqrt_ps(a); }
LQ_INLINE vfloat vf_neg(vfloat a) { return _mm256_sub_ps(_mm256_setzero_ps(), a); }
LQ_INLINE vfloat vf_abs(vfloat a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LQ_INLINE vfloat vf_max(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
LQ_INLINE vfloat vf_min(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
/* a b + c, and c - a b, rounded once. */
LQ_INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }
LQ_INLINE vfloat vf_fnma(vfloat a, vfloat b, vfloat c) { return _mm256_fnmadd_ps(a, b, c); }
/* To the nearest integer, ties to even. */
LQ_INLINE vfloat vf_round(vfloat a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* Lanes of `yes` where a > b, else of `no`. */
LQ_INLINE vfloat vf_if_greater(vfloat a, vfloat b, vfloat yes, vfloat no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
/* a 2^k for integers k; the result must be a normal number. */
LQ_INLINE vfloat vf_scale_2(vfloat a, vfloat k) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(k), 23)));
}

/* ---- floats: across the lanes */

LQ_INLINE float vf_sum(vfloat a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
LQ_INLINE float vf_largest(vfloat a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
LQ_INLINE __m128 sums_of_4(vfloat a, vfloat b, vfloat c, vfloat d) {
    vfloat s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
/* out[i] = the sum, or the largest, of the lanes of vector i. */
LQ_INLINE void vf_sums_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    _mm_storeu_ps(out, sums_of_4(a, b, c, d));
}
LQ_INLINE void vf_largest_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    vfloat ab = vf_max(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vfloat cd = vf_max(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vfloat s = vf_max(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    _mm_storeu_ps(out, _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
/* The stages of a Walsh-Hadamard transform inside a vector: (a, b) -> (a + b, a - b) for neighbours, then pairs, fours.
 * A lane becomes its partner's value plus or minus its own. */
LQ_INLINE vfloat vf_hadamard(vfloat x) {
    vfloat partner = _mm256_permute_ps(x, 0xb1);
    x = _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xaa);
    partner = _mm256_permute_ps(x, 0x4e);
    x = _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xcc);
    partner = _mm256_permute2f128_ps(x, x, 0x01);
    return _mm256_blend_ps(_mm256_add_ps(partner, x), _mm256_sub_ps(partner, x), 0xf0);
}

/* ---- sums of a dot product: the lanes of a vsum add up to the sum */

typedef __m256 vsum;

LQ_INLINE vsum vs_zero(void) { return _mm256_setzero_ps(); }
LQ_INLINE vsum vs_add_products(vsum sum, vfloat a, vfloat b) { return _mm256_fmadd_ps(a, b, sum); }
/* p[i] = factor times the sum of vector i, for i < n. */
LQ_INLINE void vs_store_4(float *p, vsum a, vsum b, vsum c, vsum d, float factor, size_t n) {
    _mm_maskstore_ps(p, _mm256_castsi256_si128(first_lanes(n)), _mm_mul_ps(sums_of_4(a, b, c, d), _mm_set1_ps(factor)));
}

/* ---- conversions */

LQ_INLINE vint vi_as_int(vfloat a) { return _mm256_castps_si256(a); } /* the same bits */
LQ_INLINE vfloat vf_as_float(vint a) { return _mm256_castsi256_ps(a); }
LQ_INLINE vint vi_from_float(vfloat a) { return _mm256_cvtps_epi32(a); } /* rounds to nearest even */
LQ_INLINE vfloat vf_from_int(vint a) { return _mm256_cvtepi32_ps(a); }
LQ_INLINE vfloat vf_from_int8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
LQ_INLINE vfloat vf_from_uint8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* Half floats in memory, of any alignment. */
LQ_INLINE vfloat vf_load_half(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
LQ_INLINE vfloat vf_load_half_n(const void *p, size_t n) {
    uint16_t halves[V_LANES] = {0};
    memcpy(halves, p, n * sizeof *halves);
    return vf_load_half(halves);
}
LQ_INLINE void vf_store_half(uint16_t *p, vfloat a) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
LQ_INLINE void vf_store_half_n(uint16_t *p, vfloat a, size_t n) {
    uint16_t halves[V_LANES];
    vf_store_half(halves, a);
    memcpy(p, halves, n * sizeof *halves);
}
/* The upper or the lower half float of each lane. */
LQ_INLINE vfloat vf_from_high_half(vint v) {
    vint halves = _mm256_srli_epi32(v, 16);
    halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
}
LQ_INLINE vfloat vf_from_low_half(vint v) { return vf_from_high_half(_mm256_slli_epi32(v, 16)); }

/* ---- integers */

LQ_INLINE vint vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
LQ_INLINE void vi_store(void *p, vint a) { _mm256_storeu_si256((__m256i *)p, a); }
/* Narrowed to 8 or 16 bits, saturated. */
LQ_INLINE void vi_store_int8(int8_t *p, vint a) {
    __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packs_epi16(s, s));
}
LQ_INLINE void vi_store_int16(int16_t *p, vint a) {
    __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storeu_si128((__m128i *)(void *)p, s);
}
LQ_INLINE vint vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
LQ_INLINE vint vi_set1_int8(int x) { return _mm256_set1_epi8((char)x); }
LQ_INLINE vint vi_and(vint a, vint b) { return _mm256_and_si256(a, b); }
LQ_INLINE vint vi_or(vint a, vint b) { return _mm256_or_si256(a, b); }
LQ_INLINE vint vi_xor(vint a, vint b) { return _mm256_xor_si256(a, b); }
LQ_INLINE vint vi_add(vint a, vint b) { return _mm256_add_epi32(a, b); }
LQ_INLINE vint vi_srl(vint a, uint32_t n) { return _mm256_srli_epi32(a, (int)n); }
LQ_INLINE vint vi_sll(vint a, uint32_t n) { return _mm256_slli_epi32(a, (int)n); }
LQ_INLINE vint vi_sra(vint a, uint32_t n) { return _mm256_srai_epi32(a, (int)n); }
/* The bytes at p, shifted right by `low` bits in the first 8 lanes and by `high` in the next 8: here there are no
 * more than 8. */
LQ_INLINE vint vi_load_twice(const void *p, uint32_t low, uint32_t high) {
    (void)high;
    return vi_srl(vi_load(p), low);
}
/* Byte i of a lane is the saturated number in that lane of vector i. The packing instructions work within 128 bits: a
 * b, then a b c d of four lanes each, which have to change places. */
LQ_INLINE vint vi_pack_int8(vint a, vint b, vint c, vint d) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    vint bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
}

/* ---- integers: what strip_*.h asks for besides */

LQ_INLINE vint vi_unpack_low_32(vint a, vint b) { return _mm256_unpacklo_epi32(a, b); } /* within 128 bits */
LQ_INLINE vint vi_unpack_high_32(vint a, vint b) { return _mm256_unpackhi_epi32(a, b); }
LQ_INLINE vint vi_unpack_low_64(vint a, vint b) { return _mm256_unpacklo_epi64(a, b); }
LQ_INLINE vint vi_unpack_high_64(vint a, vint b) { return _mm256_unpackhi_epi64(a, b); }
LQ_INLINE vint vi_shuffle_int8(vint a, vint indices) { return _mm256_shuffle_epi8(a, indices); }
LQ_INLINE vint vi_equal_int8(vint a, vint b) { return _mm256_cmpeq_epi8(a, b); }
/* For vi_shuffle_int8(): byte i of each lane, four times. */
LQ_INLINE vint vi_indices_of_byte(int i) {
    __m128i lane = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(lane), _mm256_set1_epi8((char)i));
}
/* values[b] for bytes b of 0 to 15. */
LQ_INLINE vint vi_look_up_int8(const int8_t values[16], vint b) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)values)), b);
}
/* 16 bytes of rows i and 4 + i. */
LQ_INLINE vint vi_load_rows(const uint8_t *const rows[V_LANES], int i, size_t offset) {
    vint v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(rows[i] + offset)));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(const void *)(rows[4 + i] + offset)), 1);
}

/* ---- integer products: unsigned bytes u and signed bytes s, four products a lane added up in 32 bits */

#ifdef __AVXVNNI__
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
LQ_INLINE vint vi_dot(vint u, vint s) { return vi_add_dot(_mm256_setzero_si256(), u, s); }
/* The sum of two such products. */
LQ_INLINE vint vi_dot_2(vint u0, vint s0, vint u1, vint s1) { return vi_add_dot(vi_dot(u0, s0), u1, s1); }
/* Two products a lane of numbers of 16 bits. */
#define V_HAS_DOT_INT16
LQ_INLINE vint vi_add_dot_int16(vint sum, vint a, vint b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
#else
/* maddubs adds pairs of products in 16 bits: 63 * 127 * 2, or 31 * 127 * 4 where two pairs are added, is the most that
 * fits. madd with ones adds pairs of these in 32 bits. */
LQ_INLINE vint vi_add_pairs(vint sums_16, vint u, vint s) {
    return _mm256_add_epi16(sums_16, _mm256_maddubs_epi16(u, s));
}
LQ_INLINE vint vi_from_pairs(vint sums_16) { return _mm256_madd_epi16(sums_16, _mm256_set1_epi16(1)); }
LQ_INLINE vint vi_dot(vint u, vint s) { return vi_from_pairs(_mm256_maddubs_epi16(u, s)); }
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) { return _mm256_add_epi32(sum, vi_dot(u, s)); }
LQ_INLINE vint vi_dot_2(vint u0, vint s0, vint u1, vint s1) { /* u at most 31 */
    vint pairs = _mm256_add_epi16(_mm256_maddubs_epi16(u0, s0), _mm256_maddubs_epi16(u1, s1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#endif
/* Signed bytes w, as |w| times s with the sign of w. */
LQ_INLINE vint vi_dot_signed(vint w, vint s) { return vi_dot(_mm256_abs_epi8(w), _mm256_sign_epi8(s, w)); }

#endif
