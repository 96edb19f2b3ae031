/* peak_512.h - as many 8-bit products as 512-bit vectors can do, shared by peak_avx512.c and peak_avx512vnni.c. The
 * including file defines __m512i add_dot(__m512i acc, __m512i u, __m512i s) as for dot_512.h. */
#ifndef LQ_CPU_PEAK_512_H
#define LQ_CPU_PEAK_512_H

#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

static uint32_t int8_peak(const uint8_t *u, const int8_t *s, size_t n_rounds) {
    __m512i u0 = _mm512_loadu_si512(u), s0 = _mm512_loadu_si512(s), sums[LQ_PEAK_DOTS];
    LQ_UNROLL for (int i = 0; i < LQ_PEAK_DOTS; i++) sums[i] = _mm512_setzero_si512();
    for (size_t round = 0; round < n_rounds; round++) {
        LQ_UNROLL for (int i = 0; i < LQ_PEAK_DOTS; i++) {
            __asm__ volatile("" : "+v"(u0)); /* may have changed: equal sums are not computed once for all */
            sums[i] = add_dot(sums[i], u0, s0);
        }
    }
    for (int i = 1; i < LQ_PEAK_DOTS; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    return (uint32_t)_mm512_reduce_add_epi32(sums[0]);
}

#endif
