/* strip_unpack.h - weights of a strip as bytes, for strip_tile.h: rows lie side by side in the lanes of a vector, four
 * columns of each in 32 bits, with a scale and a minimum for each group of columns. The including file has chosen a
 * vector width (strip_256.h, strip_512.h) and says by LQ_STRIP_SIGNED how signed weights are stored (strip_tile.h). */
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

/* Columns unpacked at once: with its scales a strip is half of a small L1 cache. A multiple of every block length. */
#define LQ_STRIP_COLS 512

/* V_ROWS rows of weights, unpacked. */
typedef struct strip {
    vint codes[LQ_STRIP_COLS / 4]; /* [column / 4], lane r: four columns of row r */
    vfloat d[LQ_STRIP_COLS / 16];  /* [group] */
    vfloat m[LQ_STRIP_COLS / 16];
} strip;

/* The rows of a strip, at the first column in question. Rows that there are not repeat the last one. */
typedef struct strip_rows {
    const uint8_t *at[V_ROWS];
    const uint8_t *ahead; /* weights that follow later, as many bytes as these rows have here */
} strip_rows;

/* ---- unpacking: pieces */

/* Loads ask for as many bytes ahead: rows are read a piece of each at a time, no stream that the hardware recognises,
 * and a strip asked for at once would be more lines than a core can wait for. */
LQ_INLINE void ask_ahead(const strip_rows *rows, size_t offset, size_t n_bytes) {
    LQ_UNROLL
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(rows->ahead + offset + i, 0, 2);
}

/* 16 bytes of each row, transposed: dwords[j] has the j-th four bytes of all rows. */
LQ_INLINE void turn_dwords(vint dwords[4], const uint8_t *const rows[V_ROWS], size_t offset) {
    vint v[4];
    LQ_UNROLL
    for (int i = 0; i < 4; i++) v[i] = v_load_lanes(rows, i, offset);
    vint a = v_unpacklo32(v[0], v[1]), b = v_unpackhi32(v[0], v[1]);
    vint c = v_unpacklo32(v[2], v[3]), d = v_unpackhi32(v[2], v[3]);
    dwords[0] = v_unpacklo64(a, c);
    dwords[1] = v_unpackhi64(a, c);
    dwords[2] = v_unpacklo64(b, d);
    dwords[3] = v_unpackhi64(b, d);
}

LQ_INLINE void load_dwords(vint dwords[4], const strip_rows *rows, size_t offset) {
    ask_ahead(rows, V_ROWS * offset, V_ROWS * 16);
    turn_dwords(dwords, rows->at, offset);
}

/* Four bytes of each row. */
LQ_INLINE vint load_dword(const strip_rows *rows, size_t offset) {
    uint32_t dwords[V_ROWS];
    ask_ahead(rows, V_ROWS * offset, V_ROWS * 4);
    for (int r = 0; r < V_ROWS; r++) memcpy(&dwords[r], rows->at[r] + offset, 4);
    return v_load(dwords);
}

LQ_INLINE vint low_nibble(vint v) { return v_and(v, v_set8(15)); }
LQ_INLINE vint high_nibble(vint v) { return v_and(v_srl(v, 4), v_set8(15)); }

/* Bits 4 j to 4 j + 3 of each lane as bit 4 of its four bytes. */
LQ_INLINE vint fifth_bits(vint bits, int j) {
    return v_and(v_cmpeq8(v_and(v_shuffle8(bits, v_byte_of_dword(j / 2)), v_set32(j % 2 ? 0x80402010 : 0x08040201)),
                          v_set32(j % 2 ? 0x80402010 : 0x08040201)),
                 v_set8(16));
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
    for (int j = 0; j < 8; j++) codes[j] = v_or(codes[j], fifth_bits(bits, j));
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
        s->d[b] = v_half_low(head);
        s->m[b] = zero != 0.0f ? v_mul(s->d[b], v_setf(-zero)) : v_half_high(head);
    }
}

/* The same of blocks of n_dwords, which are d and m, fifth bits or none, four of nibbles: four blocks are as many whole
 * loads, and nothing is gathered. */
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
            s->d[b + i] = v_half_low(block[0]);
            s->m[b + i] = v_half_high(block[0]);
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

/* Makes of a group's signed codes what tile_signed takes. */
LQ_INLINE void store_signed(strip *s, size_t group) {
    if (LQ_STRIP_SIGNED) return; /* m stays unused */
    LQ_UNROLL
    for (size_t j = 0; j < 8; j++) s->codes[8 * group + j] = v_xor(s->codes[8 * group + j], v_set8(0x80));
    s->m[group] = v_mul(s->d[group], v_setf(-128.0f));
}

LQ_INLINE void q8_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q8_0);
        load_dwords(s->codes + 8 * b, rows, at + offsetof(lq_block_q8_0, qs));
        load_dwords(s->codes + 8 * b + 4, rows, at + offsetof(lq_block_q8_0, qs) + 16);
        s->d[b] = v_half_low(load_dword(rows, at));
        store_signed(s, b);
    }
}

/* Codes become the values they stand for. */
LQ_INLINE void iq4_nl_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_iq4_nl);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_iq4_nl, qs));
        LQ_UNROLL
        for (size_t j = 0; j < 8; j++) s->codes[8 * b + j] = v_look_up(lq_iq4_values, s->codes[8 * b + j]);
        s->d[b] = v_half_low(load_dword(rows, at));
        store_signed(s, b);
    }
}

/* ---- unpacking: Q4_K, Q5_K; 256 weights in groups of 32 */

/* d[g] = d sc, m[g] = -dmin min of the 8 groups, from the 16 bytes at the front of a block (formats/q4_k.h). */
LQ_INLINE void unpack_scales_k(vfloat *d, vfloat *m, const strip_rows *rows, size_t offset) {
    vint head[4]; /* d and dmin, then bytes 0..3, 4..7, 8..11 of the scales */
    load_dwords(head, rows, offset);
    vfloat block_d = v_half_low(head[0]), block_m = v_mul(v_half_high(head[0]), v_setf(-1.0f));
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        vint sc = v_and(v_srl(head[1], 8 * g), v_set32(63)), min = v_and(v_srl(head[2], 8 * g), v_set32(63));
        d[g] = v_mul(block_d, v_to_float(sc));
        m[g] = v_mul(block_m, v_to_float(min));
        vint sc_top = v_and(v_srl(head[1], 8 * g + 2), v_set32(0x30));
        vint min_top = v_and(v_srl(head[2], 8 * g + 2), v_set32(0x30));
        sc = v_or(v_and(v_srl(head[3], 8 * g), v_set32(15)), sc_top);
        min = v_or(v_and(v_srl(head[3], 8 * g + 4), v_set32(15)), min_top);
        d[4 + g] = v_mul(block_d, v_to_float(sc));
        m[4 + g] = v_mul(block_m, v_to_float(min));
    }
}

/* 32 bytes, low nibbles a group and high nibbles the next one. */
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
                vint two = v_srl(bits[j], 2 * pair);
                codes[j] = v_or(codes[j], v_and(v_sll(two, 4), v_set8(16)));
                codes[8 + j] = v_or(codes[8 + j], v_and(v_sll(two, 3), v_set8(16)));
            }
        }
    }
}

/* d (sc - 32) of the 8 groups, whose codes stand for values. */
LQ_INLINE void iq4_xs_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_iq4_xs);
        vint head = load_dword(rows, at), low = load_dword(rows, at + offsetof(lq_block_iq4_xs, scales_l));
        vfloat d = v_half_low(head);
        LQ_UNROLL
        for (int g = 0; g < 8; g++) {
            size_t group = 8 * b + (size_t)g;
            vint *codes = s->codes + 8 * group;
            vint top = v_and(v_srl(head, 16 + 2 * g), v_set32(3));
            vint sc = v_or(v_and(v_srl(low, 4 * g), v_set32(15)), v_sll(top, 4));
            s->d[group] = v_mul(d, v_to_float(v_add32(sc, v_set32(-32))));
            unpack_nibbles(codes, rows, at + offsetof(lq_block_iq4_xs, qs) + 16 * (size_t)g);
            LQ_UNROLL
            for (size_t j = 0; j < 8; j++) codes[j] = v_look_up(lq_iq4_values, codes[j]);
            store_signed(s, group);
        }
    }
}

/* ---- unpacking: Q2_K, Q3_K, Q6_K; 256 weights in groups of 16 */

/* 32 bytes of two-bit codes: bits 2 k, 2 k + 1 of each are columns 32 k and following. */
LQ_INLINE void unpack_two_bits(vint *codes, const strip_rows *rows, size_t offset) {
    vint dwords[8];
    load_dwords(dwords, rows, offset);
    load_dwords(dwords + 4, rows, offset + 16);
    LQ_UNROLL
    for (int k = 0; k < 4; k++) {
        LQ_UNROLL
        for (int j = 0; j < 8; j++) codes[8 * k + j] = v_and(v_srl(dwords[j], 2 * k), v_set8(3));
    }
}

LQ_INLINE void q2_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q2_k);
        vint scales[4], d_dmin = load_dword(rows, at + offsetof(lq_block_q2_k, d));
        vfloat d = v_half_low(d_dmin), dmin = v_mul(v_half_high(d_dmin), v_setf(-1.0f));
        load_dwords(scales, rows, at);
        LQ_UNROLL
        for (int g = 0; g < 16; g++) {
            vint both = v_srl(scales[g / 4], 8 * (g % 4));
            s->d[16 * b + g] = v_mul(d, v_to_float(v_and(both, v_set32(15))));
            s->m[16 * b + g] = v_mul(dmin, v_to_float(v_and(v_srl(both, 4), v_set32(15))));
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
        vfloat d = v_half_high(load_dword(rows, at + offsetof(lq_block_q3_k, d) - 2));
        LQ_UNROLL
        for (int g = 0; g < 16; g++) { /* formats/q3_k.c says where the six bits are */
            vint lower = v_and(v_srl(low[g % 8 / 4], 8 * (g % 4) + 4 * (g / 8)), v_set32(15));
            vint upper = v_and(v_srl(high, 8 * (g % 4) + 2 * (g / 4)), v_set32(3));
            vint sc = v_add32(v_or(lower, v_sll(upper, 4)), v_set32(-32));
            s->d[16 * b + g] = v_mul(d, v_to_float(sc));
            s->m[16 * b + g] = v_mul(s->d[16 * b + g], v_setf(-4.0f));
        }
        load_dwords(mask, rows, at);
        load_dwords(mask + 4, rows, at + 16);
        for (int half = 0; half < 2; half++) {
            vint *codes = s->codes + 64 * b + 32 * half;
            unpack_two_bits(codes, rows, at + offsetof(lq_block_q3_k, qs) + 32 * (size_t)half);
            LQ_UNROLL
            for (int j = 0; j < 32; j++) {
                vint bit = v_and(v_srl(mask[j % 8], 4 * half + j / 8), v_set8(1));
                codes[j] = v_or(codes[j], v_sll(bit, 2));
            }
        }
    }
}

LQ_INLINE void q6_k_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q6_k);
        vint scales[4];
        load_dwords(scales, rows, at + offsetof(lq_block_q6_k, scales));
        vfloat d = v_half_high(load_dword(rows, at + offsetof(lq_block_q6_k, d) - 2));
        LQ_UNROLL
        for (int g = 0; g < 16; g++) {
            vint sc = v_sra32(v_sll(scales[g / 4], 24 - 8 * (g % 4)), 24);
            s->d[16 * b + g] = v_mul(d, v_to_float(sc));
            s->m[16 * b + g] = v_mul(s->d[16 * b + g], v_setf(-32.0f));
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
                vint top = v_set8(0x30);
                codes[j] = v_or(low_nibble(low[j]), v_and(v_sll(high[j], 4), top));
                codes[8 + j] = v_or(low_nibble(low[8 + j]), v_and(v_sll(high[j], 2), top));
                codes[16 + j] = v_or(high_nibble(low[j]), v_and(high[j], top));
                codes[24 + j] = v_or(high_nibble(low[8 + j]), v_and(v_srl(high[j], 2), top));
            }
        }
    }
}

#endif
