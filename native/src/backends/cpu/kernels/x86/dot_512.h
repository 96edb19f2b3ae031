/* dot_512.h - integer products with 512-bit vectors, shared by dot_avx512.c and dot_avx512vnni.c.
 *
 * 16-byte halves are arranged so that each 128-bit lane belongs to one block (or group) and low and high nibbles add up
 * before the conversion to float. */
#ifndef LQ_CPU_DOT_512_H
#define LQ_CPU_DOT_512_H

#include <immintrin.h>
#include <string.h>

#include "backends/cpu/kernels/matmul_tile.h"
#include "backends/cpu/kernels/x86/vec_512.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

/* ---- small pieces */

LQ_INLINE int load16(const void *p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

LQ_INLINE uint32_t load32(const void *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

LQ_INLINE __m128i load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
LQ_INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
LQ_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }

/* Loads the first n_bytes (fewer than 64); the rest are zeros. */
LQ_INLINE __m512i load_part(const void *p, size_t n_bytes) {
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << n_bytes) - 1, p);
}

LQ_INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
LQ_INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

/* Spreads the floats a, b, c, d of v to one 128-bit lane each. */
LQ_INLINE __m512 spread(__m512 v, int a, int b, int c, int d) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d), v);
}

/* add_signed_dot(signed_offset(s), w, s): 16 sums of 4 products of signed bytes. With VNNI 128 is added to w, which
 * makes it unsigned, and the offset takes that back. */
#ifdef __AVX512VNNI__
LQ_INLINE __m512i signed_offset(__m512i s) {
    __m512i zero = _mm512_setzero_si512();
    return _mm512_sub_epi32(zero, vi_add_dot(zero, _mm512_set1_epi8((char)0x80), s));
}

LQ_INLINE __m512i add_signed_dot(__m512i offset, __m512i w, __m512i s) {
    return vi_add_dot(offset, _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)), s);
}
#else
LQ_INLINE __m512i signed_offset(__m512i s) {
    (void)s;
    return _mm512_setzero_si512();
}

LQ_INLINE __m512i add_signed_dot(__m512i offset, __m512i w, __m512i s) {
    return _mm512_add_epi32(offset, vi_dot_signed(w, s));
}
#endif

/* ---- blocks of 32 with nibbles: Q4_0, Q4_1, Q5_0; a chunk is four blocks, one in each 128-bit lane */

typedef struct inputs_32 {
    __m512i low, high; /* activations 0..15 and 16..31 of the blocks */
    __m512i offset;    /* added to the integer product: minus the offset of the stored weights times the activations */
    __m512 d;          /* each block's scale in its lane */
    __m512 sums;       /* 0, d * sum of block 0, 0, d * sum of block 1... to 3, 0... */
} inputs_32;

typedef struct weights_32 {
    __m512i low, high;
    __m512 d;
    __m512 dm; /* d, m of block 0, d, m of block 1... to 3, 0... */
} weights_32;

/* Loads all but sums. offset: how much larger stored weights are than their values. */
LQ_INLINE inputs_32 load_inputs_32(const lq_q8_row *x, size_t first_col, size_t n_blocks, int offset) {
    inputs_32 in;
    const int8_t *q = x->q + first_col;
    const float *d = x->d + first_col / LQ_Q8_BLOCK;
    __mmask8 lanes = (__mmask8)((1u << n_blocks) - 1);
    __m512i x0, x1; /* quarters of two blocks each */
    if (n_blocks == 4) {
        x0 = load512(q);
        x1 = load512(q + 64);
    } else {
        x0 = n_blocks >= 2 ? load512(q) : load_part(q, 32);
        x1 = n_blocks == 3 ? load_part(q + 64, 32) : _mm512_setzero_si512();
    }
    in.low = _mm512_shuffle_i64x2(x0, x1, 0x88);
    in.high = _mm512_shuffle_i64x2(x0, x1, 0xdd);
    in.d = spread(_mm512_castps128_ps512(_mm_maskz_loadu_ps(lanes, d)), 0, 1, 2, 3);
    in.sums = _mm512_setzero_ps();
    in.offset = _mm512_setzero_si512();
    if (offset != 0) {
        __m512i u = _mm512_set1_epi8((char)offset);
        in.offset = _mm512_sub_epi32(in.offset, vi_add_dot_2(in.offset, u, in.low, u, in.high));
    }
    return in;
}

LQ_INLINE __m512 scaled_step_32(__m512 acc, const weights_32 *w, const inputs_32 *in) {
    __m512i product = vi_add_dot_2(in->offset, w->low, in->low, w->high, in->high);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), _mm512_mul_ps(w->d, in->d), acc);
}

typedef inputs_32 q4_0_inputs;
typedef weights_32 q4_0_weights;

LQ_INLINE q4_0_inputs q4_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    return load_inputs_32(x, first_col, n_blocks, 8);
}

/* Indices of int16 numbers: LQ_INT16_8(a) = a..a+7, LQ_INT16_4X(a) = a four times. */
#define LQ_INT16_8(a) (a), (a) + 1, (a) + 2, (a) + 3, (a) + 4, (a) + 5, (a) + 6, (a) + 7
#define LQ_INT16_4X(a) (a), (a), (a), (a)

/* 72 bytes of four blocks as two overlapping vectors, the second from byte 8 on; a block is 9 int16 numbers: d, 8 of
 * qs. */
LQ_INLINE q4_0_weights q4_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    static const uint16_t qs_int16[32] = {LQ_INT16_8(1), LQ_INT16_8(10), LQ_INT16_8(19), LQ_INT16_8(32 + 28 - 4)};
    static const uint16_t d_int16[32] = {LQ_INT16_4X(0), LQ_INT16_4X(9), LQ_INT16_4X(18), LQ_INT16_4X(27)};
    size_t n_bytes = n_blocks * sizeof(lq_block_q4_0);
    __m512i a = n_blocks == 4 ? load512(blocks) : load_part(blocks, n_bytes);
    __m512i b = n_blocks == 4 ? load512(blocks + 8) : _mm512_setzero_si512();
    __m512i qs = _mm512_permutex2var_epi16(a, load512(qs_int16), b);
    __m512i d = _mm512_permutexvar_epi16(load512(d_int16), a);
    weights_32 w;
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.d = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
    return w;
}

LQ_INLINE __m512 q4_0_step(__m512 acc, const q4_0_weights *w, const q4_0_inputs *in) {
    return scaled_step_32(acc, w, in);
}

typedef inputs_32 q4_1_inputs;
typedef weights_32 q4_1_weights;

LQ_INLINE q4_1_inputs q4_1_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in = load_inputs_32(x, first_col, n_blocks, 0);
    __mmask8 lanes = (__mmask8)((1u << n_blocks) - 1);
    /* adds pairs of 16-bit sums to one 32-bit sum for each block, times d, and moves them to odd lanes */
    __m128i pairs = _mm_maskz_loadu_epi32(lanes, x->sums + first_col / 16);
    __m128 totals = _mm_cvtepi32_ps(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    totals = _mm_mul_ps(totals, _mm_maskz_loadu_ps(lanes, x->d + first_col / LQ_Q8_BLOCK));
    in.sums = _mm512_maskz_permutexvar_ps(0xaa, _mm512_setr_epi32(0, 0, 0, 1, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0),
                                          _mm512_castps128_ps512(totals));
    return in;
}

/* 80 bytes of four blocks as two overlapping vectors, the second from byte 16 on; a block is 5 dwords: dm, 4 of qs. */
LQ_INLINE q4_1_weights q4_1_load_w(const uint8_t *blocks, size_t n_blocks) {
    const __m512i qs_dwords = _mm512_setr_epi32(1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 28, 29, 30, 31);
    const __m512i dm_dwords = _mm512_setr_epi32(0, 5, 10, 15, 0, 5, 10, 15, 0, 5, 10, 15, 0, 5, 10, 15);
    size_t n_bytes = n_blocks * sizeof(lq_block_q4_1);
    __m512i a = n_blocks == 4 ? load512(blocks) : load_part(blocks, n_bytes);
    __m512i b = n_blocks == 4 ? load512(blocks + 16) : _mm512_setzero_si512();
    __m512i qs = _mm512_permutex2var_epi32(a, qs_dwords, b);
    __m512i dm = _mm512_permutexvar_epi32(dm_dwords, a);
    weights_32 w;
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.dm = _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm512_castsi512_si128(dm)));
    w.d = spread(w.dm, 0, 2, 4, 6);
    return w;
}

LQ_INLINE __m512 q4_1_step(__m512 acc, const q4_1_weights *w, const q4_1_inputs *in) {
    acc = _mm512_fmadd_ps(w->dm, in->sums, acc);
    return scaled_step_32(acc, w, in);
}

typedef inputs_32 q5_0_inputs;
typedef weights_32 q5_0_weights;

LQ_INLINE q5_0_inputs q5_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    return load_inputs_32(x, first_col, n_blocks, 16);
}

/* 88 bytes of four blocks as two overlapping vectors, the second from byte 24 on; a block is 11 int16 numbers: d, 2 of
 * qh, 8 of qs. The lower halves of the four qh are the fifth bits of the low vector's 64 weights, the upper ones of the
 * high's; general registers have time to put them together. */
LQ_INLINE q5_0_weights q5_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    enum { B = 32 - 12 }; /* number i of the blocks is number B + i of (a, b) */
    static const uint16_t qs_int16[32] = {LQ_INT16_8(3), LQ_INT16_8(14), LQ_INT16_8(B + 25), LQ_INT16_8(B + 36)};
    static const uint16_t d_int16[32] = {LQ_INT16_4X(0), LQ_INT16_4X(11), LQ_INT16_4X(22), LQ_INT16_4X(B + 33)};
    static const uint16_t fifth_int16[32] = {LQ_INT16_8(1), LQ_INT16_8(12), LQ_INT16_8(23), LQ_INT16_8(B + 34)};
    size_t n_bytes = n_blocks * sizeof(lq_block_q5_0);
    __m512i a, b;
    if (n_blocks == 4) {
        a = load512(blocks);
        b = load512(blocks + 24);
    } else {
        a = n_bytes < 64 ? load_part(blocks, n_bytes) : load512(blocks);
        b = n_bytes > 24 ? load_part(blocks + 24, n_bytes - 24) : _mm512_setzero_si512();
    }
    /* the fifth bits of a block are four bytes, one for each eight weights */
    __m512i fifth = _mm512_permutex2var_epi16(a, load512(fifth_int16), b);
    const __m512i bit = _mm512_set1_epi64((long long)0x8040201008040201ull);
    const __m128i first = _mm_set_epi64x(0x0101010101010101, 0),
                  second = _mm_set_epi64x(0x0303030303030303, 0x0202020202020202);
    __mmask64 low = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, _mm512_broadcast_i32x4(first)), bit);
    __mmask64 high = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, _mm512_broadcast_i32x4(second)), bit);
    __m512i qs = _mm512_permutex2var_epi16(a, load512(qs_int16), b);
    __m512i d = _mm512_permutex2var_epi16(a, load512(d_int16), b);
    weights_32 w;
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.low = _mm512_mask_add_epi8(w.low, low, w.low, _mm512_set1_epi8(16));
    w.high = _mm512_mask_add_epi8(w.high, high, w.high, _mm512_set1_epi8(16));
    w.d = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
    return w;
}

LQ_INLINE __m512 q5_0_step(__m512 acc, const q5_0_weights *w, const q5_0_inputs *in) {
    return scaled_step_32(acc, w, in);
}

/* ---- Q8_0: a chunk is four blocks, two in each vector */

typedef struct q8_0_inputs {
    __m512i q[2], offset[2];
    __m128 d;
} q8_0_inputs;

typedef struct q8_0_weights {
    __m512i q[2];
    __m128 d;
} q8_0_weights;

LQ_INLINE q8_0_inputs q8_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    q8_0_inputs in; /* beyond the last block d is 0, and q may be anything */
    in.q[0] = load512(x->q + first_col);
    in.q[1] = n_blocks > 2 ? load512(x->q + first_col + 64) : _mm512_setzero_si512();
    in.d = _mm_maskz_loadu_ps((__mmask8)((1u << n_blocks) - 1), x->d + first_col / LQ_Q8_BLOCK);
    in.offset[0] = signed_offset(in.q[0]);
    in.offset[1] = signed_offset(in.q[1]);
    return in;
}

LQ_INLINE q8_0_weights q8_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q8_0 *b = (const lq_block_q8_0 *)blocks;
    q8_0_weights w;
    __m128i d = _mm_cvtsi32_si128(load16(b[0].d));
    w.q[0] = _mm512_zextsi256_si512(load256(b[0].qs));
    w.q[1] = _mm512_setzero_si512();
    if (n_blocks > 1) {
        d = _mm_insert_epi16(d, load16(b[1].d), 1);
        w.q[0] = _mm512_inserti64x4(w.q[0], load256(b[1].qs), 1);
    }
    if (n_blocks > 2) {
        d = _mm_insert_epi16(d, load16(b[2].d), 2);
        w.q[1] = _mm512_zextsi256_si512(load256(b[2].qs));
    }
    if (n_blocks > 3) {
        d = _mm_insert_epi16(d, load16(b[3].d), 3);
        w.q[1] = _mm512_inserti64x4(w.q[1], load256(b[3].qs), 1);
    }
    w.d = _mm_cvtph_ps(d);
    return w;
}

LQ_INLINE __m512 q8_0_step(__m512 acc, const q8_0_weights *w, const q8_0_inputs *in) {
    __m512 d = _mm512_castps128_ps512(_mm_mul_ps(w->d, in->d));
    __m512i product0 = add_signed_dot(in->offset[0], w->q[0], in->q[0]);
    __m512i product1 = add_signed_dot(in->offset[1], w->q[1], in->q[1]);
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product0), spread(d, 0, 0, 1, 1), acc);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(product1), spread(d, 2, 2, 3, 3), acc);
}

/* ---- Q4_K, Q5_K: 256 weights in groups of 32; a vector holds one 16-byte half of four groups, one in each lane */

typedef struct inputs_k {
    __m512i x[2][2]; /* [even, odd groups][half], 16 activations of each of four groups */
    __m512 d_sums;   /* scale of each group, then d * sum of each group */
} inputs_k;

typedef struct weights_k {
    __m512i q[2][2];
    __m512 d_m; /* scale of each group, then minimum of each group */
} weights_k;

LQ_INLINE inputs_k load_inputs_k(const lq_q8_row *x, size_t first_col) {
    inputs_k in;
    const int8_t *q = x->q + first_col;
    /* a 4 x 4 transpose of 128-bit lanes: from four vectors of (group, half) to one per odd and half */
    __m512i v0 = load512(q), v1 = load512(q + 64), v2 = load512(q + 128), v3 = load512(q + 192);
    __m512i even01 = _mm512_shuffle_i64x2(v0, v1, 0x44), odd01 = _mm512_shuffle_i64x2(v0, v1, 0xee);
    __m512i even23 = _mm512_shuffle_i64x2(v2, v3, 0x44), odd23 = _mm512_shuffle_i64x2(v2, v3, 0xee);
    in.x[0][0] = _mm512_shuffle_i64x2(even01, even23, 0x88);
    in.x[0][1] = _mm512_shuffle_i64x2(even01, even23, 0xdd);
    in.x[1][0] = _mm512_shuffle_i64x2(odd01, odd23, 0x88);
    in.x[1][1] = _mm512_shuffle_i64x2(odd01, odd23, 0xdd);
    __m256 d = _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK);
    __m256i totals = _mm256_madd_epi16(load256(x->sums + first_col / 16), _mm256_set1_epi16(1));
    __m256 sums = _mm256_mul_ps(_mm256_cvtepi32_ps(totals), d);
    in.d_sums = _mm512_insertf32x8(_mm512_castps256_ps512(d), sums, 1);
    return in;
}

/* Gives a block's 8 scales times d, then its 8 minima times dmin. head: the block's first 16 bytes, d, dmin, scales. */
LQ_INLINE __m512 load_scales_k(__m128i head) {
    /* low bits: sc 0..3 | nibbles for sc 4..7 | min 0..3 | nibbles for min 4..7 */
    __m128i low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
                        _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    /* the upper two bits of groups 4..7 */
    __m128i high = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    high = _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(0x30));
    __m512 codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
    __m512 d_dmin = _mm512_castps128_ps512(_mm_cvtph_ps(head));
    return _mm512_mul_ps(codes, spread(d_dmin, 0, 0, 1, 1));
}

LQ_INLINE void load_nibbles_k(weights_k *w, const uint8_t *qs) {
    __m512i v0 = load512(qs), v1 = load512(qs + 64);
    for (int half = 0; half < 2; half++) {
        __m512i v = half == 0 ? _mm512_shuffle_i64x2(v0, v1, 0x88) : _mm512_shuffle_i64x2(v0, v1, 0xdd);
        w->q[0][half] = low_nibbles(v);
        w->q[1][half] = high_nibbles(v);
    }
}

LQ_INLINE __m512 step_k(__m512 acc, const weights_k *w, const inputs_k *in) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 d = _mm512_mul_ps(w->d_m, in->d_sums);
    acc = _mm512_mask_sub_ps(acc, 0xff00, acc, d);
    __m512i even = vi_add_dot_2(zero, w->q[0][0], in->x[0][0], w->q[0][1], in->x[0][1]);
    __m512i odd = vi_add_dot_2(zero, w->q[1][0], in->x[1][0], w->q[1][1], in->x[1][1]);
    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(even), spread(d, 0, 2, 4, 6), acc);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(odd), spread(d, 1, 3, 5, 7), acc);
}

typedef inputs_k q4_k_inputs;
typedef weights_k q4_k_weights;

LQ_INLINE q4_k_inputs q4_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
    return load_inputs_k(x, first_col);
}

LQ_INLINE q4_k_weights q4_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    weights_k w;
    (void)n_blocks;
    load_nibbles_k(&w, ((const lq_block_q4_k *)blocks)->qs);
    w.d_m = load_scales_k(load128(blocks));
    return w;
}

LQ_INLINE __m512 q4_k_step(__m512 acc, const q4_k_weights *w, const q4_k_inputs *in) { return step_k(acc, w, in); }

typedef inputs_k q5_k_inputs;
typedef weights_k q5_k_weights;

LQ_INLINE q5_k_inputs q5_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
    return load_inputs_k(x, first_col);
}

LQ_INLINE q5_k_weights q5_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q5_k *b = (const lq_block_q5_k *)blocks;
    /* the bit of each lane's group: 0, 2, 4, 6, or one higher for odd groups */
    const __m512i even =
        _mm512_setr_epi64(0x0101010101010101, 0x0101010101010101, 0x0404040404040404, 0x0404040404040404,
                          0x1010101010101010, 0x1010101010101010, 0x4040404040404040, 0x4040404040404040);
    const __m512i sixteen = _mm512_set1_epi8(16);
    weights_k w;
    (void)n_blocks;
    load_nibbles_k(&w, b->qs);
    w.d_m = load_scales_k(load128(blocks));
    for (int half = 0; half < 2; half++) {
        __m512i qh = _mm512_broadcast_i32x4(load128(b->qh + 16 * half));
        __mmask64 in_even = _mm512_test_epi8_mask(qh, even);
        __mmask64 in_odd = _mm512_test_epi8_mask(qh, _mm512_add_epi8(even, even));
        w.q[0][half] = _mm512_mask_add_epi8(w.q[0][half], in_even, w.q[0][half], sixteen);
        w.q[1][half] = _mm512_mask_add_epi8(w.q[1][half], in_odd, w.q[1][half], sixteen);
    }
    return w;
}

LQ_INLINE __m512 q5_k_step(__m512 acc, const q5_k_weights *w, const q5_k_inputs *in) { return step_k(acc, w, in); }

/* ---- Q6_K: 256 weights in groups of 16, one in each 128-bit lane, in natural order */

typedef struct q6_k_inputs {
    const int8_t *q;
    __m512 d;       /* scale of each 16 activations */
    __m512 offsets; /* -32 * sum of each 16 activations */
} q6_k_inputs;

typedef struct q6_k_weights {
    __m512i q[4];
    __m512 d;
} q6_k_weights;

LQ_INLINE q6_k_inputs q6_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    q6_k_inputs in;
    (void)n_blocks;
    in.q = x->q + first_col;
    __m256 d = _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK);
    in.d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                                 _mm512_castps256_ps512(d));
    __m512i sums = _mm512_cvtepi16_epi32(load256(x->sums + first_col / 16));
    in.offsets = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(-32.0f));
    return in;
}

/* nibbles | (upper & 0x30) */
LQ_INLINE __m512i join(__m512i nibbles, __m512i upper) {
    return _mm512_ternarylogic_epi64(nibbles, upper, _mm512_set1_epi8(0x30), 0xf8);
}

/* Gives shift counts for 16-bit elements: a in the first 32 bytes, b in the others. */
LQ_INLINE __m512i halves(int a, int b) {
    return _mm512_inserti64x4(_mm512_set1_epi16((short)a), _mm256_set1_epi16((short)b), 1);
}

LQ_INLINE q6_k_weights q6_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q6_k *b = (const lq_block_q6_k *)blocks;
    q6_k_weights w;
    (void)n_blocks;
    for (int half = 0; half < 2; half++) {
        __m512i l = load512(b->ql + 64 * half), h = _mm512_broadcast_i64x4(load256(b->qh + 32 * half));
        /* weights 0..63 of the half take bits 0, 1 and 2, 3 of h, weights 64..127 bits 4, 5 and 6, 7 */
        w.q[2 * half] = join(low_nibbles(l), _mm512_sllv_epi16(h, halves(4, 2)));
        w.q[2 * half + 1] = join(high_nibbles(l), _mm512_srlv_epi16(h, halves(0, 2)));
    }
    __m512 codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(b->scales)));
    w.d = _mm512_mul_ps(codes, _mm512_set1_ps(_cvtsh_ss((unsigned short)load16(b->d))));
    return w;
}

LQ_INLINE __m512 q6_k_step(__m512 acc, const q6_k_weights *w, const q6_k_inputs *in) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 d = _mm512_mul_ps(w->d, in->d);
    acc = _mm512_fmadd_ps(d, in->offsets, acc);
    LQ_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i product = vi_add_dot(zero, w->q[i], load512(in->q + 64 * i));
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), spread(d, 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), acc);
    }
    return acc;
}

/* X(name, NAME, blocks of a chunk, weight rows of a tile with several activation rows) */
#define LQ_PRODUCTS(X)                                                                                                 \
    X(q4_0, Q4_0, 4, 4)                                                                                                \
    X(q4_1, Q4_1, 4, 4)                                                                                                \
    X(q5_0, Q5_0, 4, 4)                                                                                                \
    X(q8_0, Q8_0, 4, 4)                                                                                                \
    X(q4_k, Q4_K, 1, 4)                                                                                                \
    X(q5_k, Q5_K, 1, 4)                                                                                                \
    X(q6_k, Q6_K, 1, 4)

#define LQ_DEFINE_PRODUCT(name, NAME, chunk_blocks, rows_n)                                                            \
    LQ_DEFINE_MATMUL(name, LQ_##NAME##_LEN, sizeof(lq_block_##name), chunk_blocks, __m512, _mm512_setzero_ps,          \
                     vf_sums_of_4, 4, rows_n)
#define LQ_PRODUCT_ENTRY(name, NAME, chunk_blocks, rows_n) kernels->matmul_q8[LQ_TYPE_##NAME] = name;

LQ_PRODUCTS(LQ_DEFINE_PRODUCT)

LQ_INLINE void set_products(lq_kernels *kernels) { LQ_PRODUCTS(LQ_PRODUCT_ENTRY) }

#endif
