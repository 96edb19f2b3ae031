/* strip_256.h - vectors of 256 bits for strip_tile.h: 8 rows of weights, a 32-bit lane each. */
#ifndef LQ_CPU_STRIP_256_H
#define LQ_CPU_STRIP_256_H

#include <immintrin.h>
#include <stdint.h>

#include "backends/cpu/kernels/simd.h"

#define V_ROWS 8

typedef __m256i vint;
typedef __m256 vfloat;

LQ_INLINE vint v_load(const void *p) { return _mm256_loadu_si256(p); }
LQ_INLINE vfloat v_loadf(const float *p) { return _mm256_loadu_ps(p); }
LQ_INLINE void v_storef(float *p, vfloat v) { _mm256_storeu_ps(p, v); }
LQ_INLINE vint v_set8(int value) { return _mm256_set1_epi8((char)value); }
LQ_INLINE vint v_set32(int32_t value) { return _mm256_set1_epi32(value); }
LQ_INLINE vfloat v_setf(float value) { return _mm256_set1_ps(value); }
LQ_INLINE vint v_and(vint a, vint b) { return _mm256_and_si256(a, b); }
LQ_INLINE vint v_or(vint a, vint b) { return _mm256_or_si256(a, b); }
LQ_INLINE vint v_xor(vint a, vint b) { return _mm256_xor_si256(a, b); }
LQ_INLINE vint v_srl(vint v, int n) { return _mm256_srli_epi32(v, n); }
LQ_INLINE vint v_sll(vint v, int n) { return _mm256_slli_epi32(v, n); }
LQ_INLINE vint v_sra32(vint v, int n) { return _mm256_srai_epi32(v, n); }
LQ_INLINE vint v_add32(vint a, vint b) { return _mm256_add_epi32(a, b); }
LQ_INLINE vint v_unpacklo32(vint a, vint b) { return _mm256_unpacklo_epi32(a, b); }
LQ_INLINE vint v_unpackhi32(vint a, vint b) { return _mm256_unpackhi_epi32(a, b); }
LQ_INLINE vint v_unpacklo64(vint a, vint b) { return _mm256_unpacklo_epi64(a, b); }
LQ_INLINE vint v_unpackhi64(vint a, vint b) { return _mm256_unpackhi_epi64(a, b); }
LQ_INLINE vint v_shuffle8(vint v, vint places) { return _mm256_shuffle_epi8(v, places); }
LQ_INLINE vint v_cmpeq8(vint a, vint b) { return _mm256_cmpeq_epi8(a, b); }
LQ_INLINE vfloat v_as_float(vint v) { return _mm256_castsi256_ps(v); }
LQ_INLINE vfloat v_to_float(vint v) { return _mm256_cvtepi32_ps(v); }
LQ_INLINE vfloat v_mul(vfloat a, vfloat b) { return _mm256_mul_ps(a, b); }
LQ_INLINE vfloat v_fmadd(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }

/* The upper and the lower half float of each lane. */
LQ_INLINE vfloat v_half_high(vint v) {
    vint words = _mm256_srli_epi32(v, 16);
    words = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(words));
}
LQ_INLINE vfloat v_half_low(vint v) { return v_half_high(_mm256_slli_epi32(v, 16)); }

/* Four times byte i of each lane, as places of v_shuffle8. */
LQ_INLINE vint v_byte_of_dword(int i) {
    __m128i lane = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(lane), _mm256_set1_epi8((char)i));
}

/* values[v] for bytes v of 0 to 15. */
LQ_INLINE vint v_look_up(const int8_t values[16], vint v) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values)), v);
}

/* 16 bytes of rows i and 4 + i. */
LQ_INLINE vint v_load_lanes(const uint8_t *const rows[V_ROWS], int i, size_t offset) {
    vint v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows[i] + offset)));
    return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i *)(rows[4 + i] + offset)), 1);
}

#endif
