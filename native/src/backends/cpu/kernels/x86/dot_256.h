/* dot_256.h - integer products with 256-bit vectors, shared by dot_avx2.c and dot_avxvnni.c.
 *
 * 16-byte halves are arranged so that each 128-bit lane belongs to one block and low and high nibbles add up before the
 * conversion to float. */
#ifndef LQ_CPU_DOT_256_H
#define LQ_CPU_DOT_256_H

#include "backends/cpu/kernels/x86/dot_parts_256.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

/* ---- blocks of 32 with nibbles: Q4_0, Q4_1, Q5_0; a chunk is two blocks, one in each 128-bit lane */

typedef struct inputs_32 {
    __m256i low, high; /* activations 0..15 and 16..31 of both blocks */
    __m256i offset;    /* added to the integer product: minus the offset of the stored weights times the activations */
    __m256 d;          /* each block's scale in its lane */
    __m256 sums;       /* 0, d * sum of block 0, 0, d * sum of block 1, 0... */
} inputs_32;

typedef struct weights_32 {
    __m256i low, high;
    __m256 d;
    __m256 dm; /* d, m of block 0, d, m of block 1, 0... */
} weights_32;

/* Loads all but offset and sums. */
LQ_INLINE inputs_32 load_inputs_32(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in;
    const float *d = x->d + first_col / LQ_Q8_BLOCK;
    __m256i x0 = load256(x->q + first_col), x1 = n_blocks > 1 ? load256(x->q + first_col + 32) : _mm256_setzero_si256();
    in.low = _mm256_permute2x128_si256(x0, x1, 0x20);
    in.high = _mm256_permute2x128_si256(x0, x1, 0x31);
    in.d = _mm256_set_m128(n_blocks > 1 ? _mm_broadcast_ss(d + 1) : _mm_setzero_ps(), _mm_broadcast_ss(d));
    in.offset = _mm256_setzero_si256();
    in.sums = _mm256_setzero_ps();
    return in;
}

LQ_INLINE __m256i offset_32(const inputs_32 *in, int offset) {
    __m256i u = _mm256_set1_epi8((char)offset);
    return _mm256_sub_epi32(_mm256_setzero_si256(), vi_dot_2(u, in->low, u, in->high));
}

LQ_INLINE __m256 scaled_step_32(__m256 acc, const weights_32 *w, const inputs_32 *in) {
    __m256i product = _mm256_add_epi32(vi_dot_2(w->low, in->low, w->high, in->high), in->offset);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_mul_ps(w->d, in->d), acc);
}

/* Spreads two half floats to the 128-bit lanes. */
LQ_INLINE __m256 load_scales_32(const uint8_t *d0, const uint8_t *d1) {
    __m128i halves = _mm_cvtsi32_si128(load16(d0));
    if (d1 != NULL) halves = _mm_insert_epi16(halves, load16(d1), 1);
    return spread(_mm256_castps128_ps256(_mm_cvtph_ps(halves)), 0, 1);
}

LQ_INLINE __m256i load_nibbles_32(const uint8_t *qs0, const uint8_t *qs1) {
    return qs1 != NULL ? two_lanes(qs0, qs1) : _mm256_zextsi128_si256(load128(qs0));
}

typedef inputs_32 q4_0_inputs;
typedef weights_32 q4_0_weights;

LQ_INLINE q4_0_inputs q4_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in = load_inputs_32(x, first_col, n_blocks);
    in.offset = offset_32(&in, 8);
    return in;
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

LQ_INLINE __m256 q4_0_step(__m256 acc, const q4_0_weights *w, const q4_0_inputs *in) {
    return scaled_step_32(acc, w, in);
}

typedef inputs_32 q4_1_inputs;
typedef weights_32 q4_1_weights;

LQ_INLINE q4_1_inputs q4_1_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in = load_inputs_32(x, first_col, n_blocks);
    const int16_t *sums = x->sums + first_col / 16;
    /* adds pairs of 16-bit sums to one 32-bit sum for each block, times d, and moves them to odd lanes */
    __m128i pairs = n_blocks > 1 ? _mm_loadl_epi64((const __m128i *)sums) : _mm_cvtsi32_si128(load32(sums));
    __m128 totals = _mm_cvtepi32_ps(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
    __m128 d = _mm_unpacklo_ps(_mm256_castps256_ps128(in.d), _mm256_extractf128_ps(in.d, 1));
    totals = _mm_unpacklo_ps(_mm_setzero_ps(), _mm_mul_ps(totals, d));
    in.sums = _mm256_zextps128_ps256(totals);
    return in;
}

LQ_INLINE q4_1_weights q4_1_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q4_1 *b = (const lq_block_q4_1 *)blocks;
    weights_32 w;
    __m256i qs = load_nibbles_32(b[0].qs, n_blocks > 1 ? b[1].qs : NULL);
    __m128i halves = _mm_cvtsi32_si128(load32(b[0].d)); /* m follows d */
    if (n_blocks > 1) halves = _mm_insert_epi32(halves, load32(b[1].d), 1);
    w.low = low_nibbles(qs);
    w.high = high_nibbles(qs);
    w.dm = _mm256_zextps128_ps256(_mm_cvtph_ps(halves));
    w.d = spread(w.dm, 0, 2);
    return w;
}

LQ_INLINE __m256 q4_1_step(__m256 acc, const q4_1_weights *w, const q4_1_inputs *in) {
    __m256i product = vi_dot_2(w->low, in->low, w->high, in->high);
    acc = _mm256_fmadd_ps(w->dm, in->sums, acc);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_mul_ps(w->d, in->d), acc);
}

typedef inputs_32 q5_0_inputs;
typedef weights_32 q5_0_weights;

LQ_INLINE q5_0_inputs q5_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    inputs_32 in = load_inputs_32(x, first_col, n_blocks);
    in.offset = offset_32(&in, 16);
    return in;
}

/* Gives 16 in each byte whose bit is set. bytes: the index of the byte with that bit, within the lane's four. */
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

LQ_INLINE __m256 q5_0_step(__m256 acc, const q5_0_weights *w, const q5_0_inputs *in) {
    return scaled_step_32(acc, w, in);
}

/* ---- Q8_0: signed by signed, through |w| and x with the sign of w; a chunk is one block */

typedef struct q8_0_inputs {
    __m256i q;
    __m256 d;
} q8_0_inputs;

typedef struct q8_0_weights {
    __m256i q, magnitude;
    __m256 d;
} q8_0_weights;

LQ_INLINE q8_0_inputs q8_0_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
    q8_0_inputs in = {load256(x->q + first_col), _mm256_broadcast_ss(x->d + first_col / LQ_Q8_BLOCK)};
    return in;
}

LQ_INLINE q8_0_weights q8_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_q8_0 *b = (const lq_block_q8_0 *)blocks;
    q8_0_weights w;
    (void)n_blocks;
    w.q = load256(b->qs);
    w.magnitude = _mm256_abs_epi8(w.q); /* 128 for -128: unsigned from here on */
    w.d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(load16(b->d))));
    return w;
}

LQ_INLINE __m256 q8_0_step(__m256 acc, const q8_0_weights *w, const q8_0_inputs *in) {
    __m256i product = vi_dot(w->magnitude, _mm256_sign_epi8(in->q, w->q));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_mul_ps(w->d, in->d), acc);
}

/* ---- Q4_K, Q5_K: 256 weights in groups of 32; a vector holds one 16-byte half of two groups, one in each lane */

typedef struct inputs_k {
    __m256i x[2][2][2]; /* [pair of 128 columns][even, odd groups][half]: groups g and g + 2, 16 activations each */
    __m256 d;           /* scale of each group */
    __m256 sums;        /* d * sum of each group */
} inputs_k;

typedef struct weights_k {
    __m256i q[2][2][2];
    __m256 d, m;
} weights_k;

LQ_INLINE inputs_k load_inputs_k(const lq_q8_row *x, size_t first_col) {
    inputs_k in;
    for (int pair = 0; pair < 2; pair++)
        for (int odd = 0; odd < 2; odd++)
            for (int half = 0; half < 2; half++) {
                const int8_t *q = x->q + first_col + 128 * pair + 32 * odd + 16 * half;
                in.x[pair][odd][half] = two_lanes(q, q + 64);
            }
    in.d = _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK);
    __m256i totals = _mm256_madd_epi16(load256(x->sums + first_col / 16), _mm256_set1_epi16(1));
    in.sums = _mm256_mul_ps(_mm256_cvtepi32_ps(totals), in.d);
    return in;
}

/* Loads the scales of a block's 8 groups times d, and their minima times dmin. dm points to d, dmin, scales[12]. */
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
    for (int pair = 0; pair < 2; pair++)
        for (int half = 0; half < 2; half++) {
            __m256i v = two_lanes(qs + 64 * pair + 16 * half, qs + 64 * pair + 32 + 16 * half);
            w->q[pair][0][half] = low_nibbles(v);
            w->q[pair][1][half] = high_nibbles(v);
        }
}

LQ_INLINE __m256 step_k(__m256 acc, const weights_k *w, const inputs_k *in) {
    __m256 d = _mm256_mul_ps(w->d, in->d);
    acc = _mm256_fnmadd_ps(w->m, in->sums, acc);
    for (int pair = 0; pair < 2; pair++)
        for (int odd = 0; odd < 2; odd++) {
            __m256i product =
                vi_dot_2(w->q[pair][odd][0], in->x[pair][odd][0], w->q[pair][odd][1], in->x[pair][odd][1]);
            acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), spread(d, 4 * pair + odd, 4 * pair + odd + 2), acc);
        }
    return acc;
}

typedef inputs_k q4_k_inputs;
typedef weights_k q4_k_weights;

LQ_INLINE q4_k_inputs q4_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
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

LQ_INLINE __m256 q4_k_step(__m256 acc, const q4_k_weights *w, const q4_k_inputs *in) { return step_k(acc, w, in); }

typedef inputs_k q5_k_inputs;
typedef weights_k q5_k_weights;

LQ_INLINE q5_k_inputs q5_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    (void)n_blocks;
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
        for (int pair = 0; pair < 2; pair++)
            for (int odd = 0; odd < 2; odd++) {
                int bit = 4 * pair + odd; /* the bit of the lower lane's group; the upper lane's group is two further */
                __m256i mask = _mm256_set_m128i(_mm_set1_epi8((char)(1 << (bit + 2))), _mm_set1_epi8((char)(1 << bit)));
                __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(qh, mask), mask);
                w.q[pair][odd][half] =
                    _mm256_or_si256(w.q[pair][odd][half], _mm256_and_si256(set, _mm256_set1_epi8(16)));
            }
    }
    return w;
}

LQ_INLINE __m256 q5_k_step(__m256 acc, const q5_k_weights *w, const q5_k_inputs *in) { return step_k(acc, w, in); }

/* ---- Q6_K: 256 weights in groups of 16, one in each 128-bit lane */

typedef struct q6_k_inputs {
    const int8_t *q;
    __m256 d[2];       /* scale of each 16 activations */
    __m256 offsets[2]; /* -32 * sum of each 16 activations */
} q6_k_inputs;

typedef struct q6_k_weights {
    __m256i q[8];
    __m256 d[2];
} q6_k_weights;

LQ_INLINE q6_k_inputs q6_k_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {
    q6_k_inputs in;
    (void)n_blocks;
    in.q = x->q + first_col;
    __m256 d = _mm256_loadu_ps(x->d + first_col / LQ_Q8_BLOCK);
    in.d[0] = _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    in.d[1] = _mm256_permutevar8x32_ps(d, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
    for (int i = 0; i < 2; i++) {
        __m256i sums = _mm256_cvtepi16_epi32(load128(x->sums + first_col / 16 + 8 * i));
        in.offsets[i] = _mm256_cvtepi32_ps(_mm256_mullo_epi32(sums, _mm256_set1_epi32(-32)));
    }
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

LQ_INLINE __m256 q6_k_step(__m256 acc, const q6_k_weights *w, const q6_k_inputs *in) {
    for (int i = 0; i < 2; i++) {
        __m256 d = _mm256_mul_ps(w->d[i], in->d[i]);
        acc = _mm256_fmadd_ps(d, in->offsets[i], acc);
        for (int k = 0; k < 4; k++) {
            __m256i product = vi_dot(w->q[4 * i + k], load256(in->q + 128 * i + 32 * k));
            acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), spread(d, 2 * k, 2 * k + 1), acc);
        }
    }
    return acc;
}

/* X(name, NAME, blocks of a chunk, weight rows of a tile with several activation rows) */
#define LQ_PRODUCTS(X)                                                                                                 \
    X(q4_0, Q4_0, 2, 2)                                                                                                \
    X(q4_1, Q4_1, 2, 2)                                                                                                \
    X(q5_0, Q5_0, 2, 2)                                                                                                \
    X(q8_0, Q8_0, 1, 2)                                                                                                \
    X(q4_k, Q4_K, 1, 1)                                                                                                \
    X(q5_k, Q5_K, 1, 1)                                                                                                \
    X(q6_k, Q6_K, 1, 1)

#define LQ_DEFINE_PRODUCT(name, NAME, chunk_blocks, rows_n)                                                            \
    LQ_DEFINE_MATMUL(name, LQ_##NAME##_LEN, sizeof(lq_block_##name), chunk_blocks, __m256, _mm256_setzero_ps,          \
                     vf_sums_of_4, 4, rows_n)
#define LQ_PRODUCT_ENTRY(name, NAME, chunk_blocks, rows_n) kernels->matmul_q8[LQ_TYPE_##NAME] = name;

LQ_PRODUCTS(LQ_DEFINE_PRODUCT)

LQ_INLINE void set_products(lq_kernels *kernels) { LQ_PRODUCTS(LQ_PRODUCT_ENTRY) }

#endif
