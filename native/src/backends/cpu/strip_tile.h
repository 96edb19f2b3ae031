/* strip_tile.h - products of packed weights with many activation rows: a strip of weight rows is unpacked once, to
 * bytes whose columns lie the way integer products want them, and multiplied with all activations from the L1 cache.
 *
 * The including file has chosen a vector width (strip_256.h, strip_512.h) and defines, for unsigned bytes u of a weight
 * and signed bytes s, four columns of a row in each 32-bit lane:
 *   LQ_SUM_STEPS(max)                          how many steps one sum holds, of codes up to max
 *   vint sum_step(vint sum, vint u, vint s)    another step
 *   vint sum_total(vint sum)                   the sum in 32-bit lanes
 *   LQ_STRIP_SIGNED                            1; 0: signed weights are stored with 128 added, as any others
 *   vint sum_signed(vint sum, vint w, vint s)  another step of signed bytes w, in 32-bit lanes at once
 *   LQ_STRIP_VECTORS, LQ_STRIP_X               vectors of rows and activation rows of a tile: what registers hold
 *
 * A weight is d * code + m, with one d and m for a group of 16 or 32 columns. Every output is computed by the same
 * operations in the same order however many activation rows and weight rows there are; they are not those of the
 * products for few rows (matmul_tile.h), which add up columns in another order. */
#ifndef LQ_CPU_STRIP_TILE_H
#define LQ_CPU_STRIP_TILE_H

#include <string.h>

#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"
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
#define LQ_STRIP_ROWS (LQ_STRIP_VECTORS * V_ROWS)
/* Activation rows of a tile at most. */
#define LQ_MOST_X 8

/* V_ROWS rows of weights, unpacked. */
typedef struct strip {
    vint codes[LQ_STRIP_COLS / 4]; /* [column / 4], lane r: four columns of row r */
    vfloat d[LQ_STRIP_COLS / 16];  /* [group] */
    vfloat m[LQ_STRIP_COLS / 16];
} strip;

/* The rows of a strip, at the first column in question. Rows that there are not repeat the last one. */
typedef struct strip_rows {
    const uint8_t *at[V_ROWS];
} strip_rows;

/* ---- unpacking: pieces */

/* 16 bytes of each row, transposed: dwords[j] has the j-th four bytes of all rows. */
LQ_INLINE void load_dwords(vint dwords[4], const strip_rows *rows, size_t offset) {
    vint v[4];
    LQ_UNROLL
    for (int i = 0; i < 4; i++) v[i] = v_load_lanes(rows->at, i, offset);
    vint a = v_unpacklo32(v[0], v[1]), b = v_unpackhi32(v[0], v[1]);
    vint c = v_unpacklo32(v[2], v[3]), d = v_unpackhi32(v[2], v[3]);
    dwords[0] = v_unpacklo64(a, c);
    dwords[1] = v_unpackhi64(a, c);
    dwords[2] = v_unpacklo64(b, d);
    dwords[3] = v_unpackhi64(b, d);
}

/* Four bytes of each row. */
LQ_INLINE vint load_dword(const strip_rows *rows, size_t offset) {
    uint32_t dwords[V_ROWS];
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

LQ_INLINE void q4_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q4_0);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_q4_0, qs));
        s->d[b] = v_half_low(load_dword(rows, at));
        s->m[b] = v_mul(s->d[b], v_setf(-8.0f));
    }
}

LQ_INLINE void q4_1_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q4_1);
        vint dm = load_dword(rows, at);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_q4_1, qs));
        s->d[b] = v_half_low(dm);
        s->m[b] = v_half_high(dm);
    }
}

LQ_INLINE void q5_0_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q5_0);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_q5_0, qs));
        unpack_fifth_bits(s->codes + 8 * b, load_dword(rows, at + offsetof(lq_block_q5_0, qh)));
        s->d[b] = v_half_low(load_dword(rows, at));
        s->m[b] = v_mul(s->d[b], v_setf(-16.0f));
    }
}

LQ_INLINE void q5_1_unpack(strip *s, const strip_rows *rows, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = b * sizeof(lq_block_q5_1);
        vint dm = load_dword(rows, at);
        unpack_nibbles(s->codes + 8 * b, rows, at + offsetof(lq_block_q5_1, qs));
        unpack_fifth_bits(s->codes + 8 * b, load_dword(rows, at + offsetof(lq_block_q5_1, qh)));
        s->d[b] = v_half_low(dm);
        s->m[b] = v_half_high(dm);
    }
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

/* ---- multiplying */

/* How codes of a type are added up. */
typedef struct strip_kind {
    size_t group;   /* columns of a scale, 16 or 32 */
    int max;        /* largest code */
    bool is_signed; /* there is no m */
} strip_kind;

LQ_INLINE vint strip_four(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return v_set32(four);
}

/* sums[v][t] += the strips' n_cols columns from first_col on times activation row t. */
LQ_INLINE void strip_multiply(vfloat sums[LQ_STRIP_VECTORS][LQ_STRIP_X], const strip *s, const lq_q8_row *x, size_t n_x,
                              size_t all_cols, size_t first_col, size_t n_cols, strip_kind kind) {
    const int8_t *q[LQ_STRIP_X];
    const float *d[LQ_STRIP_X], *d_sums[LQ_STRIP_X];
    LQ_UNROLL
    for (size_t t = 0; t < n_x; t++) {
        q[t] = x[t].q + first_col;
        d[t] = x[t].d + first_col / LQ_Q8_BLOCK;
        d_sums[t] = x[t].d_sums + (kind.group == 16 ? all_cols / 32 : 0) + first_col / kind.group;
    }
    const size_t n_steps = kind.group / 4, most = LQ_SUM_STEPS(kind.max), round = most < n_steps ? most : n_steps;
    for (size_t g = 0; g < n_cols / kind.group; g++) {
        vint total[LQ_STRIP_VECTORS][LQ_STRIP_X];
        LQ_UNROLL
        for (size_t first = 0; first < n_steps; first += round) {
            vint sum[LQ_STRIP_VECTORS][LQ_STRIP_X];
            LQ_UNROLL
            for (size_t step = first; step < first + round; step++) {
                size_t column = g * n_steps + step;
                LQ_UNROLL
                for (size_t t = 0; t < n_x; t++) {
                    vint four = strip_four(q[t] + 4 * column);
                    LQ_UNROLL
                    for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {
                        vint before = step == first ? v_set32(0) : sum[v][t];
                        sum[v][t] = kind.is_signed ? sum_signed(before, s[v].codes[column], four)
                                                   : sum_step(before, s[v].codes[column], four);
                    }
                }
            }
            LQ_UNROLL
            for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
                size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
                vint part = kind.is_signed ? sum[v][t] : sum_total(sum[v][t]);
                total[v][t] = first == 0 ? part : v_add32(total[v][t], part);
            }
        }
        LQ_UNROLL
        for (size_t t = 0; t < n_x; t++) {
            vfloat scale = v_setf(d[t][g * kind.group / LQ_Q8_BLOCK]), d_sum = v_setf(d_sums[t][g]);
            LQ_UNROLL
            for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {
                sums[v][t] = v_fmadd(v_to_float(total[v][t]), v_mul(s[v].d[g], scale), sums[v][t]);
                if (!kind.is_signed) sums[v][t] = v_fmadd(s[v].m[g], d_sum, sums[v][t]);
            }
        }
    }
}

/* Where a tile of fewer than LQ_STRIP_ROWS outputs a row is computed: y has no place for the others. */
typedef struct strip_edge {
    float values[LQ_MOST_X][LQ_STRIP_ROWS];
    bool used;
    size_t stride;
} strip_edge;

/* Returns where the tile's outputs stand, rows edge->stride floats apart; `first`: nothing stands there yet. */
LQ_INLINE float *edge_begin(strip_edge *edge, float *y, size_t y_stride, size_t n_rows, size_t n_x, bool first) {
    edge->used = n_rows != LQ_STRIP_ROWS;
    edge->stride = edge->used ? LQ_STRIP_ROWS : y_stride;
    if (edge->used && !first)
        for (size_t t = 0; t < n_x; t++) memcpy(edge->values[t], y + t * y_stride, n_rows * sizeof(float));
    return edge->used ? edge->values[0] : y;
}

LQ_INLINE void edge_end(const strip_edge *edge, float *y, size_t y_stride, size_t n_rows, size_t n_x) {
    if (!edge->used) return;
    for (size_t t = 0; t < n_x; t++) memcpy(y + t * y_stride, edge->values[t], n_rows * sizeof(float));
}

/* n_rows outputs of n_x activation rows: what n_cols columns from first_col on add to those before. */
LQ_INLINE void strip_tile(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,
                          size_t all_cols, size_t first_col, size_t n_cols, strip_kind kind) {
    strip_edge edge;
    float *out = edge_begin(&edge, y, y_stride, n_rows, n_x, first_col == 0);
    vfloat sums[LQ_STRIP_VECTORS][LQ_STRIP_X];
    LQ_UNROLL
    for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
        size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
        sums[v][t] = first_col == 0 ? v_setf(0.0f) : v_loadf(out + t * edge.stride + v * V_ROWS);
    }
    strip_multiply(sums, s, x, n_x, all_cols, first_col, n_cols, kind);
    LQ_UNROLL
    for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
        size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
        v_storef(out + t * edge.stride + v * V_ROWS, sums[v][t]);
    }
    edge_end(&edge, y, y_stride, n_rows, n_x);
}

LQ_INLINE strip_rows strip_at(const uint8_t *w, size_t row_bytes, size_t first, size_t n_rows, size_t offset) {
    strip_rows rows;
    for (size_t i = 0; i < V_ROWS; i++)
        rows.at[i] = w + (first + i < n_rows ? first + i : n_rows - 1) * row_bytes + offset;
    return rows;
}

/* A tile of any number of activation rows up to LQ_STRIP_X, for one kind of codes. */
typedef void (*strip_tile_fn)(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,
                              size_t all_cols, size_t first_col, size_t n_cols);

#define LQ_DEFINE_STRIP_TILE(name, ...)                                                                                \
    static void name(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,         \
                     size_t all_cols, size_t first_col, size_t n_cols) {                                               \
        const strip_kind kind = {__VA_ARGS__};                                                                         \
        LQ_UNROLL                                                                                                      \
        for (size_t n = 1; n <= LQ_STRIP_X; n++)                                                                       \
            if (n == n_x) strip_tile(y, y_stride, n_rows, s, x, n, all_cols, first_col, n_cols, kind);                 \
    }

LQ_DEFINE_STRIP_TILE(tile_31, 32, 31, false)
LQ_DEFINE_STRIP_TILE(tile_63, 16, 63, false)
LQ_DEFINE_STRIP_TILE(tile_signed, 32, 255, LQ_STRIP_SIGNED)

/* Activation rows of the next tile: the last two are evened out, for a tile of one row waits for its own sums. */
LQ_INLINE size_t strip_next_x(size_t left, size_t most) {
    return left >= 2 * most || left == most ? most : left > most ? (left + 1) / 2 : left;
}

/* All activation rows with one strip. */
LQ_INLINE void strip_tiles(strip_tile_fn tile, float *y, size_t y_stride, size_t n_rows, const strip *s,
                           const void *x_q8, size_t n_x, size_t all_cols, size_t first_col, size_t n_cols) {
    for (size_t t = 0, n; t < n_x; t += n) {
        lq_q8_row x[LQ_STRIP_X];
        n = strip_next_x(n_x - t, LQ_STRIP_X);
        for (size_t i = 0; i < n; i++) x[i] = lq_q8_row_at((void *)(uintptr_t)x_q8, all_cols, t + i);
        tile(y + t * y_stride, y_stride, n_rows, s, x, n, all_cols, first_col, n_cols);
    }
}

/* Columns of a strip where there are n_cols of them, in blocks of block_len: as even as blocks allow, for what is done
 * once a strip and tile counts for more in a narrow one. */
LQ_INLINE size_t strip_cols(size_t n_cols, size_t block_len) {
    size_t n_strips = (n_cols + LQ_STRIP_COLS - 1) / LQ_STRIP_COLS, n_blocks = n_cols / block_len;
    return (n_blocks + n_strips - 1) / n_strips * block_len;
}

/* Asks for the bytes of LQ_STRIP_ROWS rows that are unpacked next: so many short pieces are no stream that the hardware
 * recognises, and with few activation rows memory is what takes time. */
LQ_INLINE void strip_prefetch(const uint8_t *w, size_t row_bytes, size_t first, size_t n_rows, size_t offset,
                              size_t n_bytes) {
    for (size_t r = first; r < first + LQ_STRIP_ROWS && r < n_rows; r++)
        for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch(w + r * row_bytes + offset + i, 0, 2);
}

/* Defines lq_matmul_q8_fn `id`_many for blocks of block_len weights in block_bytes bytes. */
#define LQ_DEFINE_MANY(id, block_len, block_bytes, tile)                                                               \
    static void id##_many(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows, size_t n_cols,    \
                          const void *x_q8, size_t n_x) {                                                              \
        strip s[LQ_STRIP_VECTORS];                                                                                     \
        size_t cols = strip_cols(n_cols, block_len);                                                                   \
        for (size_t r = 0; r < n_rows; r += LQ_STRIP_ROWS) {                                                           \
            size_t n_real = n_rows - r < LQ_STRIP_ROWS ? n_rows - r : LQ_STRIP_ROWS;                                   \
            for (size_t c = 0; c < n_cols; c += cols) {                                                                \
                size_t n = n_cols - c < cols ? n_cols - c : cols;                                                      \
                for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {                                                        \
                    strip_rows rows = strip_at(w, row_bytes, r + v * V_ROWS, n_rows, c / (block_len) * (block_bytes)); \
                    id##_unpack(&s[v], &rows, n / (block_len));                                                        \
                }                                                                                                      \
                size_t next = c + n < n_cols ? c + n : 0;                                                              \
                strip_prefetch(w, row_bytes, next != 0 ? r : r + LQ_STRIP_ROWS, n_rows,                                \
                               next / (block_len) * (block_bytes), cols / (block_len) * (block_bytes));                \
                strip_tiles(tile, y + r, y_stride, n_real, s, x_q8, n_x, n_cols, c, n);                                \
            }                                                                                                          \
        }                                                                                                              \
    }

LQ_DEFINE_MANY(q4_0, LQ_Q4_0_LEN, sizeof(lq_block_q4_0), tile_31)
LQ_DEFINE_MANY(q4_1, LQ_Q4_1_LEN, sizeof(lq_block_q4_1), tile_31)
LQ_DEFINE_MANY(q5_0, LQ_Q5_0_LEN, sizeof(lq_block_q5_0), tile_31)
LQ_DEFINE_MANY(q5_1, LQ_Q5_1_LEN, sizeof(lq_block_q5_1), tile_31)
LQ_DEFINE_MANY(q8_0, LQ_Q8_0_LEN, sizeof(lq_block_q8_0), tile_signed)
LQ_DEFINE_MANY(iq4_nl, LQ_IQ4_NL_LEN, sizeof(lq_block_iq4_nl), tile_signed)
LQ_DEFINE_MANY(q4_k, LQ_Q4_K_LEN, sizeof(lq_block_q4_k), tile_31)
LQ_DEFINE_MANY(q5_k, LQ_Q5_K_LEN, sizeof(lq_block_q5_k), tile_31)
LQ_DEFINE_MANY(iq4_xs, LQ_IQ4_XS_LEN, sizeof(lq_block_iq4_xs), tile_signed)
LQ_DEFINE_MANY(q2_k, LQ_Q2_K_LEN, sizeof(lq_block_q2_k), tile_63)
LQ_DEFINE_MANY(q3_k, LQ_Q3_K_LEN, sizeof(lq_block_q3_k), tile_63)
LQ_DEFINE_MANY(q6_k, LQ_Q6_K_LEN, sizeof(lq_block_q6_k), tile_63)

LQ_INLINE void set_many_products(lq_kernels *kernels) {
    kernels->matmul_many[LQ_TYPE_Q4_0] = q4_0_many;
    kernels->matmul_many[LQ_TYPE_Q4_1] = q4_1_many;
    kernels->matmul_many[LQ_TYPE_Q5_0] = q5_0_many;
    kernels->matmul_many[LQ_TYPE_Q5_1] = q5_1_many;
    kernels->matmul_many[LQ_TYPE_Q8_0] = q8_0_many;
    kernels->matmul_many[LQ_TYPE_IQ4_NL] = iq4_nl_many;
    kernels->matmul_many[LQ_TYPE_IQ4_XS] = iq4_xs_many;
    kernels->matmul_many[LQ_TYPE_Q2_K] = q2_k_many;
    kernels->matmul_many[LQ_TYPE_Q3_K] = q3_k_many;
    kernels->matmul_many[LQ_TYPE_Q4_K] = q4_k_many;
    kernels->matmul_many[LQ_TYPE_Q5_K] = q5_k_many;
    kernels->matmul_many[LQ_TYPE_Q6_K] = q6_k_many;
}

#endif
