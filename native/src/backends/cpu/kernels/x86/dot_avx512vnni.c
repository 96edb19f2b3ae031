/* dot_avx512vnni.c - integer products with AVX-512 VNNI: one instruction from bytes to 32-bit sums. */
#include <immintrin.h>

static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) { return _mm512_dpbusd_epi32(acc, u, s); }

static inline __m512i add_dots(__m512i acc, __m512i u0, __m512i s0, __m512i u1, __m512i s1) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, u0, s0), u1, s1);
}

/* Signed weights are made unsigned by adding 128, which the offset takes back. */
static inline __m512i signed_offset(__m512i s) {
    __m512i zero = _mm512_setzero_si512();
    return _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)0x80), s));
}

static inline __m512i add_signed_dot(__m512i offset, __m512i w, __m512i s) {
    return _mm512_dpbusd_epi32(offset, _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)), s);
}

#include "backends/cpu/kernels/x86/dot_512.h"

void lq_kernels_init_avx512vnni_dot(lq_kernels *kernels) { set_products(kernels); }
