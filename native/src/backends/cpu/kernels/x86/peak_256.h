/* peak_256.h - as many 8-bit products as 256-bit vectors can do, shared by peak_avx2.c and peak_avxvnni.c. The
 * including file has included words_256.h or vnni_256.h. */
#ifndef LQ_CPU_PEAK_256_H
#define LQ_CPU_PEAK_256_H

#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

/* Two vectors are 64 bytes; half as many sums as there are registers. */
#define N_SUMS 8

static uint32_t int8_peak(const uint8_t *u, const int8_t *s, size_t n_rounds) {
    __m256i u01[2] = {_mm256_loadu_si256((const __m256i *)(const void *)u),
                      _mm256_loadu_si256((const __m256i *)(const void *)(u + 32))};
    __m256i s01[2] = {_mm256_loadu_si256((const __m256i *)(const void *)s),
                      _mm256_loadu_si256((const __m256i *)(const void *)(s + 32))};
    __m256i sums[N_SUMS];
    for (int i = 0; i < N_SUMS; i++) sums[i] = _mm256_setzero_si256();
    for (size_t round = 0; round < n_rounds; round++) {
        LQ_UNROLL for (int i = 0; i < 2 * LQ_PEAK_DOTS; i++) {
            __asm__ volatile("" : "+x"(u01[i % 2])); /* may have changed: no product is taken out of the loop */
            sums[i % N_SUMS] = add_dot(sums[i % N_SUMS], u01[i % 2], s01[i % 2]);
        }
    }
    uint32_t lanes[8], sum = 0;
    for (int i = 1; i < N_SUMS; i++) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    _mm256_storeu_si256((__m256i *)(void *)lanes, sums[0]);
    for (int i = 0; i < 8; i++) sum += lanes[i];
    return sum;
}

#endif
