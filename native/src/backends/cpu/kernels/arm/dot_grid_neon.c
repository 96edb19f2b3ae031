/* dot_grid_neon.c - products with NEON of weights that are vectors of a codebook: the IQ types of fewer than four bits.
 * A codebook entry holds the numbers of its levels (formats/iq_grids.h). The kernels spread these to bytes, look up the
 * levels, and apply the signs. That takes so much longer than the products that the higher levels use these, too. */
#include "backends/cpu/kernels/arm/dot_neon.h"
#include "formats/iq1_m.h"
#include "formats/iq1_s.h"
#include "formats/iq2_s.h"
#include "formats/iq2_xs.h"
#include "formats/iq2_xxs.h"
#include "formats/iq3_s.h"
#include "formats/iq3_xxs.h"
#include "formats/iq_grids.h"

/* Spreads an entry's eight numbers of two bits. */
LQ_INLINE uint8x8_t spread_2(uint16_t entry) {
    static const int16_t shifts[8] = {0, -2, -4, -6, -8, -10, -12, -14};
    return vand_u8(vmovn_u16(vshlq_u16(vdupq_n_u16(entry), vld1q_s16(shifts))), vdup_n_u8(3));
}

/* Spreads the four numbers of three bits of each of two entries. */
LQ_INLINE uint8x8_t spread_3(uint16_t first, uint16_t second) {
    static const int16_t shifts[8] = {0, -3, -6, -9, 0, -3, -6, -9};
    uint16x8_t entries = vcombine_u16(vdup_n_u16(first), vdup_n_u16(second));
    return vand_u8(vmovn_u16(vshlq_u16(entries, vld1q_s16(shifts))), vdup_n_u8(7));
}

/* Gives the numbers of four entries of eight numbers. */
LQ_INLINE void entries_2(uint8x16_t out[2], const uint16_t *grid, unsigned a, unsigned b, unsigned c, unsigned d) {
    out[0] = vcombine_u8(spread_2(grid[a]), spread_2(grid[b]));
    out[1] = vcombine_u8(spread_2(grid[c]), spread_2(grid[d]));
}

/* Gives the numbers of eight entries of four numbers. */
LQ_INLINE void entries_3(uint8x16_t out[2], const uint16_t e[8]) {
    out[0] = vcombine_u8(spread_3(e[0], e[1]), spread_3(e[2], e[3]));
    out[1] = vcombine_u8(spread_3(e[4], e[5]), spread_3(e[6], e[7]));
}

#define LQ_IQ2_LEVELS 0x002b1908u               /* 8, 25, 43 */
#define LQ_IQ3_XXS_LEVELS 0x3e342c241c140c04ull /* 4, 12 ... 52, 62 */
#define LQ_IQ3_S_LEVELS 0x0f0d0b0907050301ull   /* 1, 3 ... 15 */

/* Looks up the levels of `numbers`, and negates those whose bit of `signs` is set. */
LQ_INLINE void signed_levels(int8x16_t q[2], uint64_t levels, const uint8x16_t numbers[2], uint32_t signs) {
    int8x16_t table = vreinterpretq_s8_u64(vdupq_n_u64(levels));
    uint8x16_t set[2];
    unpack_bits(signs, set);
    for (int i = 0; i < 2; i++) {
        int8x16_t negative = vreinterpretq_s8_u8(set[i]);
        q[i] = vsubq_s8(veorq_s8(vqtbl1q_s8(table, numbers[i]), negative), negative);
    }
}

/* Gives four times eight signs for four times seven bits. */
LQ_INLINE uint32_t all_signs(uint32_t bits) {
    return lq_iq_signs(bits) | lq_iq_signs(bits >> 7) << 8 | lq_iq_signs(bits >> 14) << 16 |
           lq_iq_signs(bits >> 21) << 24;
}

/* Unpacks eight nibbles to bytes, the low one of a byte first. */
LQ_INLINE uint64_t nibbles_of(uint32_t packed) {
    uint64_t v = (uint64_t)(packed & 0xffff0000u) << 16 | (packed & 0xffffu);
    v = (v | v << 8) & 0x00ff00ff00ff00ffu;
    return (v | v << 4) & 0x0f0f0f0f0f0f0f0fu;
}

/* Set the scales of four groups of 32, or eight of 16, to factor * (code + 1/2). There are no minima. */
LQ_INLINE void set_scales_32s(weights_128 *w, uint32_t codes, float factor) {
    w->d = scale_4(vcreate_u8(codes), 0, 0.5f, factor);
    w->m = zero_sum();
}

LQ_INLINE void set_scales_16s(weights_16s *w, uint64_t codes, float factor) {
    scale_8(w->d, vcreate_s8(codes), 0.5f, factor);
    w->m[0] = w->m[1] = zero_sum();
}

LQ_INLINE weights_128 iq2_xxs_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_iq2_xxs *b = (const lq_block_iq2_xxs *)blocks;
    weights_128 w;
    uint32_t codes = 0;
    (void)n_blocks;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs[4 * part + g];
        uint32_t rest = load32(qs + 4);
        uint8x16_t numbers[2];
        entries_2(numbers, lq_iq2_xxs_grid, qs[0], qs[1], qs[2], qs[3]);
        signed_levels(w.q + 2 * g, LQ_IQ2_LEVELS, numbers, all_signs(rest));
        codes |= rest >> 28 << 8 * g;
    }
    set_scales_32s(&w, codes, 0.25f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_32(iq2_xxs, 2, 0, false)

LQ_INLINE weights_16s iq2_xs_part(const uint8_t *block, int part) {
    const lq_block_iq2_xs *b = (const lq_block_iq2_xs *)block;
    weights_16s w;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        uint64_t qs;
        uint8x16_t numbers[2];
        memcpy(&qs, b->qs[16 * part + 4 * g], 8);
        entries_2(numbers, lq_iq2_xs_grid, qs & 511, qs >> 16 & 511, qs >> 32 & 511, qs >> 48 & 511);
        uint32_t signs = lq_iq_signs(qs >> 9 & 127) | lq_iq_signs(qs >> 25 & 127) << 8 |
                         lq_iq_signs(qs >> 41 & 127) << 16 | lq_iq_signs((unsigned)(qs >> 57)) << 24;
        signed_levels(w.q + 2 * g, LQ_IQ2_LEVELS, numbers, signs);
    }
    set_scales_16s(&w, nibbles_of(load32(b->scales + 4 * part)), 0.25f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_16(iq2_xs, 0, false)

LQ_INLINE weights_16s iq2_s_part(const uint8_t *block, int part) {
    const lq_block_iq2_s *b = (const lq_block_iq2_s *)block;
    weights_16s w;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs + 16 * part + 4 * g;
        unsigned high = b->qh[4 * part + g];
        uint8x16_t numbers[2];
        entries_2(numbers, lq_iq2_s_grid, qs[0] | (high & 3) << 8, qs[1] | (high >> 2 & 3) << 8,
                  qs[2] | (high >> 4 & 3) << 8, qs[3] | (high >> 6) << 8);
        signed_levels(w.q + 2 * g, LQ_IQ2_LEVELS, numbers, load32(b->signs + 16 * part + 4 * g));
    }
    set_scales_16s(&w, nibbles_of(load32(b->scales + 4 * part)), 0.25f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_16(iq2_s, 0, false)

LQ_INLINE weights_128 iq3_xxs_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_iq3_xxs *b = (const lq_block_iq3_xxs *)blocks;
    weights_128 w;
    uint32_t codes = 0;
    (void)n_blocks;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs + 32 * part + 8 * g;
        uint32_t rest = load32(b->rest[4 * part + g]);
        uint16_t entries[8];
        uint8x16_t numbers[2];
        for (int i = 0; i < 8; i++) entries[i] = lq_iq3_xxs_grid[qs[i]];
        entries_3(numbers, entries);
        signed_levels(w.q + 2 * g, LQ_IQ3_XXS_LEVELS, numbers, all_signs(rest));
        codes |= rest >> 28 << 8 * g;
    }
    set_scales_32s(&w, codes, 0.5f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_32(iq3_xxs, 2, 0, false)

LQ_INLINE weights_128 iq3_s_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_iq3_s *b = (const lq_block_iq3_s *)blocks;
    weights_128 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs + 32 * part + 8 * g;
        unsigned high = b->qh[4 * part + g]; /* bit i is the ninth bit of index i */
        uint16_t entries[8];
        uint8x16_t numbers[2];
        for (int i = 0; i < 8; i++) entries[i] = lq_iq3_s_grid[qs[i] | (high >> i & 1) << 8];
        entries_3(numbers, entries);
        signed_levels(w.q + 2 * g, LQ_IQ3_S_LEVELS, numbers, load32(b->signs + 16 * part + 4 * g));
    }
    set_scales_32s(&w, (uint32_t)nibbles_of(load16(b->scales + 2 * part)), 2.0f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_32(iq3_s, 2, 0, false)

/* IQ1: scale * (-1, 0 or 1, plus or minus an eighth) is an eighth of the scale times -9, -7, -1, 1, 7 or 9. One
 * vector; which it is differs from eight weights to eight. */
LQ_INLINE int8x16_t eighths(uint8x16_t numbers, bool minus_low, bool minus_high) {
    const int8x16_t one = vdupq_n_s8(1);
    int8x16_t minus = vcombine_s8(vdup_n_s8((int8_t)-minus_low), vdup_n_s8((int8_t)-minus_high));
    return vaddq_s8(vshlq_n_s8(vsubq_s8(vreinterpretq_s8_u8(numbers), one), 3), vorrq_s8(minus, one));
}

LQ_INLINE weights_128 iq1_s_part(const uint8_t *blocks, size_t n_blocks, int part) {
    const lq_block_iq1_s *b = (const lq_block_iq1_s *)blocks;
    weights_128 w;
    uint32_t codes = 0;
    (void)n_blocks;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs + 16 * part + 4 * g;
        unsigned h = load16(b->qh[4 * part + g]);
        uint8x16_t numbers[2];
        entries_2(numbers, lq_iq1_grid, qs[0] | (h & 7) << 8, qs[1] | (h >> 3 & 7) << 8, qs[2] | (h >> 6 & 7) << 8,
                  qs[3] | (h >> 9 & 7) << 8);
        for (int i = 0; i < 2; i++) w.q[2 * g + i] = eighths(numbers[i], h >> 15, h >> 15);
        codes |= (h >> 12 & 7) << 8 * g;
    }
    set_scales_32s(&w, codes, 0.25f * load_half(b->d));
    return w;
}
LQ_GROUPS_OF_32(iq1_s, 2, 0, false)

LQ_INLINE weights_16s iq1_m_part(const uint8_t *block, int part) {
    const lq_block_iq1_m *b = (const lq_block_iq1_m *)block;
    weights_16s w;
    uint64_t packed, codes = 0;
    memcpy(&packed, b->scales, 8);
    uint64_t half = (packed >> 12 & 15) | (packed >> 24 & 0xf0) | (packed >> 36 & 0xf00) | (packed >> 48 & 0xf000);
    float d = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vcreate_u16(half))), 0);
    for (int i = 0; i < 8; i++) /* a group has three bits, and 16 bits hold four groups */
        codes |= (packed >> (32 * part + i / 4 * 16 + i % 4 * 3) & 7) << 8 * i;
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        const uint8_t *qs = b->qs + 16 * part + 4 * g;
        unsigned h = load16(b->qh + 8 * part + 2 * g); /* a nibble for each eight weights */
        uint8x16_t numbers[2];
        entries_2(numbers, lq_iq1_grid, qs[0] | (h & 7) << 8, qs[1] | (h >> 4 & 7) << 8, qs[2] | (h >> 8 & 7) << 8,
                  qs[3] | (h >> 12 & 7) << 8);
        w.q[2 * g] = eighths(numbers[0], h >> 3 & 1, h >> 7 & 1);
        w.q[2 * g + 1] = eighths(numbers[1], h >> 11 & 1, h >> 15 & 1);
    }
    set_scales_16s(&w, codes, 0.25f * d);
    return w;
}
LQ_GROUPS_OF_16(iq1_m, 0, false)

#define LQ_GRID_TYPES(X)                                                                                               \
    X(iq1_s, IQ1_S, 1)                                                                                                 \
    X(iq1_m, IQ1_M, 1)                                                                                                 \
    X(iq2_xxs, IQ2_XXS, 1)                                                                                             \
    X(iq2_xs, IQ2_XS, 1)                                                                                               \
    X(iq2_s, IQ2_S, 1)                                                                                                 \
    X(iq3_xxs, IQ3_XXS, 1)                                                                                             \
    X(iq3_s, IQ3_S, 1)
LQ_GRID_TYPES(LQ_NEON_MATMUL)

void lq_kernels_init_neon_dot_grid(lq_kernels *kernels) { LQ_GRID_TYPES(LQ_NEON_ENTRY) }
