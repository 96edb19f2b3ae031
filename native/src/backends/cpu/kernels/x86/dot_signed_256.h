/* dot_signed_256.h - products of weights that are unpacked to signed bytes, for dot_signed_avx2.c and dot_grid_avx2.c.
 *
 * Bytes are at most 127 in size, and are multiplied as |w| with x that has the sign of w: a pair is at most
 * 2 * 127 * 127, which fits. The AVX-512 levels use these too. */
#ifndef LQ_CPU_DOT_SIGNED_256_H
#define LQ_CPU_DOT_SIGNED_256_H

#include "backends/cpu/kernels/x86/dot_parts_256.h"

LQ_INLINE float load_half(const uint8_t bytes[2]) { return _cvtsh_ss((unsigned short)load16(bytes)); }

/* ---- blocks of 256 in groups of 16 or 32; a vector is 32 weights */

typedef struct inputs_256 {
    const int8_t *q;
    __m256 d;       /* scale of each 32 activations */
    __m256 sums[2]; /* d times the sum of each 16, in the order of spread_groups() */
} inputs_256;

typedef struct weights_256 {
    __m256i q[8];
    __m256 d[2]; /* scale of each 16 weights: even groups, odd groups */
    __m256 m[2]; /* what is subtracted from each weight of a group; the same order */
} weights_256;

LQ_INLINE inputs_256 load_x_256(const lq_q8_row *x, size_t first_col) {
    inputs_256 in = {x->q + first_col, _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK), {{0}}};
    __m256i sums = load256(x->sums + first_col / 16); /* even groups in the lower halves of 32-bit lanes */
    in.sums[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(sums, 16), 16)), in.d);
    in.sums[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(sums, 16)), in.d);
    return in;
}

/* Widens 16 bytes, one for each group of 16 weights, to two vectors: even groups, odd groups. */
LQ_INLINE void spread_groups(__m128i bytes, __m256i out[2]) {
    __m128i even = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1));
    __m128i odd = _mm_shuffle_epi8(bytes, _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, -1, -1, -1, -1, -1, -1, -1, -1));
    out[0] = _mm256_cvtepi8_epi32(even);
    out[1] = _mm256_cvtepi8_epi32(odd);
}

LQ_INLINE __m256 step_256(__m256 acc, const weights_256 *w, const inputs_256 *in) {
    __m256 even = _mm256_mul_ps(w->d[0], in->d), odd = _mm256_mul_ps(w->d[1], in->d);
    LQ_UNROLL
    for (int i = 0; i < 8; i++) {
        __m256i lane = _mm256_set1_epi32(i);
        __m256 d = _mm256_blend_ps(_mm256_permutevar8x32_ps(even, lane), _mm256_permutevar8x32_ps(odd, lane), 0xf0);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(vi_dot_signed(w->q[i], load256(in->q + 32 * i))), d, acc);
    }
    return acc;
}

/* Defines what LQ_DEFINE_MATMUL needs for a type whose weights are weights_256 without m, all but name_load_w(). */
#define LQ_PLAIN_256(name)                                                                                             \
    typedef inputs_256 name##_inputs;                                                                                  \
    typedef weights_256 name##_weights;                                                                                \
    LQ_INLINE inputs_256 name##_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {                        \
        (void)n_blocks;                                                                                                \
        return load_x_256(x, first_col);                                                                               \
    }                                                                                                                  \
    LQ_INLINE __m256 name##_step(__m256 acc, const weights_256 *w, const inputs_256 *in) {                             \
        return step_256(acc, w, in);                                                                                   \
    }

/* Gives bits 2 k, 2 k + 1 of 32 bytes. */
LQ_INLINE __m256i two_bits(__m256i v, int k) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 2 * k), _mm256_set1_epi8(3));
}

#endif
