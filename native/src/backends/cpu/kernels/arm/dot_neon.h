/* dot_neon.h - products of packed weights with NEON, shared by dot_neon.c, dot_grid_neon.c, dot_dotprod.c and
 * dot_i8mm.c.
 *
 * Weights come in groups of 32 or 16 that share a scale. The sums of four groups are brought into the lanes of one
 * vector while they are integers, so that one conversion and one multiply-add serve all four: lane j of an accumulator
 * belongs to groups j, j + 4, j + 8... Integer sums are exact and the steps in float are the same ones in the same
 * order, so all levels give the same bits. */
#ifndef LQ_CPU_DOT_NEON_H
#define LQ_CPU_DOT_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "backends/cpu/kernels/matmul_tile.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/iq_values.h"
#include "formats/mxfp4.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_1.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"
#include "formats/tq2_0.h"

/* ---- small pieces */

LQ_INLINE uint16_t load16(const void *p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

LQ_INLINE uint32_t load32(const void *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

/* Converts n half floats, stride bytes apart; the other lanes are zeros. */
LQ_INLINE float32x4_t load_halves(const uint8_t *p, size_t stride, size_t n) {
    uint64_t halves = load16(p);
    if (n > 1) halves |= (uint64_t)load16(p + stride) << 16;
    if (n > 2) halves |= (uint64_t)load16(p + 2 * stride) << 32;
    if (n > 3) halves |= (uint64_t)load16(p + 3 * stride) << 48;
    return vcvt_f32_f16(vreinterpret_f16_u16(vcreate_u16(halves)));
}

LQ_INLINE float load_half(const uint8_t *p) { return vgetq_lane_f32(load_halves(p, 0, 1), 0); }

LQ_INLINE int8x16_t low_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))); }
LQ_INLINE int8x16_t high_nibbles(uint8x16_t v) { return vreinterpretq_s8_u8(vshrq_n_u8(v, 4)); }

/* Adds up 16 products of signed bytes in four sums. */
LQ_INLINE int32x4_t dot_16(int8x16_t w, int8x16_t x) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(vdupq_n_s32(0), w, x);
#else /* two products in 16 bits: at most 128 * 127 * 2, which fits */
    return vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x));
#endif
}

/* The same for 32. */
LQ_INLINE int32x4_t dot_32(const int8x16_t w[2], const int8x16_t x[2]) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(dot_16(w[0], x[0]), w[1], x[1]);
#else
    int16x8_t pairs = vmull_s8(vget_low_s8(w[1]), vget_low_s8(x[1]));
    return vpadalq_s16(dot_16(w[0], x[0]), vmlal_high_s8(pairs, w[1], x[1]));
#endif
}

/* Adds up the lanes of each of four vectors; lane i is the sum of vector i. */
LQ_INLINE int32x4_t totals_of_4(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

LQ_INLINE float32x4_t zero_sum(void) { return vdupq_n_f32(0.0f); }
LQ_INLINE void sums_of_4(float sums[4], float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

/* ---- four groups of 32 */

typedef struct inputs_128 {
    const int8_t *q;    /* 128; beyond the end of a row they may be anything, because weights are 0 there */
    float32x4_t d;      /* scale of each group */
    int32x4_t sums;     /* sum of q of each group */
    float32x4_t scaled; /* d * sums */
} inputs_128;

typedef struct weights_128 {
    int8x16_t q[8];
    float32x4_t d; /* scale of each group */
    float32x4_t m; /* added to each weight of a group */
} weights_128;

LQ_INLINE inputs_128 load_inputs_128(const lq_q8_row *x, size_t first_col, size_t n_groups) {
    inputs_128 in = {.q = x->q + first_col};
    float d[4] = {0.0f};
    int16_t sums[8] = {0};
    if (n_groups == 4) {
        in.d = vld1q_f32(x->d + first_col / 32);
        in.sums = vpaddlq_s16(vld1q_s16(x->sums + first_col / 16));
    } else {
        memcpy(d, x->d + first_col / 32, n_groups * sizeof *d);
        memcpy(sums, x->sums + first_col / 16, n_groups * 2 * sizeof *sums);
        in.d = vld1q_f32(d);
        in.sums = vpaddlq_s16(vld1q_s16(sums));
    }
    in.scaled = vmulq_f32(in.d, vcvtq_f32_s32(in.sums));
    return in;
}

/* offset: how much larger codes are than the weights they stand for. */
LQ_INLINE float32x4_t step_128(float32x4_t acc, const weights_128 *w, const inputs_128 *in, int offset, bool has_min) {
    int32x4_t sums[4];
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        int8x16_t x[2] = {vld1q_s8(in->q + 32 * g), vld1q_s8(in->q + 32 * g + 16)};
        sums[g] = dot_32(w->q + 2 * g, x);
    }
    int32x4_t total = totals_of_4(sums[0], sums[1], sums[2], sums[3]);
    if (offset != 0) total = vmlsq_n_s32(total, in->sums, offset);
    if (has_min) acc = vfmaq_f32(acc, w->m, in->scaled);
    return vfmaq_f32(acc, vcvtq_f32_s32(total), vmulq_f32(w->d, in->d));
}

/* Packed weights. 128 of them are unpacked right where they are multiplied, which leaves registers free. */
typedef struct packed_weights {
    const uint8_t *blocks;
    size_t n_blocks;
} packed_weights;

/* What LQ_DEFINE_MATMUL asks for of a type with n_parts times four groups of 32 in a chunk, which provides
 *   weights_128 name_part(const uint8_t *blocks, size_t n_blocks, int part) */
#define LQ_GROUPS_OF_32(name, n_parts, offset, has_min)                                                                \
    enum { name##_parts = (n_parts), name##_offset = (offset), name##_has_min = (has_min) };                           \
    typedef struct name##_inputs {                                                                                     \
        inputs_128 part[n_parts];                                                                                      \
    } name##_inputs;                                                                                                   \
    typedef packed_weights name##_weights;                                                                             \
    LQ_INLINE name##_inputs name##_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {                     \
        name##_inputs in;                                                                                              \
        LQ_UNROLL                                                                                                      \
        for (int p = 0; p < (n_parts); p++)                                                                            \
            in.part[p] = load_inputs_128(x, first_col + 128 * (size_t)p, (n_parts) == 1 ? n_blocks : 4);               \
        return in;                                                                                                     \
    }                                                                                                                  \
    LQ_INLINE packed_weights name##_load_w(const uint8_t *blocks, size_t n_blocks) {                                   \
        return (packed_weights){blocks, n_blocks};                                                                     \
    }                                                                                                                  \
    LQ_INLINE float32x4_t name##_step(float32x4_t acc, const packed_weights *w, const name##_inputs *in) {             \
        LQ_UNROLL                                                                                                      \
        for (int p = 0; p < (n_parts); p++) {                                                                          \
            weights_128 part = name##_part(w->blocks, w->n_blocks, p);                                                 \
            acc = step_128(acc, &part, &in->part[p], offset, has_min);                                                 \
        }                                                                                                              \
        return acc;                                                                                                    \
    }

/* ---- blocks of 32 weights, four a chunk: name_unpack(block, q) makes bytes of one, scales and minima follow */

#define LQ_BLOCKS_OF_32(name, offset, has_min, scales, minima)                                                         \
    LQ_INLINE weights_128 name##_part(const uint8_t *blocks, size_t n_blocks, int part) {                              \
        const lq_block_##name *b = (const lq_block_##name *)blocks;                                                    \
        weights_128 w;                                                                                                 \
        (void)part;                                                                                                    \
        LQ_UNROLL                                                                                                      \
        for (size_t g = 0; g < 4; g++) {                                                                               \
            w.q[2 * g] = w.q[2 * g + 1] = vdupq_n_s8(0);                                                               \
            if (g < n_blocks) name##_unpack(&b[g], w.q + 2 * g);                                                       \
        }                                                                                                              \
        w.d = (scales);                                                                                                \
        w.m = (minima);                                                                                                \
        return w;                                                                                                      \
    }                                                                                                                  \
    LQ_GROUPS_OF_32(name, 1, offset, has_min)

LQ_INLINE void unpack_nibbles(const uint8_t qs[16], int8x16_t q[2]) {
    uint8x16_t v = vld1q_u8(qs);
    q[0] = low_nibbles(v);
    q[1] = high_nibbles(v);
}

LQ_INLINE void q4_0_unpack(const lq_block_q4_0 *b, int8x16_t q[2]) { unpack_nibbles(b->qs, q); }
LQ_BLOCKS_OF_32(q4_0, 8, false, load_halves(b->d, sizeof *b, n_blocks), zero_sum())

LQ_INLINE void q4_1_unpack(const lq_block_q4_1 *b, int8x16_t q[2]) { unpack_nibbles(b->qs, q); }
LQ_BLOCKS_OF_32(q4_1, 0, true, load_halves(b->d, sizeof *b, n_blocks), load_halves(b->m, sizeof *b, n_blocks))

/* Widens 32 bits to bytes: all ones where the bit is set. */
LQ_INLINE void unpack_bits(uint32_t bits, uint8x16_t out[2]) {
    static const uint8_t bytes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8x16_t first = vld1q_u8(bytes), bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    uint8x16_t v = vreinterpretq_u8_u32(vdupq_n_u32(bits));
    out[0] = vtstq_u8(vqtbl1q_u8(v, first), bit);
    out[1] = vtstq_u8(vqtbl1q_u8(v, vaddq_u8(first, vdupq_n_u8(2))), bit);
}

/* Unpacks nibbles and adds their fifth bits. */
LQ_INLINE void unpack_fives(const uint8_t qh[4], const uint8_t qs[16], int8x16_t q[2]) {
    uint8x16_t set[2];
    unpack_bits(load32(qh), set);
    unpack_nibbles(qs, q);
    for (int i = 0; i < 2; i++) q[i] = vorrq_s8(q[i], vreinterpretq_s8_u8(vandq_u8(set[i], vdupq_n_u8(16))));
}

LQ_INLINE void q5_0_unpack(const lq_block_q5_0 *b, int8x16_t q[2]) { unpack_fives(b->qh, b->qs, q); }
LQ_BLOCKS_OF_32(q5_0, 16, false, load_halves(b->d, sizeof *b, n_blocks), zero_sum())

LQ_INLINE void q5_1_unpack(const lq_block_q5_1 *b, int8x16_t q[2]) { unpack_fives(b->qh, b->qs, q); }
LQ_BLOCKS_OF_32(q5_1, 0, true, load_halves(b->d, sizeof *b, n_blocks), load_halves(b->m, sizeof *b, n_blocks))

LQ_INLINE void q8_0_unpack(const lq_block_q8_0 *b, int8x16_t q[2]) {
    q[0] = vld1q_s8(b->qs);
    q[1] = vld1q_s8(b->qs + 16);
}
LQ_BLOCKS_OF_32(q8_0, 0, false, load_halves(b->d, sizeof *b, n_blocks), zero_sum())

LQ_INLINE void look_up(const int8_t values[16], int8x16_t q[2]) {
    int8x16_t table = vld1q_s8(values);
    for (int i = 0; i < 2; i++) q[i] = vqtbl1q_s8(table, vreinterpretq_u8_s8(q[i]));
}

LQ_INLINE void iq4_nl_unpack(const lq_block_iq4_nl *b, int8x16_t q[2]) {
    unpack_nibbles(b->qs, q);
    look_up(lq_iq4_values, q);
}
LQ_BLOCKS_OF_32(iq4_nl, 0, false, load_halves(b->d, sizeof *b, n_blocks), zero_sum())

/* Gives 2^(e - 128) of n blocks (a subnormal number if e is below 2); the other lanes are zeros. */
LQ_INLINE float32x4_t load_exponents(const lq_block_mxfp4 *b, size_t n) {
    uint32_t e[4] = {0};
    for (size_t g = 0; g < n; g++) e[g] = b[g].e;
    uint32x4_t v = vld1q_u32(e), small = vshlq_u32(vdupq_n_u32(0x00200000u), vreinterpretq_s32_u32(v));
    v = vbslq_u32(vcltq_u32(v, vdupq_n_u32(2)), small, vshlq_n_u32(vsubq_u32(v, vdupq_n_u32(1)), 23));
    return vreinterpretq_f32_u32(v);
}

LQ_INLINE void mxfp4_unpack(const lq_block_mxfp4 *b, int8x16_t q[2]) {
    unpack_nibbles(b->qs, q);
    look_up(lq_e2m1_values, q);
}
LQ_BLOCKS_OF_32(mxfp4, 0, false, load_exponents(b, n_blocks), zero_sum())

/* ---- blocks of 256 weights in 8 groups, part 0 or 1 is four of them: Q4_K, Q5_K, IQ4_XS, TQ2_0 */

/* Gives factor times (code plus offset); the code of lane j is byte 4 part + j. */
LQ_INLINE float32x4_t scale_4(uint8x8_t codes, int part, float offset, float factor) {
    uint16x8_t v = vmovl_u8(codes);
    float32x4_t scale = vcvtq_f32_u32(part == 0 ? vmovl_u16(vget_low_u16(v)) : vmovl_high_u16(v));
    return vmulq_n_f32(offset != 0.0f ? vaddq_f32(scale, vdupq_n_f32(offset)) : scale, factor);
}

/* Loads scales and minima. dm points to d, dmin, scales[12]; q4_k.h says where their bits are. */
LQ_INLINE void load_scales_k(weights_128 *w, const uint8_t *dm, int part) {
    uint32_t s0 = load32(dm + 4), s1 = load32(dm + 8), s2 = load32(dm + 12);
    uint32_t sc_high = (s2 & 0x0f0f0f0f) | (s0 >> 2 & 0x30303030);
    uint32_t min_high = (s2 >> 4 & 0x0f0f0f0f) | (s1 >> 2 & 0x30303030);
    w->d = scale_4(vcreate_u8(part == 0 ? s0 & 0x3f3f3f3f : sc_high), 0, 0.0f, load_half(dm));
    w->m = scale_4(vcreate_u8(part == 0 ? s1 & 0x3f3f3f3f : min_high), 0, 0.0f, -load_half(dm + 2));
}

/* Unpacks 32 bytes for each pair of groups; the low nibbles are the even group. */
LQ_INLINE void load_nibbles_k(weights_128 *w, const uint8_t qs[64]) {
    LQ_UNROLL
    for (int i = 0; i < 4; i++) {
        uint8x16_t v = vld1q_u8(qs + 16 * i);
        int8x16_t *q = w->q + i / 2 * 4 + i % 2;
        q[0] = low_nibbles(v);
        q[2] = high_nibbles(v);
    }
}

LQ_INLINE weights_128 q4_k_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_q4_k *b = (const lq_block_q4_k *)blocks;
    weights_128 w;
    (void)n_blocks;
    load_scales_k(&w, b->d, part);
    load_nibbles_k(&w, b->qs + 64 * part);
    return w;
}
LQ_GROUPS_OF_32(q4_k, 2, 0, true)

/* Sets the bits `to` in the bytes of q whose bit of `bits` is set. */
LQ_INLINE int8x16_t or_where(int8x16_t q, uint8x16_t bits, int bit, uint8_t to) {
    uint8x16_t set = vtstq_u8(bits, vdupq_n_u8((uint8_t)(1 << bit)));
    return vorrq_s8(q, vreinterpretq_s8_u8(vandq_u8(set, vdupq_n_u8(to))));
}

LQ_INLINE weights_128 q5_k_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_q5_k *b = (const lq_block_q5_k *)blocks;
    weights_128 w;
    (void)n_blocks;
    load_scales_k(&w, b->d, part);
    load_nibbles_k(&w, b->qs + 64 * part);
    LQ_UNROLL
    for (int i = 0; i < 8; i++) w.q[i] = or_where(w.q[i], vld1q_u8(b->qh + i % 2 * 16), 4 * part + i / 2, 16);
    return w;
}
LQ_GROUPS_OF_32(q5_k, 2, 0, true)

LQ_INLINE weights_128 iq4_xs_part(const uint8_t *blocks, size_t n_blocks, int part) {
    static const int8_t nibble[8] = {0, -4, 0, -4, 0, -4, 0, -4}, pair[8] = {0, -2, -4, -6, 0, -2, -4, -6};
    const lq_block_iq4_xs *b = (const lq_block_iq4_xs *)blocks;
    weights_128 w;
    (void)n_blocks;
    uint8x8_t low = vreinterpret_u8_u32(vdup_n_u32(load32(b->scales_l)));
    uint8x8_t high = vcreate_u8(b->scales_h[0] * 0x01010101u | (uint64_t)(b->scales_h[1] * 0x01010101u) << 32);
    low = vand_u8(vshl_u8(vzip1_u8(low, low), vld1_s8(nibble)), vdup_n_u8(15));
    high = vand_u8(vshl_u8(high, vld1_s8(pair)), vdup_n_u8(3));
    w.d = scale_4(vorr_u8(low, vshl_n_u8(high, 4)), part, -32.0f, load_half(b->d));
    w.m = zero_sum();
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        unpack_nibbles(b->qs + 64 * part + 16 * g, w.q + 2 * g);
        look_up(lq_iq4_values, w.q + 2 * g);
    }
    return w;
}
LQ_GROUPS_OF_32(iq4_xs, 2, 0, false)

/* 128 numbers of two bits: 32 k + i is in bits 2 k, 2 k + 1 of byte i of 32. */
LQ_INLINE void unpack_twos(int8x16_t q[8], const uint8_t qs[32]) {
    const uint8x16_t three = vdupq_n_u8(3);
    LQ_UNROLL
    for (int i = 0; i < 2; i++) {
        uint8x16_t v = vld1q_u8(qs + 16 * i);
        q[i] = vreinterpretq_s8_u8(vandq_u8(v, three));
        q[2 + i] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), three));
        q[4 + i] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), three));
        q[6 + i] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
    }
}

LQ_INLINE weights_128 tq2_0_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_tq2_0 *b = (const lq_block_tq2_0 *)blocks;
    weights_128 w = {.d = vdupq_n_f32(load_half(b->d)), .m = zero_sum()};
    (void)n_blocks;
    unpack_twos(w.q, b->qs + 32 * part);
    return w;
}
LQ_GROUPS_OF_32(tq2_0, 2, 1, false)

/* ---- blocks of 256 weights in 16 groups, part 0 or 1 is eight of them: Q2_K, Q3_K, Q6_K */

typedef struct inputs_16s {
    const int8_t *q;
    float32x4_t d[2];      /* scale of each 16 */
    int32x4_t sums[2];     /* sum of q of each 16 */
    float32x4_t scaled[2]; /* d * sums */
} inputs_16s;

typedef struct weights_16s {
    int8x16_t q[8];
    float32x4_t d[2]; /* scale of each group */
    float32x4_t m[2]; /* added to each weight of a group */
} weights_16s;

LQ_INLINE inputs_16s load_inputs_16s(const lq_q8_row *x, size_t first_col) {
    inputs_16s in = {.q = x->q + first_col};
    float32x4_t d = vld1q_f32(x->d + first_col / 32);
    int16x8_t sums = vld1q_s16(x->sums + first_col / 16);
    in.d[0] = vzip1q_f32(d, d);
    in.d[1] = vzip2q_f32(d, d);
    in.sums[0] = vmovl_s16(vget_low_s16(sums));
    in.sums[1] = vmovl_high_s16(sums);
    for (int i = 0; i < 2; i++) in.scaled[i] = vmulq_f32(in.d[i], vcvtq_f32_s32(in.sums[i]));
    return in;
}

LQ_INLINE float32x4_t step_16s(float32x4_t acc, const weights_16s *w, const inputs_16s *in, int offset, bool has_min) {
    LQ_UNROLL
    for (int i = 0; i < 2; i++) {
        int32x4_t sums[4];
        LQ_UNROLL
        for (int g = 0; g < 4; g++) sums[g] = dot_16(w->q[4 * i + g], vld1q_s8(in->q + 64 * i + 16 * g));
        int32x4_t total = totals_of_4(sums[0], sums[1], sums[2], sums[3]);
        if (offset != 0) total = vmlsq_n_s32(total, in->sums[i], offset);
        if (has_min) acc = vfmaq_f32(acc, w->m[i], in->scaled[i]);
        acc = vfmaq_f32(acc, vcvtq_f32_s32(total), vmulq_f32(w->d[i], in->d[i]));
    }
    return acc;
}

/* As LQ_GROUPS_OF_32 has it, of a block with two parts: weights_16s name_part(const uint8_t *block, int part). */
#define LQ_GROUPS_OF_16(name, offset, has_min)                                                                         \
    typedef struct name##_inputs {                                                                                     \
        inputs_16s part[2];                                                                                            \
    } name##_inputs;                                                                                                   \
    typedef packed_weights name##_weights;                                                                             \
    LQ_INLINE name##_inputs name##_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks) {                     \
        (void)n_blocks;                                                                                                \
        return (name##_inputs){{load_inputs_16s(x, first_col), load_inputs_16s(x, first_col + 128)}};                  \
    }                                                                                                                  \
    LQ_INLINE packed_weights name##_load_w(const uint8_t *blocks, size_t n_blocks) {                                   \
        return (packed_weights){blocks, n_blocks};                                                                     \
    }                                                                                                                  \
    LQ_INLINE float32x4_t name##_step(float32x4_t acc, const packed_weights *w, const name##_inputs *in) {             \
        LQ_UNROLL                                                                                                      \
        for (int p = 0; p < 2; p++) {                                                                                  \
            weights_16s part = name##_part(w->blocks, p);                                                              \
            acc = step_16s(acc, &part, &in->part[p], offset, has_min);                                                 \
        }                                                                                                              \
        return acc;                                                                                                    \
    }

/* Sets the scales of eight groups to factor times (code plus offset). */
LQ_INLINE void scale_8(float32x4_t out[2], int8x8_t codes, float offset, float factor) {
    int16x8_t v = vmovl_s8(codes);
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(v)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(v));
    for (int i = 0; i < 2; i++)
        out[i] = vmulq_n_f32(offset != 0.0f ? vaddq_f32(out[i], vdupq_n_f32(offset)) : out[i], factor);
}

LQ_INLINE weights_16s q2_k_part(const uint8_t *block, int part) {
    const lq_block_q2_k *b = (const lq_block_q2_k *)block;
    uint8x8_t scales = vld1_u8(b->scales + 8 * part);
    weights_16s w;
    scale_8(w.d, vreinterpret_s8_u8(vand_u8(scales, vdup_n_u8(15))), 0.0f, load_half(b->d));
    scale_8(w.m, vreinterpret_s8_u8(vshr_n_u8(scales, 4)), 0.0f, -load_half(b->dmin));
    unpack_twos(w.q, b->qs + 32 * part);
    return w;
}
LQ_GROUPS_OF_16(q2_k, 0, true)

LQ_INLINE weights_16s q3_k_part(const uint8_t *block, int part) {
    const lq_block_q3_k *b = (const lq_block_q3_k *)block;
    uint64_t codes; /* eight bytes; q3_k.c says where their bits are */
    uint32_t high = load32(b->scales + 8) >> 4 * part;
    weights_16s w = {.m = {zero_sum(), zero_sum()}};
    memcpy(&codes, b->scales, 8);
    codes = (codes >> 4 * part & 0x0f0f0f0f0f0f0f0fu) | (uint64_t)(high & 0x03030303) << 4 |
            (uint64_t)(high >> 2 & 0x03030303) << 36;
    scale_8(w.d, vcreate_s8(codes), -32.0f, load_half(b->d));
    unpack_twos(w.q, b->qs + 32 * part);
    LQ_UNROLL
    for (int i = 0; i < 8; i++) w.q[i] = or_where(w.q[i], vld1q_u8(b->hmask + i % 2 * 16), 4 * part + i / 2, 4);
    return w;
}
LQ_GROUPS_OF_16(q3_k, 4, false)

LQ_INLINE weights_16s q6_k_part(const uint8_t *block, int part) {
    const lq_block_q6_k *b = (const lq_block_q6_k *)block;
    const uint8x16_t upper = vdupq_n_u8(0x30);
    weights_16s w = {.m = {zero_sum(), zero_sum()}};
    scale_8(w.d, vld1_s8(b->scales + 8 * part), 0.0f, load_half(b->d));
    LQ_UNROLL
    for (int i = 0; i < 2; i++) {
        const uint8_t *ql = b->ql + 64 * part + 16 * i;
        uint8x16_t l0 = vld1q_u8(ql), l1 = vld1q_u8(ql + 32), h = vld1q_u8(b->qh + 32 * part + 16 * i);
        w.q[i] = vorrq_s8(low_nibbles(l0), vreinterpretq_s8_u8(vandq_u8(vshlq_n_u8(h, 4), upper)));
        w.q[2 + i] = vorrq_s8(low_nibbles(l1), vreinterpretq_s8_u8(vandq_u8(vshlq_n_u8(h, 2), upper)));
        w.q[4 + i] = vorrq_s8(high_nibbles(l0), vreinterpretq_s8_u8(vandq_u8(h, upper)));
        w.q[6 + i] = vorrq_s8(high_nibbles(l1), vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(h, 2), upper)));
    }
    return w;
}
LQ_GROUPS_OF_16(q6_k, 32, false)

/* ---- tables of products: X(name, NAME, blocks of a chunk) */

#define LQ_NEON_MATMUL(name, NAME, chunk_blocks)                                                                       \
    LQ_DEFINE_MATMUL(name, LQ_##NAME##_LEN, sizeof(lq_block_##name), chunk_blocks, float32x4_t, zero_sum, sums_of_4,   \
                     4, 2)

#define LQ_NEON_ENTRY(name, NAME, chunk_blocks) kernels->matmul_q8[LQ_TYPE_##NAME] = name;

#define LQ_NEON_TYPES_OF_32(X)                                                                                         \
    X(q4_0, Q4_0, 4)                                                                                                   \
    X(q4_1, Q4_1, 4)                                                                                                   \
    X(q5_0, Q5_0, 4)                                                                                                   \
    X(q5_1, Q5_1, 4)                                                                                                   \
    X(q8_0, Q8_0, 4)                                                                                                   \
    X(iq4_nl, IQ4_NL, 4)                                                                                               \
    X(mxfp4, MXFP4, 4)                                                                                                 \
    X(q4_k, Q4_K, 1)                                                                                                   \
    X(q5_k, Q5_K, 1)                                                                                                   \
    X(iq4_xs, IQ4_XS, 1)                                                                                               \
    X(tq2_0, TQ2_0, 1)

#define LQ_NEON_TYPES_OF_16(X)                                                                                         \
    X(q2_k, Q2_K, 1)                                                                                                   \
    X(q3_k, Q3_K, 1)                                                                                                   \
    X(q6_k, Q6_K, 1)

#endif
