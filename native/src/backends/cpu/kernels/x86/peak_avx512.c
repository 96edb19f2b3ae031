/* peak_avx512.c - as many 8-bit products as AVX-512 without VNNI can do. */
#include <immintrin.h>

static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
}

#include "backends/cpu/kernels/x86/peak_512.h"

void lq_kernels_init_avx512_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
