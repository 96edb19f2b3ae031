/* dot_parts_256.h - small pieces that the products with 256-bit vectors share. */
#ifndef LQ_CPU_DOT_PARTS_256_H
#define LQ_CPU_DOT_PARTS_256_H

#include <immintrin.h>
#include <string.h>

#include "backends/cpu/kernels/matmul_tile.h"
#include "backends/cpu/kernels/x86/vec_256.h"

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

LQ_INLINE __m256 spread(__m256 v, int low, int high) {
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(low, low, low, low, high, high, high, high));
}

#endif
