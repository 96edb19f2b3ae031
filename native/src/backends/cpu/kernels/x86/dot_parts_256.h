/* dot_parts_256.h - small pieces that the products with 256-bit vectors share. */
#ifndef LQ_CPU_DOT_PARTS_256_H
#define LQ_CPU_DOT_PARTS_256_H

#include <immintrin.h>
#include <string.h>

#include "backends/cpu/kernels/matmul_tile.h"

LQ_INLINE int32_t load32(const void *p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

LQ_INLINE int load16(const void *p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

LQ_INLINE __m128i load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
LQ_INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

LQ_INLINE __m256i two_lanes(const void *low, const void *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(low)), load128(high), 1);
}

LQ_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
LQ_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

LQ_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_hadd_ps(s, s);
    return _mm_cvtss_f32(_mm_hadd_ps(s, s));
}

/* The sum of each vector's lanes. */
LQ_INLINE void sums8(float sums[4], __m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

LQ_INLINE __m256 spread(__m256 v, int low, int high) {
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(low, low, low, low, high, high, high, high));
}

#endif
