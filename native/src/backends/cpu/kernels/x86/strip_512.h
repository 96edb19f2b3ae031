/* strip_512.h - vectors of 512 bits for strip_tile.h: 16 rows of weights, a 32-bit lane each. */
#ifndef LQ_CPU_STRIP_512_H
#define LQ_CPU_STRIP_512_H

#include <immintrin.h>
#include <stdint.h>

#include "backends/cpu/kernels/simd.h"

#define V_ROWS 16

typedef __m512i vint;
typedef __m512 vfloat;

LQ_INLINE vint v_load(const void *p) { return _mm512_loadu_si512(p); }
LQ_INLINE vfloat v_loadf(const float *p) { return _mm512_loadu_ps(p); }
LQ_INLINE void v_storef(float *p, vfloat v) { _mm512_storeu_ps(p, v); }
LQ_INLINE vint v_set8(int value) { return _mm512_set1_epi8((char)value); }
LQ_INLINE vint v_set32(int32_t value) { return _mm512_set1_epi32(value); }
LQ_INLINE vfloat v_setf(float value) { return _mm512_set1_ps(value); }
LQ_INLINE vint v_and(vint a, vint b) { return _mm512_and_si512(a, b); }
LQ_INLINE vint v_or(vint a, vint b) { return _mm512_or_si512(a, b); }
LQ_INLINE vint v_xor(vint a, vint b) { return _mm512_xor_si512(a, b); }
LQ_INLINE vint v_srl(vint v, int n) { return _mm512_srli_epi32(v, (unsigned)n); }
LQ_INLINE vint v_sll(vint v, int n) { return _mm512_slli_epi32(v, (unsigned)n); }
LQ_INLINE vint v_sra32(vint v, int n) { return _mm512_srai_epi32(v, (unsigned)n); }
LQ_INLINE vint v_add32(vint a, vint b) { return _mm512_add_epi32(a, b); }
LQ_INLINE vint v_unpacklo32(vint a, vint b) { return _mm512_unpacklo_epi32(a, b); }
LQ_INLINE vint v_unpackhi32(vint a, vint b) { return _mm512_unpackhi_epi32(a, b); }
LQ_INLINE vint v_unpacklo64(vint a, vint b) { return _mm512_unpacklo_epi64(a, b); }
LQ_INLINE vint v_unpackhi64(vint a, vint b) { return _mm512_unpackhi_epi64(a, b); }
LQ_INLINE vint v_shuffle8(vint v, vint places) { return _mm512_shuffle_epi8(v, places); }
LQ_INLINE vint v_cmpeq8(vint a, vint b) { return _mm512_movm_epi8(_mm512_cmpeq_epi8_mask(a, b)); }
LQ_INLINE vfloat v_as_float(vint v) { return _mm512_castsi512_ps(v); }
LQ_INLINE vfloat v_to_float(vint v) { return _mm512_cvtepi32_ps(v); }
LQ_INLINE vfloat v_mul(vfloat a, vfloat b) { return _mm512_mul_ps(a, b); }
LQ_INLINE vfloat v_fmadd(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }

/* The lower and the upper half float of each lane. */
LQ_INLINE vfloat v_half_low(vint v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
LQ_INLINE vfloat v_half_high(vint v) { return v_half_low(_mm512_srli_epi32(v, 16)); }

/* Four times byte i of each lane, as places of v_shuffle8. */
LQ_INLINE vint v_byte_of_dword(int i) {
    __m128i lane = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_add_epi8(_mm512_broadcast_i32x4(lane), _mm512_set1_epi8((char)i));
}

/* values[v] for bytes v of 0 to 15. */
LQ_INLINE vint v_look_up(const int8_t values[16], vint v) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)values)), v);
}

/* 16 bytes of rows i, 4 + i, 8 + i, 12 + i. */
LQ_INLINE vint v_load_lanes(const uint8_t *const rows[V_ROWS], int i, size_t offset) {
    vint v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(rows[i] + offset)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[4 + i] + offset)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[8 + i] + offset)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(rows[12 + i] + offset)), 3);
}

#endif
