/* dot_signed_avx2.c - products with AVX2 of weights that become signed bytes by a table: MXFP4. */
#include "backends/cpu/dot_signed_avx2.h"
#include "formats/iq_values.h"
#include "formats/mxfp4.h"

/* Nibbles of 16 bytes, the low ones first. */
LQ_INLINE __m256i load_nibbles(const uint8_t *qs) {
    __m128i v = load128(qs);
    return low_nibbles(_mm256_set_m128i(_mm_srli_epi16(v, 4), v));
}

LQ_INLINE __m256i look_up(const int8_t table[16], __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), codes);
}

/* ---- blocks of 32 with one scale */

typedef struct block_inputs {
    __m256i q;
    __m256 d;
} block_inputs;

typedef struct block_weights {
    __m256i q;
    __m256 d;
} block_weights;

LQ_INLINE block_inputs load_block_x(const lq_q8_row *x, size_t first_col) {
    block_inputs in = {load256(x->q + first_col), _mm256_broadcast_ss(x->d + first_col / LQ_Q8_BLOCK)};
    return in;
}

LQ_INLINE __m256 block_step(__m256 acc, const block_weights *w, const block_inputs *in) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(signed_dot4(w->q, in->q)), _mm256_mul_ps(w->d, in->d), acc);
}

#define LQ_PLAIN_BLOCK(name)                                                                                           \
    typedef block_inputs name##_inputs;                                                                                \
    typedef block_weights name##_weights;                                                                              \
    LQ_INLINE block_inputs name##_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {                      \
        (void)n_blocks;                                                                                                \
        return load_block_x(x, first_col);                                                                             \
    }                                                                                                                  \
    LQ_INLINE __m256 name##_step(__m256 acc, const block_weights *w, const block_inputs *in) {                         \
        return block_step(acc, w, in);                                                                                 \
    }

LQ_PLAIN_BLOCK(mxfp4)

LQ_INLINE mxfp4_weights mxfp4_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_mxfp4 *b = (const lq_block_mxfp4 *)blocks;
    (void)n_blocks;
    /* 2^(e - 128): for e below 2 a subnormal number */
    uint32_t bits = b->e < 2 ? 0x00200000u << b->e : (uint32_t)(b->e - 1) << 23;
    block_weights w = {look_up(lq_e2m1_values, load_nibbles(b->qs)),
                       _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)bits))};
    return w;
}

LQ_DEFINE_MATMUL(mxfp4, LQ_MXFP4_LEN, sizeof(lq_block_mxfp4), 1, __m256, _mm256_setzero_ps, sums8, 4, 2)

void lq_kernels_init_avx2_dot_signed(lq_kernels *kernels) { kernels->matmul_q8[LQ_TYPE_MXFP4] = mxfp4; }
