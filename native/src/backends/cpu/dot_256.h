/* dot_256.h - integer products with 256-bit vectors for few activation rows (dot_few.h), shared by dot_avx2.c and
 * dot_avxvnni.c. The including file has included words_256.h or vnni_256.h.
 *
 * 16-byte halves are arranged so that each 128-bit lane belongs to one block (or group) and low and high nibbles add up
 * before lanes are turned. */
#ifndef LQ_CPU_DOT_256_H
#define LQ_CPU_DOT_256_H

#include "backends/cpu/dot_avx2.h"
#include "backends/cpu/dot_few.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

/* ---- turning: lane 4 g + r of a vector belongs to group g of weight row r */

/* Two sums of each of four rows' 128-bit lanes. */
LQ_INLINE __m256i sum_rows(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

/* Four rows of 8 floats: out[i] has floats i and i + 4. */
LQ_INLINE void turn_rows(__m256 out[4], __m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 ab[2] = {_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)};
    __m256 cd[2] = {_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)};
    LQ_UNROLL
    for (int i = 0; i < 2; i++) {
        out[2 * i] = _mm256_shuffle_ps(ab[i], cd[i], 0x44);
        out[2 * i + 1] = _mm256_shuffle_ps(ab[i], cd[i], 0xee);
    }
}

/* Two half floats of each row. */
LQ_INLINE __m256 turn_halves(__m128i a, __m128i b, __m128i c, __m128i d) {
    return _mm256_cvtph_ps(_mm_unpacklo_epi32(_mm_unpacklo_epi16(a, b), _mm_unpacklo_epi16(c, d)));
}

LQ_INLINE __m256 add_product(__m256 acc, __m256i sums, __m256 d, __m256 x_d) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, x_d), acc);
}

/* The sum of the phases, as in strip_tile.h. */
LQ_INLINE __m128 fold_phases(__m256 acc) {
    return _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
}

/* ---- blocks of 32 with nibbles: Q4_0, Q4_1, Q5_0; two blocks a chunk, one a lane */

typedef struct inputs_32 {
    __m256i low, high; /* activations 0..15 and 16..31 of both blocks */
    __m256 d, sums;    /* each block's scale, and scale times the sum, in its lane */
} inputs_32;

typedef struct weights_32 {
    __m256i low, high;
    __m128i d; /* two half floats; Q4_1: each with m behind it */
} weights_32;

LQ_INLINE __m256 spread_blocks(const float *of_blocks, size_t n_blocks) {
    return _mm256_set_m128(n_blocks > 1 ? _mm_broadcast_ss(of_blocks + 1) : _mm_setzero_ps(),
                           _mm_broadcast_ss(of_blocks));
}

LQ_INLINE inputs_32 load_inputs_32(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in;
    __m256i x0 = load256(x->q + first_col), x1 = n_blocks > 1 ? load256(x->q + first_col + 32) : _mm256_setzero_si256();
    in.low = _mm256_permute2x128_si256(x0, x1, 0x20);
    in.high = _mm256_permute2x128_si256(x0, x1, 0x31);
    in.d = spread_blocks(x->d + first_col / LQ_Q8_BLOCK, n_blocks);
    in.sums = spread_blocks(x->d_sums + first_col / LQ_Q8_BLOCK, n_blocks);
    return in;
}

LQ_INLINE __m256i sums_32(const weights_32 w[4], const inputs_32 *in) {
    __m256i sums[4];
    LQ_UNROLL
    for (int r = 0; r < 4; r++) sums[r] = dot8(w[r].low, in->low, w[r].high, in->high);
    return sum_rows(sums[0], sums[1], sums[2], sums[3]);
}

/* Weights are d (code - zero). */
LQ_INLINE __m256 step_32(__m256 acc, const weights_32 w[4], const inputs_32 *in, float zero) {
    __m256 d = turn_halves(w[0].d, w[1].d, w[2].d, w[3].d);
    acc = add_product(acc, sums_32(w, in), d, in->d);
    return _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(-zero)), in->sums, acc);
}

LQ_INLINE __m128i load_scales_32(const uint8_t *d0, const uint8_t *d1) {
    __m128i halves = _mm_cvtsi32_si128(load16(d0));
    return d1 != NULL ? _mm_insert_epi16(halves, load16(d1), 1) : halves;
}

LQ_INLINE __m256i load_nibbles_32(const uint8_t *qs0, const uint8_t *qs1) {
    return qs1 != NULL ? two_lanes(qs0, qs1) : _mm256_zextsi128_si256(load128(qs0));
}

typedef inputs_32 q4_0_inputs;
typedef weights_32 q4_0_weights;

LQ_INLINE q4_0_inputs q4_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

LQ_INLINE q4_0_weights q4_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q4_0 *b = (const lq_block_q4_0 *)blocks;
    weights_32 w;
    __m256i qs = load_nibbles_32(b[0].qs, n_blocks > 1 ? b[1].qs : NULL);
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.d = load_scales_32(b[0].d, n_blocks > 1 ? b[1].d : NULL);
    return w;
}

LQ_INLINE __m256 q4_0_step(__m256 acc, const q4_0_weights w[4], const q4_0_inputs *in) {
    return step_32(acc, w, in, 8.0f);
}

LQ_ADD_ROWS(q4_0, __m256)

typedef inputs_32 q4_1_inputs;
typedef weights_32 q4_1_weights;

LQ_INLINE q4_1_inputs q4_1_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

LQ_INLINE q4_1_weights q4_1_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q4_1 *b = (const lq_block_q4_1 *)blocks;
    weights_32 w;
    __m256i qs = load_nibbles_32(b[0].qs, n_blocks > 1 ? b[1].qs : NULL);
    __m128i halves = _mm_cvtsi32_si128(load32(b[0].d)); /* m follows d */
    if (n_blocks > 1) halves = _mm_insert_epi32(halves, load32(b[1].d), 1);
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.d = halves;
    return w;
}

LQ_INLINE __m256 q4_1_step(__m256 acc, const q4_1_weights w[4], const q4_1_inputs *in) {
    __m128i ab = _mm_unpacklo_epi32(w[0].d, w[1].d), cd = _mm_unpacklo_epi32(w[2].d, w[3].d);
    __m128i first = _mm_unpacklo_epi64(ab, cd), second = _mm_unpackhi_epi64(ab, cd); /* d and m of each row's block */
    __m128i low = _mm_set1_epi32(0xffff);
    __m256 d = _mm256_cvtph_ps(_mm_packus_epi32(_mm_and_si128(first, low), _mm_and_si128(second, low)));
    __m256 m = _mm256_cvtph_ps(_mm_packus_epi32(_mm_srli_epi32(first, 16), _mm_srli_epi32(second, 16)));
    acc = add_product(acc, sums_32(w, in), d, in->d);
    return _mm256_fmadd_ps(m, in->sums, acc);
}

LQ_ADD_ROWS(q4_1, __m256)

typedef inputs_32 q5_0_inputs;
typedef weights_32 q5_0_weights;

LQ_INLINE q5_0_inputs q5_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols;
    return load_inputs_32(x, first_col, n_blocks);
}

/* 16 in each byte whose bit is set; bytes: which byte of the lane's four holds it. */
LQ_INLINE __m256i fifth_bits(__m256i qh, __m256i bytes) {
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    __m256i picked = _mm256_and_si256(_mm256_shuffle_epi8(qh, bytes), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(picked, bit), _mm256_set1_epi8(16));
}

LQ_INLINE q5_0_weights q5_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q5_0 *b = (const lq_block_q5_0 *)blocks;
    const __m256i bytes_low = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
                                               1, 1, 1, 1, 1, 1, 1, 1);
    const __m256i bytes_high = _mm256_add_epi8(bytes_low, _mm256_set1_epi8(2));
    weights_32 w;
    __m256i qs = load_nibbles_32(b[0].qs, n_blocks > 1 ? b[1].qs : NULL);
    __m256i qh =
        _mm256_set_m128i(_mm_cvtsi32_si128(n_blocks > 1 ? load32(b[1].qh) : 0), _mm_cvtsi32_si128(load32(b[0].qh)));
    w.low = _mm256_or_si256(low_nibbles(qs), fifth_bits(qh, bytes_low));
    w.high = _mm256_or_si256(high_nibbles(qs), fifth_bits(qh, bytes_high));
    w.d = load_scales_32(b[0].d, n_blocks > 1 ? b[1].d : NULL);
    return w;
}

LQ_INLINE __m256 q5_0_step(__m256 acc, const q5_0_weights w[4], const q5_0_inputs *in) {
    return step_32(acc, w, in, 16.0f);
}

LQ_ADD_ROWS(q5_0, __m256)

/* ---- Q8_0: two blocks a chunk, one a vector */

typedef struct q8_0_inputs {
    __m256i q[2];
    __m256 d, sums;
} q8_0_inputs;

typedef struct q8_0_weights {
    __m256i q[2];
    __m128i d; /* two half floats */
} q8_0_weights;

LQ_INLINE q8_0_inputs q8_0_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    q8_0_inputs in;
    (void)all_cols;
    in.q[0] = load256(x->q + first_col);
    in.q[1] = n_blocks > 1 ? load256(x->q + first_col + 32) : _mm256_setzero_si256();
    in.d = spread_blocks(x->d + first_col / LQ_Q8_BLOCK, n_blocks);
    in.sums = spread_blocks(x->d_sums + first_col / LQ_Q8_BLOCK, n_blocks);
    return in;
}

LQ_INLINE q8_0_weights q8_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q8_0 *b = (const lq_block_q8_0 *)blocks;
    q8_0_weights w;
    w.q[0] = load256(b[0].qs);
    w.q[1] = n_blocks > 1 ? load256(b[1].qs) : _mm256_setzero_si256();
    w.d = load_scales_32(b[0].d, n_blocks > 1 ? b[1].d : NULL);
    return w;
}

LQ_INLINE __m256 q8_0_step(__m256 acc, const q8_0_weights w[4], const q8_0_inputs *in) {
    __m256i halves[2]; /* sums of 16 columns, those of a block in its vector's lanes */
    LQ_UNROLL
    for (int i = 0; i < 2; i++)
        halves[i] = sum_rows(dot4_q8_0(w[0].q[i], in->q[i]), dot4_q8_0(w[1].q[i], in->q[i]),
                             dot4_q8_0(w[2].q[i], in->q[i]), dot4_q8_0(w[3].q[i], in->q[i]));
    __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(halves[0], halves[1], 0x20),
                                    _mm256_permute2x128_si256(halves[0], halves[1], 0x31));
    __m256 d = turn_halves(w[0].d, w[1].d, w[2].d, w[3].d);
    acc = add_product(acc, sums, d, in->d);
    return LQ_DOT_SIGNED ? acc : _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(-128.0f)), in->sums, acc);
}

LQ_ADD_ROWS(q8_0, __m256)

/* ---- Q4_K, Q5_K: 256 weights in groups of 32; a vector holds one 16-byte half of two groups, g and g + 4 */

typedef struct inputs_k {
    __m256i x[4][2]; /* [group][half]: 16 activations of it and of the group four further */
    __m256 d, sums;  /* scale of each group, and scale times the sum */
} inputs_k;

LQ_INLINE inputs_k load_inputs_k(const lq_q8_row *x, size_t first_col) {
    inputs_k in;
    LQ_UNROLL
    for (int g = 0; g < 4; g++)
        for (int half = 0; half < 2; half++) {
            const int8_t *q = x->q + first_col + 32 * g + 16 * half;
            in.x[g][half] = two_lanes(q, q + 128);
        }
    in.d = _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK);
    in.sums = _mm256_loadu_ps(x->d_sums + first_col / LQ_Q8_BLOCK);
    return in;
}

/* Scales of a block's 8 groups times d, and minima times dmin. dm points at d, dmin, scales[12]. */
LQ_INLINE void load_scales_k(const uint8_t *dm, __m256 *d, __m256 *m) {
    uint32_t s[3], packed[4]; /* sc 0..3, sc 4..7, min 0..3, min 4..7 as bytes */
    memcpy(s, dm + 4, 12);
    packed[0] = s[0] & 0x3f3f3f3f;
    packed[1] = (s[2] & 0x0f0f0f0f) | (s[0] >> 2 & 0x30303030);
    packed[2] = s[1] & 0x3f3f3f3f;
    packed[3] = (s[2] >> 4 & 0x0f0f0f0f) | (s[1] >> 2 & 0x30303030);
    __m128i sc = _mm_cvtsi64_si128((long long)((uint64_t)packed[1] << 32 | packed[0]));
    __m128i min = _mm_cvtsi64_si128((long long)((uint64_t)packed[3] << 32 | packed[2]));
    __m128 halves = _mm_cvtph_ps(_mm_cvtsi32_si128(load32(dm)));
    *d = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(sc)), _mm256_broadcastss_ps(halves));
    *m = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(min)), _mm256_broadcastss_ps(_mm_movehdup_ps(halves)));
}

/* Four rows' blocks: nibbles at qs, their fifth bits at qh (0: none); pairs of groups one after the other, so that what
 * is at work fits the registers. */
LQ_INLINE void add_k(__m256 acc[2], const uint8_t *const blocks[4], size_t qs, size_t qh, const inputs_k in[2],
                     size_t n_x) {
    __m256 row_d[4], row_m[4], d[4], m[4];
    LQ_UNROLL
    for (int r = 0; r < 4; r++) load_scales_k(blocks[r], &row_d[r], &row_m[r]);
    turn_rows(d, row_d[0], row_d[1], row_d[2], row_d[3]);
    turn_rows(m, row_m[0], row_m[1], row_m[2], row_m[3]);
    LQ_UNROLL
    for (int pair = 0; pair < 2; pair++) {
        __m256i sums[2][2][4];
        LQ_UNROLL
        for (int r = 0; r < 4; r++) {
            __m256i q[2][2]; /* [even, odd group][half] */
            LQ_UNROLL
            for (int half = 0; half < 2; half++) {
                const uint8_t *from = blocks[r] + qs + 32 * pair + 16 * half;
                __m256i v = two_lanes(from, from + 64);
                q[0][half] = low_nibbles(v);
                q[1][half] = high_nibbles(v);
                if (qh == 0) continue;
                __m256i bits = _mm256_broadcastsi128_si256(load128(blocks[r] + qh + 16 * half));
                LQ_UNROLL
                for (int odd = 0; odd < 2; odd++) { /* the upper lane's group is four further */
                    int bit = 2 * pair + odd;
                    __m256i mask =
                        _mm256_set_m128i(_mm_set1_epi8((char)(1 << (bit + 4))), _mm_set1_epi8((char)(1 << bit)));
                    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, mask), mask);
                    q[odd][half] = _mm256_or_si256(q[odd][half], _mm256_and_si256(set, _mm256_set1_epi8(16)));
                }
            }
            LQ_UNROLL
            for (size_t t = 0; t < n_x; t++) {
                LQ_UNROLL
                for (int odd = 0; odd < 2; odd++)
                    sums[t][odd][r] =
                        dot8(q[odd][0], in[t].x[2 * pair + odd][0], q[odd][1], in[t].x[2 * pair + odd][1]);
            }
        }
        LQ_UNROLL
        for (size_t t = 0; t < n_x; t++) {
            LQ_UNROLL
            for (int odd = 0; odd < 2; odd++) {
                const __m256i *s = sums[t][odd];
                int g = 2 * pair + odd;
                acc[t] = add_product(acc[t], sum_rows(s[0], s[1], s[2], s[3]), d[g], spread(in[t].d, g, g + 4));
                acc[t] = _mm256_fnmadd_ps(m[g], spread(in[t].sums, g, g + 4), acc[t]);
            }
        }
    }
}

#define LQ_ADD_K(name, qh)                                                                                             \
    typedef inputs_k name##_inputs;                                                                                    \
    LQ_INLINE name##_inputs name##_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {    \
        (void)all_cols, (void)n_blocks;                                                                                \
        return load_inputs_k(x, first_col);                                                                            \
    }                                                                                                                  \
    LQ_INLINE void name##_add(__m256 acc[2], const uint8_t *const blocks[4], size_t n_blocks, const inputs_k in[2],    \
                              size_t n_x) {                                                                            \
        (void)n_blocks;                                                                                                \
        add_k(acc, blocks, offsetof(lq_block_##name, qs), qh, in, n_x);                                                \
    }

LQ_ADD_K(q4_k, 0)
LQ_ADD_K(q5_k, offsetof(lq_block_q5_k, qh))

/* ---- Q6_K: 256 weights in groups of 16, a lane each */

typedef struct q6_k_inputs {
    const int8_t *q;
    __m256 d;          /* scale of each 32 activations */
    __m256 offsets[2]; /* -32 times scale times the sum of each 16: scaling by a power of two rounds nothing */
} q6_k_inputs;

LQ_INLINE q6_k_inputs q6_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    const float *sums = x->d_sums + all_cols / 32 + first_col / 16;
    const __m256 zero = _mm256_set1_ps(-32.0f);
    (void)n_blocks;
    q6_k_inputs in = {x->q + first_col,
                      _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK),
                      {_mm256_mul_ps(_mm256_loadu_ps(sums), zero), _mm256_mul_ps(_mm256_loadu_ps(sums + 8), zero)}};
    return in;
}

/* Scales of half of the four rows' blocks: two groups of 16 a vector. */
LQ_INLINE void load_scales_6(__m256 out[4], const uint8_t *const blocks[4], int half) {
    __m256 rows[4], turned[4];
    LQ_UNROLL
    for (int r = 0; r < 4; r++) {
        const lq_block_q6_k *b = (const lq_block_q6_k *)blocks[r];
        __m256 d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(load16(b->d))));
        __m256i sc = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(b->scales + 8 * half)));
        rows[r] = _mm256_mul_ps(_mm256_cvtepi32_ps(sc), d);
    }
    turn_rows(turned, rows[0], rows[1], rows[2], rows[3]);
    out[0] = _mm256_permute2f128_ps(turned[0], turned[1], 0x20);
    out[1] = _mm256_permute2f128_ps(turned[2], turned[3], 0x20);
    out[2] = _mm256_permute2f128_ps(turned[0], turned[1], 0x31);
    out[3] = _mm256_permute2f128_ps(turned[2], turned[3], 0x31);
}

LQ_INLINE void load_half_6(__m256i q[4], const uint8_t *block, int half) {
    const lq_block_q6_k *b = (const lq_block_q6_k *)block;
    const __m256i upper = _mm256_set1_epi8(0x30);
    __m256i l0 = load256(b->ql + 64 * half), l1 = load256(b->ql + 64 * half + 32), h = load256(b->qh + 32 * half);
    q[0] = _mm256_or_si256(low_nibbles(l0), _mm256_and_si256(_mm256_slli_epi16(h, 4), upper));
    q[1] = _mm256_or_si256(low_nibbles(l1), _mm256_and_si256(_mm256_slli_epi16(h, 2), upper));
    q[2] = _mm256_or_si256(high_nibbles(l0), _mm256_and_si256(h, upper));
    q[3] = _mm256_or_si256(high_nibbles(l1), _mm256_and_si256(_mm256_srli_epi16(h, 2), upper));
}

LQ_INLINE void q6_k_add(__m256 acc[2], const uint8_t *const blocks[4], size_t n_blocks, const q6_k_inputs in[2],
                        size_t n_x) {
    (void)n_blocks;
    LQ_UNROLL
    for (int half = 0; half < 2; half++) {
        __m256 d[4];
        __m256i sums[2][4][4]; /* [activations][32 columns][row] */
        load_scales_6(d, blocks, half);
        LQ_UNROLL
        for (int r = 0; r < 4; r++) {
            __m256i q[4];
            load_half_6(q, blocks[r], half);
            LQ_UNROLL
            for (size_t t = 0; t < n_x; t++) {
                LQ_UNROLL
                for (int k = 0; k < 4; k++) sums[t][k][r] = dot4(q[k], load256(in[t].q + 128 * half + 32 * k));
            }
        }
        LQ_UNROLL
        for (size_t t = 0; t < n_x; t++) {
            LQ_UNROLL
            for (int k = 0; k < 4; k++) {
                const __m256i *s = sums[t][k];
                acc[t] = add_product(acc[t], sum_rows(s[0], s[1], s[2], s[3]), d[k],
                                     spread(in[t].d, 4 * half + k, 4 * half + k));
                acc[t] = _mm256_fmadd_ps(d[k], spread(in[t].offsets[half], 2 * k, 2 * k + 1), acc[t]);
            }
        }
    }
}

/* name, as a constant, blocks a chunk */
#define LQ_PRODUCTS(X)                                                                                                 \
    X(q4_0, Q4_0, 2)                                                                                                   \
    X(q4_1, Q4_1, 2)                                                                                                   \
    X(q5_0, Q5_0, 2)                                                                                                   \
    X(q8_0, Q8_0, 2)                                                                                                   \
    X(q4_k, Q4_K, 1)                                                                                                   \
    X(q5_k, Q5_K, 1)                                                                                                   \
    X(q6_k, Q6_K, 1)

#define LQ_DEFINE_PRODUCT(name, NAME, chunk_blocks)                                                                    \
    LQ_DEFINE_FEW(name, NAME, chunk_blocks, __m256, _mm256_setzero_ps, fold_phases)
#define LQ_PRODUCT_ENTRY(name, NAME, chunk_blocks) kernels->matmul_q8[LQ_TYPE_##NAME] = name;

LQ_PRODUCTS(LQ_DEFINE_PRODUCT)

LQ_INLINE void set_products(lq_kernels *kernels) { LQ_PRODUCTS(LQ_PRODUCT_ENTRY) }

#endif
