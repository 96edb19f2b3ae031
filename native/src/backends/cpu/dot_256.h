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

/* ---- Q4_K, Q5_K: 256 weights in groups of 32; a vector holds one 16-byte half of two groups, g and g + 4 */

typedef struct inputs_k {
    __m256i x[4][2]; /* [group][half]: 16 activations of it and of the group four further */
    __m256 d, sums;  /* scale of each group, and scale times the sum */
} inputs_k;

typedef struct weights_k {
    __m256i q[4][2];
    __m256 d, m;
} weights_k;

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

LQ_INLINE void load_nibbles_k(weights_k *w, const uint8_t *qs) {
    LQ_UNROLL
    for (int pair = 0; pair < 2; pair++)
        for (int half = 0; half < 2; half++) {
            __m256i v = two_lanes(qs + 32 * pair + 16 * half, qs + 32 * pair + 64 + 16 * half);
            w->q[2 * pair][half] = low_nibbles(v);
            w->q[2 * pair + 1][half] = high_nibbles(v);
        }
}

LQ_INLINE __m256 step_k(__m256 acc, const weights_k w[4], const inputs_k *in) {
    __m256 d[4], m[4];
    turn_rows(d, w[0].d, w[1].d, w[2].d, w[3].d);
    turn_rows(m, w[0].m, w[1].m, w[2].m, w[3].m);
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        __m256i sums[4];
        LQ_UNROLL
        for (int r = 0; r < 4; r++) sums[r] = dot8(w[r].q[g][0], in->x[g][0], w[r].q[g][1], in->x[g][1]);
        acc = add_product(acc, sum_rows(sums[0], sums[1], sums[2], sums[3]), d[g], spread(in->d, g, g + 4));
        acc = _mm256_fnmadd_ps(m[g], spread(in->sums, g, g + 4), acc);
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
    const lq_block_q4_k *b = (const lq_block_q4_k *)blocks;
    weights_k w;
    (void)n_blocks;
    load_nibbles_k(&w, b->qs);
    load_scales_k(b->d, &w.d, &w.m);
    return w;
}

LQ_INLINE __m256 q4_k_step(__m256 acc, const q4_k_weights w[4], const q4_k_inputs *in) { return step_k(acc, w, in); }

typedef inputs_k q5_k_inputs;
typedef weights_k q5_k_weights;

LQ_INLINE q5_k_inputs q5_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    (void)all_cols, (void)n_blocks;
    return load_inputs_k(x, first_col);
}

LQ_INLINE q5_k_weights q5_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q5_k *b = (const lq_block_q5_k *)blocks;
    weights_k w;
    (void)n_blocks;
    load_nibbles_k(&w, b->qs);
    load_scales_k(b->d, &w.d, &w.m);
    for (int half = 0; half < 2; half++) {
        __m256i qh = _mm256_broadcastsi128_si256(load128(b->qh + 16 * half));
        LQ_UNROLL
        for (int g = 0; g < 4; g++) { /* the upper lane's group is four further */
            __m256i mask = _mm256_set_m128i(_mm_set1_epi8((char)(1 << (g + 4))), _mm_set1_epi8((char)(1 << g)));
            __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(qh, mask), mask);
            w.q[g][half] = _mm256_or_si256(w.q[g][half], _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
    }
    return w;
}

LQ_INLINE __m256 q5_k_step(__m256 acc, const q5_k_weights w[4], const q5_k_inputs *in) { return step_k(acc, w, in); }

/* ---- Q6_K: 256 weights in groups of 16, a lane each */

typedef struct q6_k_inputs {
    const int8_t *q;
    __m256 d, sums[2]; /* scale of each 32 activations; scale times the sum of each 16 */
} q6_k_inputs;

typedef struct q6_k_weights {
    __m256i q[8];
    __m256 d[2];
} q6_k_weights;

LQ_INLINE q6_k_inputs q6_k_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks) {
    const float *sums = x->d_sums + all_cols / 32 + first_col / 16;
    (void)n_blocks;
    q6_k_inputs in = {x->q + first_col,
                      _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK),
                      {_mm256_loadu_ps(sums), _mm256_loadu_ps(sums + 8)}};
    return in;
}

LQ_INLINE q6_k_weights q6_k_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q6_k *b = (const lq_block_q6_k *)blocks;
    const __m256i upper = _mm256_set1_epi8(0x30);
    q6_k_weights w;
    (void)n_blocks;
    for (int half = 0; half < 2; half++) {
        __m256i l0 = load256(b->ql + 64 * half), l1 = load256(b->ql + 64 * half + 32), h = load256(b->qh + 32 * half);
        __m256i *q = w.q + 4 * half;
        q[0] = _mm256_or_si256(low_nibbles(l0), _mm256_and_si256(_mm256_slli_epi16(h, 4), upper));
        q[1] = _mm256_or_si256(low_nibbles(l1), _mm256_and_si256(_mm256_slli_epi16(h, 2), upper));
        q[2] = _mm256_or_si256(high_nibbles(l0), _mm256_and_si256(h, upper));
        q[3] = _mm256_or_si256(high_nibbles(l1), _mm256_and_si256(_mm256_srli_epi16(h, 2), upper));
    }
    __m256 d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(load16(b->d))));
    for (int i = 0; i < 2; i++) {
        __m256i sc = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(b->scales + 8 * i)));
        w.d[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(sc), d);
    }
    return w;
}

LQ_INLINE __m256 q6_k_step(__m256 acc, const q6_k_weights w[4], const q6_k_inputs *in) {
    LQ_UNROLL
    for (int half = 0; half < 2; half++) {
        __m256 turned[4], d[4];
        turn_rows(turned, w[0].d[half], w[1].d[half], w[2].d[half], w[3].d[half]);
        d[0] = _mm256_permute2f128_ps(turned[0], turned[1], 0x20);
        d[1] = _mm256_permute2f128_ps(turned[2], turned[3], 0x20);
        d[2] = _mm256_permute2f128_ps(turned[0], turned[1], 0x31);
        d[3] = _mm256_permute2f128_ps(turned[2], turned[3], 0x31);
        LQ_UNROLL
        for (int k = 0; k < 4; k++) {
            int i = 4 * half + k; /* of 32 columns, two groups */
            __m256i x = load256(in->q + 32 * i), sums[4];
            LQ_UNROLL
            for (int r = 0; r < 4; r++) sums[r] = dot4(w[r].q[i], x);
            acc = add_product(acc, sum_rows(sums[0], sums[1], sums[2], sums[3]), d[k], spread(in->d, i, i));
            acc = _mm256_fmadd_ps(_mm256_mul_ps(d[k], _mm256_set1_ps(-32.0f)),
                                  spread(in->sums[half], 2 * k, 2 * k + 1), acc);
        }
    }
    return acc;
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
