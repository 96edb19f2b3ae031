/* dot_avx512.h - integer products with 512-bit vectors for few activation rows (dot_few.h), shared by dot_avx512.c and
 * dot_avx512vnni.c. The including file defines, for unsigned bytes u (at most 63) and signed bytes s:
 *   __m512i dot4(__m512i u, __m512i s)                              16 sums of 4 products
 *   __m512i dot8(__m512i u0, __m512i s0, __m512i u1, __m512i s1)    the same of two pairs, u at most 31
 *   LQ_DOT_SIGNED, __m512i dot4_q8_0(__m512i w, __m512i s)          1: of signed bytes w; 0: of w + 128
 *
 * 16-byte halves are arranged so that each 128-bit lane belongs to one block (or group) and low and high nibbles add up
 * before lanes are turned. */
#ifndef LQ_CPU_DOT_AVX512_H
#define LQ_CPU_DOT_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "backends/cpu/dot_few.h"
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

/* The first n_bytes (fewer than 64) and zeros. */
LQ_INLINE __m512i load_part(const void *p, size_t n_bytes) {
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << n_bytes) - 1, p);
}

LQ_INLINE __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
LQ_INLINE __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

/* Floats a, b, c, d of v in one 128-bit lane each. */
LQ_INLINE __m512 spread(__m512 v, int a, int b, int c, int d) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d), v);
}

/* Four sums of each of four rows' 128-bit lanes, turned: lane 4 g + r is row r's sum of lane g. */
LQ_INLINE __m512i sum_rows(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

/* Lane 4 g + r is row r's lane of index. */
LQ_INLINE __m512 pick_rows(__m512i index, __m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 v = _mm512_permutexvar_ps(index, a);
    v = _mm512_mask_permutexvar_ps(v, 0x2222, index, b);
    v = _mm512_mask_permutexvar_ps(v, 0x4444, index, c);
    return _mm512_mask_permutexvar_ps(v, 0x8888, index, d);
}

/* Indices of 32-bit lanes: each of a, b, c, d four times. */
#define LQ_FOURS(a, b, c, d) _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)

LQ_INLINE __m512 add_product(__m512 acc, __m512i sums, __m512 d, __m512 x_d) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(d, x_d), acc);
}

/* The sum of the phases: (0 + 2) + (1 + 3), as in strip_tile.h. */
LQ_INLINE __m128 fold_phases(__m512 acc) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(acc), _mm512_extractf32x8_ps(acc, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* ---- blocks of 32 with nibbles: Q4_0, Q4_1, Q5_0; four blocks a chunk, one a lane */

typedef struct inputs_32 {
    __m512i low, high; /* activations 0..15 and 16..31 of the blocks */
    __m512 d, sums;    /* each block's scale, and scale times the sum, in its lane */
} inputs_32;

typedef struct weights_32 {
    __m512i low, high;
    __m256i d; /* halves, each block's four times */
} weights_32;

LQ_INLINE __m512 spread_blocks(const float *of_blocks, size_t n_blocks) {
    __m128 v = _mm_maskz_loadu_ps((__mmask8)((1u << n_blocks) - 1), of_blocks);
    return spread(_mm512_castps128_ps512(v), 0, 1, 2, 3);
}

LQ_INLINE inputs_32 load_inputs_32(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in;
    const int8_t *q = x->q + first_col;
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
    in.d = spread_blocks(x->d + first_col / LQ_Q8_BLOCK, n_blocks);
    in.sums = spread_blocks(x->d_sums + first_col / LQ_Q8_BLOCK, n_blocks);
    return in;
}

LQ_INLINE __m512i sums_32(const weights_32 w[4], const inputs_32 *in) {
    __m512i sums[4];
    LQ_UNROLL
    for (int r = 0; r < 4; r++) sums[r] = dot8(w[r].low, in->low, w[r].high, in->high);
    return sum_rows(sums[0], sums[1], sums[2], sums[3]);
}

/* Weights are d (code - zero). */
LQ_INLINE __m512 step_32(__m512 acc, const weights_32 w[4], const inputs_32 *in, float zero) {
    __m256i ab = _mm256_mask_blend_epi16(0x2222, w[0].d, w[1].d), cd = _mm256_mask_blend_epi16(0x8888, w[2].d, w[3].d);
    __m512 d = _mm512_cvtph_ps(_mm256_mask_blend_epi16(0xcccc, ab, cd));
    acc = add_product(acc, sums_32(w, in), d, in->d);
    return _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(-zero)), in->sums, acc);
}

typedef inputs_32 q4_0_inputs;
typedef weights_32 q4_0_weights;

LQ_INLINE q4_0_inputs q4_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

/* Indices of 16-bit words: LQ_WORDS_8(a) = a..a+7, LQ_WORDS_4X(a) = a four times. */
#define LQ_WORDS_8(a) (a), (a) + 1, (a) + 2, (a) + 3, (a) + 4, (a) + 5, (a) + 6, (a) + 7
#define LQ_WORDS_4X(a) (a), (a), (a), (a)

/* 72 bytes of four blocks as two overlapping vectors, the second from byte 8 on; a block is 9 words: d, 8 of qs. */
LQ_INLINE q4_0_weights q4_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    static const uint16_t qs_words[32] = {LQ_WORDS_8(1), LQ_WORDS_8(10), LQ_WORDS_8(19), LQ_WORDS_8(32 + 28 - 4)};
    static const uint16_t d_words[32] = {LQ_WORDS_4X(0), LQ_WORDS_4X(9), LQ_WORDS_4X(18), LQ_WORDS_4X(27)};
    size_t n_bytes = n_blocks * sizeof(lq_block_q4_0);
    __m512i a = n_blocks == 4 ? load512(blocks) : load_part(blocks, n_bytes);
    __m512i b = n_blocks == 4 ? load512(blocks + 8) : _mm512_setzero_si512();
    __m512i qs = _mm512_permutex2var_epi16(a, load512(qs_words), b);
    __m512i d = _mm512_permutexvar_epi16(load512(d_words), a);
    weights_32 w;
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.d = _mm512_castsi512_si256(d);
    return w;
}

LQ_INLINE __m512 q4_0_step(__m512 acc, const q4_0_weights w[4], const q4_0_inputs *in) {
    return step_32(acc, w, in, 8.0f);
}

LQ_ADD_ROWS(q4_0, __m512)

typedef inputs_32 q4_1_inputs;
typedef struct q4_1_weights {
    weights_32 codes;
    __m512i dm; /* d and m, each block's four times */
} q4_1_weights;

LQ_INLINE q4_1_inputs q4_1_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

/* 80 bytes of four blocks as two overlapping vectors, the second from byte 16 on; a block is 5 dwords: dm, 4 of qs. */
LQ_INLINE q4_1_weights q4_1_load_w(const uint8_t *blocks, size_t n_blocks) {
    const __m512i qs_dwords = _mm512_setr_epi32(1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 28, 29, 30, 31);
    size_t n_bytes = n_blocks * sizeof(lq_block_q4_1);
    __m512i a = n_blocks == 4 ? load512(blocks) : load_part(blocks, n_bytes);
    __m512i b = n_blocks == 4 ? load512(blocks + 16) : _mm512_setzero_si512();
    __m512i qs = _mm512_permutex2var_epi32(a, qs_dwords, b);
    q4_1_weights w = {{low_nibbles(qs), high_nibbles(qs), _mm256_setzero_si256()},
                      _mm512_permutexvar_epi32(LQ_FOURS(0, 5, 10, 15), a)};
    return w;
}

LQ_INLINE __m512 q4_1_step(__m512 acc, const q4_1_weights w[4], const q4_1_inputs *in) {
    const weights_32 codes[4] = {w[0].codes, w[1].codes, w[2].codes, w[3].codes};
    __m512i ab = _mm512_mask_blend_epi32(0x2222, w[0].dm, w[1].dm),
            cd = _mm512_mask_blend_epi32(0x8888, w[2].dm, w[3].dm);
    __m512i dm = _mm512_mask_blend_epi32(0xcccc, ab, cd);
    acc = add_product(acc, sums_32(codes, in), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dm)), in->d);
    return _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(dm, 16))), in->sums, acc);
}

LQ_ADD_ROWS(q4_1, __m512)

typedef inputs_32 q5_0_inputs;
typedef weights_32 q5_0_weights;

LQ_INLINE q5_0_inputs q5_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

/* 88 bytes of four blocks as two overlapping vectors, the second from byte 24 on; a block is 11 words: d, 2 of qh, 8 of
 * qs. The lower halves of the four qh are the fifth bits of the low vector's 64 weights, the upper ones of the high's;
 * general registers have time to put them together. */
LQ_INLINE q5_0_weights q5_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    enum { B = 32 - 12 }; /* word i of the blocks is word B + i of (a, b) */
    static const uint16_t qs_words[32] = {LQ_WORDS_8(3), LQ_WORDS_8(14), LQ_WORDS_8(B + 25), LQ_WORDS_8(B + 36)};
    static const uint16_t d_words[32] = {LQ_WORDS_4X(0), LQ_WORDS_4X(11), LQ_WORDS_4X(22), LQ_WORDS_4X(B + 33)};
    static const uint16_t fifth_words[32] = {LQ_WORDS_8(1), LQ_WORDS_8(12), LQ_WORDS_8(23), LQ_WORDS_8(B + 34)};
    size_t n_bytes = n_blocks * sizeof(lq_block_q5_0);
    __m512i a, b;
    if (n_blocks == 4) {
        a = load512(blocks);
        b = load512(blocks + 24);
    } else {
        a = n_bytes < 64 ? load_part(blocks, n_bytes) : load512(blocks);
        b = n_bytes > 24 ? load_part(blocks + 24, n_bytes - 24) : _mm512_setzero_si512();
    }
    /* the fifth bits of a block are four bytes, each of which says it of eight weights */
    __m512i fifth = _mm512_permutex2var_epi16(a, load512(fifth_words), b);
    const __m512i bit = _mm512_set1_epi64((long long)0x8040201008040201ull);
    const __m128i first = _mm_set_epi64x(0x0101010101010101, 0),
                  second = _mm_set_epi64x(0x0303030303030303, 0x0202020202020202);
    __mmask64 low = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, _mm512_broadcast_i32x4(first)), bit);
    __mmask64 high = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, _mm512_broadcast_i32x4(second)), bit);
    __m512i qs = _mm512_permutex2var_epi16(a, load512(qs_words), b);
    __m512i d = _mm512_permutex2var_epi16(a, load512(d_words), b);
    weights_32 w;
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.low = _mm512_mask_add_epi8(w.low, low, w.low, _mm512_set1_epi8(16));
    w.high = _mm512_mask_add_epi8(w.high, high, w.high, _mm512_set1_epi8(16));
    w.d = _mm512_castsi512_si256(d);
    return w;
}

LQ_INLINE __m512 q5_0_step(__m512 acc, const q5_0_weights w[4], const q5_0_inputs *in) {
    return step_32(acc, w, in, 16.0f);
}

LQ_ADD_ROWS(q5_0, __m512)

/* ---- Q8_0: four blocks a chunk, two a vector */

typedef struct q8_0_inputs {
    __m512i q[2];
    __m512 d, sums;
} q8_0_inputs;

typedef struct q8_0_weights {
    __m512i q[2];
    __m128i d; /* four halves */
} q8_0_weights;

LQ_INLINE q8_0_inputs q8_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    q8_0_inputs in; /* beyond the last block anything may stand: d is 0 there */
    (void)all_cols;
    in.q[0] = load512(x->q + first_col);
    in.q[1] = n_blocks > 2 ? load512(x->q + first_col + 64) : _mm512_setzero_si512();
    in.d = spread_blocks(x->d + first_col / LQ_Q8_BLOCK, n_blocks);
    in.sums = spread_blocks(x->d_sums + first_col / LQ_Q8_BLOCK, n_blocks);
    return in;
}

LQ_INLINE q8_0_weights q8_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q8_0 *b = (const lq_block_q8_0 *)blocks;
    q8_0_weights w;
    w.d = _mm_cvtsi32_si128(load16(b[0].d));
    w.q[0] = _mm512_zextsi256_si512(load256(b[0].qs));
    w.q[1] = _mm512_setzero_si512();
    if (n_blocks > 1) {
        w.d = _mm_insert_epi16(w.d, load16(b[1].d), 1);
        w.q[0] = _mm512_inserti64x4(w.q[0], load256(b[1].qs), 1);
    }
    if (n_blocks > 2) {
        w.d = _mm_insert_epi16(w.d, load16(b[2].d), 2);
        w.q[1] = _mm512_zextsi256_si512(load256(b[2].qs));
    }
    if (n_blocks > 3) {
        w.d = _mm_insert_epi16(w.d, load16(b[3].d), 3);
        w.q[1] = _mm512_inserti64x4(w.q[1], load256(b[3].qs), 1);
    }
    return w;
}

LQ_INLINE __m512 q8_0_step(__m512 acc, const q8_0_weights w[4], const q8_0_inputs *in) {
    __m512i halves[2]; /* sums of 16 columns: two quarters a block */
    LQ_UNROLL
    for (int i = 0; i < 2; i++)
        halves[i] = sum_rows(dot4_q8_0(w[0].q[i], in->q[i]), dot4_q8_0(w[1].q[i], in->q[i]),
                             dot4_q8_0(w[2].q[i], in->q[i]), dot4_q8_0(w[3].q[i], in->q[i]));
    __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                                    _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
    __m128i ab = _mm_unpacklo_epi16(w[0].d, w[1].d), cd = _mm_unpacklo_epi16(w[2].d, w[3].d);
    __m512 d = _mm512_cvtph_ps(_mm256_set_m128i(_mm_unpackhi_epi32(ab, cd), _mm_unpacklo_epi32(ab, cd)));
    acc = add_product(acc, sums, d, in->d);
    return LQ_DOT_SIGNED ? acc : _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(-128.0f)), in->sums, acc);
}

LQ_ADD_ROWS(q8_0, __m512)

/* ---- Q4_K, Q5_K: 256 weights in groups of 32; a vector holds one 16-byte half of four groups, a lane each */

typedef struct inputs_k {
    __m512i x[2][2];      /* [even, odd groups][half], 16 activations of each of four groups */
    __m512 d[2], sums[2]; /* each group's scale, and scale times the sum, in its lane */
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
    __m512 d = _mm512_castps256_ps512(_mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK));
    __m512 sums = _mm512_castps256_ps512(_mm256_loadu_ps(x->d_sums + first_col / LQ_Q8_BLOCK));
    in.d[0] = spread(d, 0, 2, 4, 6);
    in.d[1] = spread(d, 1, 3, 5, 7);
    in.sums[0] = spread(sums, 0, 2, 4, 6);
    in.sums[1] = spread(sums, 1, 3, 5, 7);
    return in;
}

/* A block's 8 scales times d, then its 8 minima times dmin. `head` is the block's first 16 bytes: d, dmin, scales. */
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

LQ_INLINE __m512 step_k(__m512 acc, const weights_k w[4], const inputs_k *in) {
    LQ_UNROLL
    for (int odd = 0; odd < 2; odd++) {
        __m512i sums[4];
        LQ_UNROLL
        for (int r = 0; r < 4; r++) sums[r] = dot8(w[r].q[odd][0], in->x[odd][0], w[r].q[odd][1], in->x[odd][1]);
        __m512i groups = _mm512_add_epi32(LQ_FOURS(0, 2, 4, 6), _mm512_set1_epi32(odd));
        __m512 d = pick_rows(groups, w[0].d_m, w[1].d_m, w[2].d_m, w[3].d_m);
        __m512 m = pick_rows(_mm512_add_epi32(groups, _mm512_set1_epi32(8)), w[0].d_m, w[1].d_m, w[2].d_m, w[3].d_m);
        acc = add_product(acc, sum_rows(sums[0], sums[1], sums[2], sums[3]), d, in->d[odd]);
        acc = _mm512_fnmadd_ps(m, in->sums[odd], acc);
    }
    return acc;
}

typedef inputs_k q4_k_inputs;
typedef weights_k q4_k_weights;

LQ_INLINE q4_k_inputs q4_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols, (void)n_blocks;
    return load_inputs_k(x, first_col);
}

LQ_INLINE q4_k_weights q4_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    weights_k w;
    (void)n_blocks;
    load_nibbles_k(&w, ((const lq_block_q4_k *)blocks)->qs);
    w.d_m = load_scales_k(load128(blocks));
    return w;
}

LQ_INLINE __m512 q4_k_step(__m512 acc, const q4_k_weights w[4], const q4_k_inputs *in) { return step_k(acc, w, in); }

LQ_ADD_ROWS(q4_k, __m512)

typedef inputs_k q5_k_inputs;
typedef weights_k q5_k_weights;

LQ_INLINE q5_k_inputs q5_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols, (void)n_blocks;
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

LQ_INLINE __m512 q5_k_step(__m512 acc, const q5_k_weights w[4], const q5_k_inputs *in) { return step_k(acc, w, in); }

LQ_ADD_ROWS(q5_k, __m512)

/* ---- Q6_K: 256 weights in groups of 16, a lane each, in natural order */

typedef struct q6_k_inputs {
    const int8_t *q;
    __m512 d;       /* scale of each 32 activations; the upper half is not used */
    __m512 offsets; /* -32 times scale times the sum of each 16: scaling by a power of two rounds nothing */
} q6_k_inputs;

typedef struct q6_k_weights {
    __m512i q[4];
    __m512 d;
} q6_k_weights;

LQ_INLINE q6_k_inputs q6_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
    q6_k_inputs in = {
        x->q + first_col, _mm512_castps256_ps512(_mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK)),
        _mm512_mul_ps(_mm512_loadu_ps(x->d_sums + all_cols / 32 + first_col / 16), _mm512_set1_ps(-32.0f))};
    return in;
}

/* nibbles | (upper & 0x30) */
LQ_INLINE __m512i join(__m512i nibbles, __m512i upper) {
    return _mm512_ternarylogic_epi64(nibbles, upper, _mm512_set1_epi8(0x30), 0xf8);
}

/* 32 bytes of a, then 32 of b, for shift counts of 16-bit elements. */
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

LQ_INLINE __m512 q6_k_step(__m512 acc, const q6_k_weights w[4], const q6_k_inputs *in) {
    LQ_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i x = load512(in->q + 64 * i), sums[4];
        LQ_UNROLL
        for (int r = 0; r < 4; r++) sums[r] = dot4(w[r].q[i], x);
        __m512 d = pick_rows(LQ_FOURS(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), w[0].d, w[1].d, w[2].d, w[3].d);
        acc = add_product(acc, sum_rows(sums[0], sums[1], sums[2], sums[3]), d,
                          spread(in->d, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1));
        acc = _mm512_fmadd_ps(d, spread(in->offsets, 4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3), acc);
    }
    return acc;
}

LQ_ADD_ROWS(q6_k, __m512)

/* name, as a constant, blocks a chunk */
#define LQ_PRODUCTS(X)                                                                                                 \
    X(q4_0, Q4_0, 4)                                                                                                   \
    X(q4_1, Q4_1, 4)                                                                                                   \
    X(q5_0, Q5_0, 4)                                                                                                   \
    X(q8_0, Q8_0, 4)                                                                                                   \
    X(q4_k, Q4_K, 1)                                                                                                   \
    X(q5_k, Q5_K, 1)                                                                                                   \
    X(q6_k, Q6_K, 1)

#define LQ_DEFINE_PRODUCT(name, NAME, chunk_blocks)                                                                    \
    LQ_DEFINE_FEW(name, NAME, chunk_blocks, __m512, _mm512_setzero_ps, fold_phases)
#define LQ_PRODUCT_ENTRY(name, NAME, chunk_blocks) kernels->matmul_q8[LQ_TYPE_##NAME] = name;

LQ_PRODUCTS(LQ_DEFINE_PRODUCT)

LQ_INLINE void set_products(lq_kernels *kernels) { LQ_PRODUCTS(LQ_PRODUCT_ENTRY) }

#endif
