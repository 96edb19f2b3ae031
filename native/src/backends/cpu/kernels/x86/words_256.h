/* words_256.h - sums of products of unsigned bytes u and signed bytes s with AVX2: maddubs adds pairs up to 16 bits (at
 * most 63 * 127 * 2, or 31 * 127 * 4 where two are added, fits), madd with ones pairs of these to 32. */
#ifndef LQ_CPU_WORDS_256_H
#define LQ_CPU_WORDS_256_H

#include <immintrin.h>

#include "backends/cpu/kernels/simd.h"

/* 8 sums of 4 products. */
LQ_INLINE __m256i dot4(__m256i u, __m256i s) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
}

/* 8 sums of 8 products, for u up to 31. */
LQ_INLINE __m256i dot8(__m256i u0, __m256i s0, __m256i u1, __m256i s1) {
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(u0, s0), _mm256_maddubs_epi16(u1, s1));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* acc and 8 sums of 4 products. */
LQ_INLINE __m256i add_dot(__m256i acc, __m256i u, __m256i s) { return _mm256_add_epi32(acc, dot4(u, s)); }

#endif
