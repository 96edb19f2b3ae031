/* dot_avx512vnni.c - integer products with AVX-512 VNNI: one instruction from bytes to 32-bit sums. */
#include <immintrin.h>

static inline __m512i dot4(__m512i u, __m512i s) { return _mm512_dpbusd_epi32(_mm512_setzero_si512(), u, s); }

static inline __m512i dot8(__m512i u0, __m512i s0, __m512i u1, __m512i s1) {
    return _mm512_dpbusd_epi32(dot4(u0, s0), u1, s1);
}

/* Signed weights are made unsigned by adding 128. */
#define LQ_DOT_SIGNED 0
static inline __m512i dot4_q8_0(__m512i w, __m512i s) {
    return dot4(_mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)), s);
}

#include "backends/cpu/dot_avx512.h"

void lq_kernels_init_avx512vnni_dot(lq_kernels *kernels) { set_products(kernels); }
