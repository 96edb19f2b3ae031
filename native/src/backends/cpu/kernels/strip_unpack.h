/* strip_unpack.h - weights of a strip as bytes, for strip_tile.h: rows lie side by side in the lanes of a vector, four
 * columns of each in 32 bits, with a scale and a minimum for each group of columns. The including file says by
 * LQ_STRIP_SIGNED how signed weights are stored (strip_tile.h). */
#ifndef LQ_CPU_STRIP_UNPACK_H
#define LQ_CPU_STRIP_UNPACK_H

#include <stddef.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/iq_values.h"
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

/* Columns of a strip at most, a multiple of every block length. With its scales a strip fills half of a small L1 cache.
 */
#define LQ_STRIP_COLS 512

/* V_LANES unpacked rows of weights. */
typedef struct strip {
    vint codes[LQ_STRIP_COLS / 4]; /* [column / 4], lane r: four columns of row r */
    vfloat d[LQ_STRIP_COLS / 16];  /* [group] */
    vfloat m[LQ_STRIP_COLS / 16];
} strip;

/* The rows of a strip, from its first column on. Missing rows repeat the last one. */
typedef struct strip_rows {
    const uint8_t *at[V_LANES];
    const uint8_t *ahead; /* later weights to prefetch, as many bytes as these rows have here */
} strip_rows;

/* ---- unpacking: pieces */

/* Every load prefetches as many bytes of later weights. The rows are read a piece of each at a time, a pattern that the
 * hardware prefetcher does not recognise, and a whole strip at once would be more requests than a core can track. */
LQ_INLINE void prefetch_rows(const strip_rows *rows, size_t offset, size_t n_bytes) {
    LQ_UNROLL
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(rows->ahead + offset + i, 0, 2);
}

/* Loads 16 bytes of each row and transposes them: dwords[j] gets the j-th four bytes of all rows. */
LQ_INLINE void transpose_dwords(vint dwords[4], const uint8_t *const rows[V_LANES], size_t offset) {
    vint v[4];
    LQ_UNROLL
    for (int i = 0; i < 4; i++) v[i] = vi_load_rows(rows, i, offset);
    vint a = vi_unpack_low_32(v[0], v[1]), b = vi_unpack_high_32(v[0], v[1]);
    vint c = vi_unpack_low_32(v[2], v[3]), d = vi_unpack_high_32(v[2], v[3]);
    dwords[0] = vi_unpack_low_64(a, c);
    dwords[1] = vi_unpack_high_64(a, c);
    dwords[2] = vi_unpack_low_64(b, d);
    dwords[3] = vi_unpack_high_64(b, d);
}

LQ_INLINE void load_dwords(vint dwords[4], const strip_rows *rows, size_t offset) {
    prefetch_rows(rows, V_LANES * offset, V_LANES * 16);
    transpose_dwords(dwords, rows->at, offset);
}

/* Loads four bytes of each row. */
LQ_INLINE vint load_dword(const strip_rows *rows, size_t offset) {
    uint32_t dwords[V_LANES];
    prefetch_rows(rows, V_LANES * offset, V_LANES * 4);
    for (int r = 0; r < V_LANES; r++) memcpy(&dwords[r], rows->at[r] + offset, 4);
    return vi_load(dwords);
}

LQ_INLINE vint low_nibble(vint v) { return vi_and(v, vi_set1_int8(15)); }
LQ_INLINE vint high_nibble(vint v) { return vi_and(vi_srl(v, 4), vi_set1_int8(15)); }

/* Moves bits 4 j to 4 j + 3 of each lane to bit 4 of its four bytes. */
LQ_INLINE vint fifth_bits(vint bits, int j) {
    return vi_and(vi_equal_int8(vi_and(vi_shuffle_int8(bits, vi_indices_of_byte(j / 2)),
                                       vi_set1(j % 2 ? 0x80402010 : 0x08040201)),
                                vi_set1(j % 2 ? 0x80402010 : 0x08040201)),
                  vi_set1_int8(16));
}

/* ---- unpacking: blocks of 32 with 16 bytes of nibbles */

LQ_INLINE void unpack_nibbles(vint *codes, const strip_rows *rows, size_t offset) {
    vint dwords[4];
    load_dwords(dwords, rows, offset);
    LQ_UNROLL
    for (int j = 0; j < 4; j++) {
        codes[j] = low_nibble(dwords[j]);
        codes[4 + j] = high_nibble(dwords[j]);
    }
}

LQ_INLINE void unpack_fifth_bits(vint *codes, vint bits) {
    LQ_UNROLL
    for (int j = 0; j < 8; j++) codes[j] = vi_or(codes[j], fifth_bits(bits, j));
}

/* Blocks of block_bytes with d at their front, nibbles at qs and fifth bits at qh (0: none). A weight is d (code -
 * zero), or with zero 0 d code + m, m behind d. */
LQ_INLINE void unpack_32(strip *s, const strip_rows *rows, size_t first, size_t n_blocks, size_t block_bytes, size_t qs,
                         size_t qh, float zero) {
    for (size_t b = first; b < n_blocks; b++) {
        size_t at = b * block_bytes;
        vint head = load_dword(rows, at);
        unpack_nibbles(s->codes + 8 * b, rows, at + qs);
        if (qh != 0) unpack_fifth_bits(s->codes + 8 * b, load_dword(rows, at + qh));
        s->d[b] = vf_from_low_half(head);
        s->m[b] = zero != 0.0f ? vf_mul(s->d[b], vf_set1(-zero)) : vf_from_high_half(head);
    }
}

/* The same for blocks of n_dwords dwords: d and m, fifth bits or none, four of nibbles. Four blocks are a whole number
 * of 16-byte loads, so nothing has to be gathered. */
LQ_INLINE void unpack_32_dwords(strip *s, const strip_rows *rows, size_t n_blocks, size_t n_dwords) {
    size_t b = 0;
    for (; b + 4 <= n_blocks; b += 4) {
        vint dwords[4 * 6];
        LQ_UNROLL
        for (size_t i = 0; i < n_dwords; i++) load_dwords(dwords + 4 * i, rows, 4 * b * n_dwords + 16 * i);
        LQ_UNROLL
        for (size_t i = 0; i < 4; i++) {
            const vint *block = dwords + i * n_dwords, *nibbles = block + n_dwords - 4;
            vint *codes = s->codes + 8 * (b + i);
            LQ_UNROLL
            for (size_t j = 0; j < 4; j++) {
                codes[j] = low_nibble(nibbles[j]);
                codes[4 + j] = high_nibble(nibbles[j]);
            }
            if (n_dwords == 6) unpack_fifth_bits(codes, block[1]);
            s->d[b + i] = vf_from_low_half(block[0]);
            s->m[b + i] = vf_from_high_half(block[0]);
        }
    }
    unpack_32(s, rows, b, n_blocks, 4 * n_dwords, 4 * n_dwords - 16, n_dwords == 6 ? 4 : 0, 0.0f);
}

LQ_INLINE void q4_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    unpack_32(s, rows, 0, n_blocks, sizeof(lq_block_q4_0), offsetof(lq_block_q4_0, qs), 0, 8.0f);
}

LQ_INLINE void q4_1_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    unpack_32_dwords(s, rows, n_blocks, sizeof(lq_block_q4_1) / 4);
}

LQ_INLINE void q5_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    unpack_32(s, rows, 0, n_blocks, sizeof(lq_block_q5_0), offsetof(lq_block_q5_0, qs), offsetof(lq_block_q5_0, qh),
              16.0f);
}

LQ_INLINE void q5_1_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    unpack_32_dwords(s, rows, n_blocks, sizeof(lq_block_q5_1) / 4);
}

/* Turns a group's signed codes into what tile_signed takes. */
LQ_INLINE void store_signed(strip *s, size_t group) {
    if (LQ_STRIP_SIGNED) return; /* m stays unused */
    LQ_UNROLL
    for (size_t j = 0; j < 8; j++) s->codes[8 * group + j] = vi_xor(s->codes[8 * group + j], vi_set1_int8(0x80));
    s->m[group] = vf_mul(s->d[group], vf_set1(-128.0f));
}

LQ_INLINE void q8_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q8_0);
        load_dwords(s->codes + 8 * b, rows, at + offsetof(lq_block_q8_0, qs));
        load_dwords(s->codes + 8 * b + 4, rows, at + offsetof(lq_block_q8_0, qs) + 16);
        s->d[b] = vf_from_low_half(load_dword(rows, at));
        store_signed(s, b);
    }
}

/* Replaces codes by the values of a table. */
LQ_INLINE void iq4_nl_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_iq4_nl);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_iq4_nl, qs));
        LQ_UNROLL
        for (size_t j = 0; j < 8; j++) s->codes[8 * b + j] = vi_look_up_int8(lq_iq4_values, s->codes[8 * b + j]);
        s->d[b] = vf_from_low_half(load_dword(rows, at));
        store_signed(s, b);
    }
}

/* ---- unpacking: Q4_K, Q5_K; 256 weights in groups of 32 */

/* d[g] = d sc, m[g] = -dmin min of the 8 groups, from the 16 bytes at the front of a block (formats/q4_k.h). */
LQ_INLINE void unpack_scales_k(vfloat *d, vfloat *m, const strip_rows *rows, size_t offset) {
    vint head[4]; /* d and dmin, then bytes 0..3, 4..7, 8..11 of the scales */
    load_dwords(head, rows, offset);
    vfloat block_d = vf_from_low_half(head[0]), block_m = vf_mul(vf_from_high_half(head[0]), vf_set1(-1.0f));
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        vint sc = vi_and(vi_srl(head[1], 8 * g), vi_set1(63)), min = vi_and(vi_srl(head[2], 8 * g), vi_set1(63));
        d[g] = vf_mul(block_d, vf_from_int(sc));
        m[g] = vf_mul(block_m, vf_from_int(min));
        vint sc_top = vi_and(vi_srl(head[1], 8 * g + 2), vi_set1(0x30));
        vint min_top = vi_and(vi_srl(head[2], 8 * g + 2), vi_set1(0x30));
        sc = vi_or(vi_and(vi_srl(head[3], 8 * g), vi_set1(15)), sc_top);
        min = vi_or(vi_and(vi_srl(head[3], 8 * g + 4), vi_set1(15)), min_top);
        d[4 + g] = vf_mul(block_d, vf_from_int(sc));
        m[4 + g] = vf_mul(block_m, vf_from_int(min));
    }
}

/* Unpacks 32 bytes: the low nibbles are one group, the high ones the next. */
LQ_INLINE void unpack_pair_k(vint *codes, const strip_rows *rows, size_t offset) {
    vint dwords[8];
    load_dwords(dwords, rows, offset);
    load_dwords(dwords + 4, rows, offset + 16);
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        codes[j] = low_nibble(dwords[j]);
        codes[8 + j] = high_nibble(dwords[j]);
    }
}

LQ_INLINE void q4_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q4_k);
        unpack_scales_k(s->d + 8 * b, s->m + 8 * b, rows, at);
        for (size_t pair = 0; pair < 4; pair++)
            unpack_pair_k(s->codes + 64 * b + 16 * pair, rows, at + offsetof(lq_block_q4_k, qs) + 32 * pair);
    }
}

LQ_INLINE void q5_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q5_k);
        vint bits[8];
        unpack_scales_k(s->d + 8 * b, s->m + 8 * b, rows, at);
        load_dwords(bits, rows, at + offsetof(lq_block_q5_k, qh));
        load_dwords(bits + 4, rows, at + offsetof(lq_block_q5_k, qh) + 16);
        for (int pair = 0; pair < 4; pair++) {
            vint *codes = s->codes + 64 * b + 16 * pair;
            unpack_pair_k(codes, rows, at + offsetof(lq_block_q5_k, qs) + 32 * (size_t)pair);
            LQ_UNROLL
            for (int j = 0; j < 8; j++) { /* bits 2 pair and 2 pair + 1 of each byte, as bit 4 */
                vint two = vi_srl(bits[j], 2 * pair);
                codes[j] = vi_or(codes[j], vi_and(vi_sll(two, 4), vi_set1_int8(16)));
                codes[8 + j] = vi_or(codes[8 + j], vi_and(vi_sll(two, 3), vi_set1_int8(16)));
            }
        }
    }
}

/* The scales of the 8 groups are d (sc - 32), and codes are replaced by the values of a table. */
LQ_INLINE void iq4_xs_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_iq4_xs);
        vint head = load_dword(rows, at), low = load_dword(rows, at + offsetof(lq_block_iq4_xs, scales_l));
        vfloat d = vf_from_low_half(head);
        LQ_UNROLL
        for (int g = 0; g < 8; g++) {
            size_t group = 8 * b + (size_t)g;
            vint *codes = s->codes + 8 * group;
            vint top = vi_and(vi_srl(head, 16 + 2 * g), vi_set1(3));
            vint sc = vi_or(vi_and(vi_srl(low, 4 * g), vi_set1(15)), vi_sll(top, 4));
            s->d[group] = vf_mul(d, vf_from_int(vi_add(sc, vi_set1(-32))));
            unpack_nibbles(codes, rows, at + offsetof(lq_block_iq4_xs, qs) + 16 * (size_t)g);
            LQ_UNROLL
            for (size_t j = 0; j < 8; j++) codes[j] = vi_look_up_int8(lq_iq4_values, codes[j]);
            store_signed(s, group);
        }
    }
}

/* ---- unpacking: Q2_K, Q3_K, Q6_K; 256 weights in groups of 16 */

/* Unpacks 32 bytes of two-bit codes: bits 2 k, 2 k + 1 of each are columns 32 k and following. */
LQ_INLINE void unpack_two_bits(vint *codes, const strip_rows *rows, size_t offset) {
    vint dwords[8];
    load_dwords(dwords, rows, offset);
    load_dwords(dwords + 4, rows, offset + 16);
    LQ_UNROLL
    for (int k = 0; k < 4; k++) {
        LQ_UNROLL
        for (int j = 0; j < 8; j++) codes[8 * k + j] = vi_and(vi_srl(dwords[j], 2 * k), vi_set1_int8(3));
    }
}

LQ_INLINE void q2_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q2_k);
        vint scales[4], d_dmin = load_dword(rows, at + offsetof(lq_block_q2_k, d));
        vfloat d = vf_from_low_half(d_dmin), dmin = vf_mul(vf_from_high_half(d_dmin), vf_set1(-1.0f));
        load_dwords(scales, rows, at);
        LQ_UNROLL
        for (int g = 0; g < 16; g++) {
            vint both = vi_srl(scales[g / 4], 8 * (g % 4));
            s->d[16 * b + g] = vf_mul(d, vf_from_int(vi_and(both, vi_set1(15))));
            s->m[16 * b + g] = vf_mul(dmin, vf_from_int(vi_and(vi_srl(both, 4), vi_set1(15))));
        }
        for (size_t half = 0; half < 2; half++)
            unpack_two_bits(s->codes + 64 * b + 32 * half, rows, at + offsetof(lq_block_q2_k, qs) + 32 * half);
    }
}

LQ_INLINE void q3_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q3_k), scales_at = at + offsetof(lq_block_q3_k, scales);
        vint low[2] = {load_dword(rows, scales_at), load_dword(rows, scales_at + 4)};
        vint high = load_dword(rows, scales_at + 8), mask[8];
        vfloat d = vf_from_high_half(load_dword(rows, at + offsetof(lq_block_q3_k, d) - 2));
        LQ_UNROLL
        for (int g = 0; g < 16; g++) { /* formats/q3_k.c says where the six bits are */
            vint lower = vi_and(vi_srl(low[g % 8 / 4], 8 * (g % 4) + 4 * (g / 8)), vi_set1(15));
            vint upper = vi_and(vi_srl(high, 8 * (g % 4) + 2 * (g / 4)), vi_set1(3));
            vint sc = vi_add(vi_or(lower, vi_sll(upper, 4)), vi_set1(-32));
            s->d[16 * b + g] = vf_mul(d, vf_from_int(sc));
            s->m[16 * b + g] = vf_mul(s->d[16 * b + g], vf_set1(-4.0f));
        }
        load_dwords(mask, rows, at);
        load_dwords(mask + 4, rows, at + 16);
        for (int half = 0; half < 2; half++) {
            vint *codes = s->codes + 64 * b + 32 * half;
            unpack_two_bits(codes, rows, at + offsetof(lq_block_q3_k, qs) + 32 * (size_t)half);
            LQ_UNROLL
            for (int j = 0; j < 32; j++) {
                vint bit = vi_and(vi_srl(mask[j % 8], 4 * half + j / 8), vi_set1_int8(1));
                codes[j] = vi_or(codes[j], vi_sll(bit, 2));
            }
        }
    }
}

LQ_INLINE void q6_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q6_k);
        vint scales[4];
        load_dwords(scales, rows, at + offsetof(lq_block_q6_k, scales));
        vfloat d = vf_from_high_half(load_dword(rows, at + offsetof(lq_block_q6_k, d) - 2));
        LQ_UNROLL
        for (int g = 0; g < 16; g++) {
            vint sc = vi_sra(vi_sll(scales[g / 4], 24 - 8 * (g % 4)), 24);
            s->d[16 * b + g] = vf_mul(d, vf_from_int(sc));
            s->m[16 * b + g] = vf_mul(s->d[16 * b + g], vf_set1(-32.0f));
        }
        for (size_t half = 0; half < 2; half++) {
            vint low[16], high[8];
            LQ_UNROLL
            for (int j = 0; j < 4; j++) load_dwords(low + 4 * j, rows, at + 64 * half + 16 * (size_t)j);
            LQ_UNROLL
            for (int j = 0; j < 2; j++)
                load_dwords(high + 4 * j, rows, at + offsetof(lq_block_q6_k, qh) + 32 * half + 16 * (size_t)j);
            vint *codes = s->codes + 64 * b + 32 * half;
            LQ_UNROLL
            for (int j = 0; j < 8; j++) {
                vint top = vi_set1_int8(0x30);
                codes[j] = vi_or(low_nibble(low[j]), vi_and(vi_sll(high[j], 4), top));
                codes[8 + j] = vi_or(low_nibble(low[8 + j]), vi_and(vi_sll(high[j], 2), top));
                codes[16 + j] = vi_or(high_nibble(low[j]), vi_and(high[j], top));
                codes[24 + j] = vi_or(high_nibble(low[8 + j]), vi_and(vi_srl(high[j], 2), top));
            }
        }
    }
}

#endif
