/* dot_signed_avx2.c - products with AVX2 of weights that become signed bytes by a table or an offset: Q2_K, Q3_K, Q5_1,
 * IQ4_NL, IQ4_XS, MXFP4. */
#include "backends/cpu/kernels/x86/dot_signed_256.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/iq_values.h"
#include "formats/mxfp4.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q5_1.h"

/* Loads the nibbles of 16 bytes, the low ones first. */
LQ_INLINE __m256i load_nibbles(const uint8_t *qs) {
    __m128i v = load128(qs);
    return low_nibbles(_mm256_set_m128i(_mm_srli_epi16(v, 4), v));
}

LQ_INLINE __m256i look_up(const int8_t table[16], __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), codes);
}

/* ---- blocks of 32 with one scale: IQ4_NL, MXFP4, and Q5_1 with an offset */

typedef struct block_inputs {
    __m256i q;
    __m256 d;
    float sum; /* d times the sum of q */
} block_inputs;

typedef struct block_weights {
    __m256i q;
    __m256 d;
    float m;
} block_weights;

LQ_INLINE block_inputs load_block_x(const lq_q8_row *x, size_t first_col) {
    block_inputs in = {load256(x->q + first_col), _mm256_broadcast_ss(x->d + first_col / LQ_Q8_BLOCK), 0.0f};
    return in;
}

LQ_INLINE __m256 block_step(__m256 acc, const block_weights *w, const block_inputs *in) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(vi_dot_signed(w->q, in->q)), _mm256_mul_ps(w->d, in->d), acc);
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

LQ_PLAIN_BLOCK(iq4_nl)

LQ_INLINE iq4_nl_weights iq4_nl_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq4_nl *b = (const lq_block_iq4_nl *)blocks;
    (void)n_blocks;
    block_weights w = {look_up(lq_iq4_values, load_nibbles(b->qs)), _mm256_set1_ps(load_half(b->d)), 0.0f};
    return w;
}

LQ_PLAIN_BLOCK(mxfp4)

LQ_INLINE mxfp4_weights mxfp4_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_mxfp4 *b = (const lq_block_mxfp4 *)blocks;
    (void)n_blocks;
    /* 2^(e - 128): for e below 2 a subnormal number */
    uint32_t bits = b->e < 2 ? 0x00200000u << b->e : (uint32_t)(b->e - 1) << 23;
    block_weights w = {look_up(lq_e2m1_values, load_nibbles(b->qs)),
                       _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)bits)), 0.0f};
    return w;
}

typedef block_inputs q5_1_inputs;
typedef block_weights q5_1_weights;

LQ_INLINE q5_1_inputs q5_1_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    block_inputs in = load_block_x(x, first_col);
    const int16_t *sums = x->sums + first_col / 16;
    (void)n_blocks;
    in.sum = (float)(sums[0] + sums[1]) * x->d[first_col / LQ_Q8_BLOCK];
    return in;
}

LQ_INLINE q5_1_weights q5_1_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q5_1 *b = (const lq_block_q5_1 *)blocks;
    /* byte i of the vector needs bit i of qh: pick its byte, then test its bit */
    const __m256i bytes = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                           3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    (void)n_blocks;
    __m256i qh = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(load32(b->qh)), bytes), bit);
    __m256i fifth = _mm256_and_si256(_mm256_cmpeq_epi8(qh, bit), _mm256_set1_epi8(16));
    block_weights w = {_mm256_or_si256(load_nibbles(b->qs), fifth), _mm256_set1_ps(load_half(b->d)), load_half(b->m)};
    return w;
}

LQ_INLINE __m256 q5_1_step(__m256 acc, const q5_1_weights *w, const q5_1_inputs *in) {
    acc = _mm256_add_ps(acc, _mm256_zextps128_ps256(_mm_set_ss(w->m * in->sum)));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(vi_dot(w->q, in->q)), _mm256_mul_ps(w->d, in->d), acc);
}

/* ---- blocks of 256: Q2_K, Q3_K, IQ4_XS */

typedef inputs_256 q2_k_inputs;
typedef weights_256 q2_k_weights;

LQ_INLINE q2_k_inputs q2_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
    return load_x_256(x, first_col);
}

LQ_INLINE q2_k_weights q2_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q2_k *b = (const lq_block_q2_k *)blocks;
    __m128i scales = load128(b->scales), nibble = _mm_set1_epi8(15);
    __m256 d = _mm256_set1_ps(load_half(b->d)), dmin = _mm256_set1_ps(load_half(b->dmin));
    __m256i groups[2];
    weights_256 w;
    (void)n_blocks;
    spread_groups(_mm_and_si128(scales, nibble), groups);
    for (int i = 0; i < 2; i++) w.d[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(groups[i]), d);
    spread_groups(_mm_and_si128(_mm_srli_epi16(scales, 4), nibble), groups);
    for (int i = 0; i < 2; i++) w.m[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(groups[i]), dmin);
    LQ_UNROLL
    for (int i = 0; i < 8; i++) w.q[i] = two_bits(load256(b->qs + i / 4 * 32), i % 4);
    return w;
}

LQ_INLINE __m256 q2_k_step(__m256 acc, const q2_k_weights *w, const q2_k_inputs *in) {
    acc = _mm256_fnmadd_ps(w->m[0], in->sums[0], acc);
    acc = _mm256_fnmadd_ps(w->m[1], in->sums[1], acc);
    return step_256(acc, w, in);
}

LQ_PLAIN_256(q3_k)

/* Loads the 16 scales of a block minus 32. q3_k.c says where their bits are. */
LQ_INLINE __m128i load_scales_q3_k(const uint8_t scales[12]) {
    uint32_t s[3], packed[4];
    memcpy(s, scales, 12);
    for (int i = 0; i < 4; i++) packed[i] = (s[i % 2] >> i / 2 * 4 & 0x0f0f0f0f) | (s[2] >> 2 * i & 0x03030303) << 4;
    __m128i codes = _mm_setr_epi32((int32_t)packed[0], (int32_t)packed[1], (int32_t)packed[2], (int32_t)packed[3]);
    return _mm_sub_epi8(codes, _mm_set1_epi8(32));
}

LQ_INLINE q3_k_weights q3_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q3_k *b = (const lq_block_q3_k *)blocks;
    __m256 d = _mm256_set1_ps(load_half(b->d));
    __m256i groups[2], hmask = load256(b->hmask);
    weights_256 w;
    (void)n_blocks;
    spread_groups(load_scales_q3_k(b->scales), groups);
    for (int i = 0; i < 2; i++) w.d[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(groups[i]), d);
    LQ_UNROLL
    for (int i = 0; i < 8; i++) {
        __m256i bit = _mm256_set1_epi8((char)(1 << i));
        /* subtract 4 where the bit is not set */
        __m256i missing =
            _mm256_andnot_si256(_mm256_cmpeq_epi8(_mm256_and_si256(hmask, bit), bit), _mm256_set1_epi8(4));
        w.q[i] = _mm256_sub_epi8(two_bits(load256(b->qs + i / 4 * 32), i % 4), missing);
    }
    return w;
}

LQ_PLAIN_256(iq4_xs)

LQ_INLINE iq4_xs_weights iq4_xs_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq4_xs *b = (const lq_block_iq4_xs *)blocks;
    const __m256i nibble = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i pair = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    weights_256 w;
    (void)n_blocks;
    __m256i low =
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(load32(b->scales_l)), nibble), _mm256_set1_epi32(15));
    __m256i high =
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(load16(b->scales_h)), pair), _mm256_set1_epi32(3));
    __m256i codes = _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), _mm256_set1_epi32(32));
    w.d[0] = w.d[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(codes), _mm256_set1_ps(load_half(b->d)));
    LQ_UNROLL
    for (int i = 0; i < 8; i++) w.q[i] = look_up(lq_iq4_values, load_nibbles(b->qs + 16 * i));
    return w;
}

LQ_DEFINE_MATMUL(iq4_nl, LQ_IQ4_NL_LEN, sizeof(lq_block_iq4_nl), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 2)
LQ_DEFINE_MATMUL(mxfp4, LQ_MXFP4_LEN, sizeof(lq_block_mxfp4), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 2)
LQ_DEFINE_MATMUL(q5_1, LQ_Q5_1_LEN, sizeof(lq_block_q5_1), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 2)
LQ_DEFINE_MATMUL(q2_k, LQ_Q2_K_LEN, sizeof(lq_block_q2_k), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(q3_k, LQ_Q3_K_LEN, sizeof(lq_block_q3_k), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq4_xs, LQ_IQ4_XS_LEN, sizeof(lq_block_iq4_xs), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)

void lq_kernels_init_avx2_dot_signed(lq_kernels *kernels) {
    kernels->matmul_q8[LQ_TYPE_Q5_1] = q5_1;
    kernels->matmul_q8[LQ_TYPE_Q2_K] = q2_k;
    kernels->matmul_q8[LQ_TYPE_Q3_K] = q3_k;
    kernels->matmul_q8[LQ_TYPE_IQ4_NL] = iq4_nl;
    kernels->matmul_q8[LQ_TYPE_IQ4_XS] = iq4_xs;
    kernels->matmul_q8[LQ_TYPE_MXFP4] = mxfp4;
}
