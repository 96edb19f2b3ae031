/* attn_page.h - attention over packed pages and quantized cells, and their coding, written once for any vector width.
 *
 * The including file defines VF (float vector), VI (vector of 32-bit integers), VN (lanes, 8 or 16), the vf_ and vi_
 * functions used below, and DIRECT_GROUPS, TILE_ROWS, TILE_VECTORS, which size the register tiles.
 *
 * Keys and values are mirror images. A page holds "fours": 4 interleaved streams of 64 items (keys: 4 channels of 64
 * tokens, values: 4 tokens of 64 channels). The result has one sum per item, and each stream has a weight per row: the
 * query's channel, or the token's probability. Few rows (decode): the scale is folded into the weights and codes are
 * read as integers, straight into the sums. Many rows (prompts): streams are decoded once into a tile in L1. */
#ifndef LQ_CPU_ATTN_PAGE_H
#define LQ_CPU_ATTN_PAGE_H

#include <math.h>
#include <string.h>

#include "backends/cpu/cell_q.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/simd.h"
#include "core/half.h"
#include "formats/kv_page_body.h"

#define ITEMS LQ_PAGE_TOKENS
#define N_GROUPS (ITEMS / VN) /* vectors of items */
#define DIRECT_ROWS 4
#define TILE_STREAMS 16

/* ---- reading codes */

/* Fields of width bits of a plane of 64 items: items VN g .. VN g + VN - 1, one byte a stream. */
LQ_INLINE VI plane_fields(const uint8_t *plane, uint32_t bits, uint32_t g) {
    uint32_t lanes = ITEMS * bits / 8;
    VI v;
    if (lanes >= VN) {
        uint32_t vectors = lanes / VN;
        v = vi_srl(vi_load(plane + 4 * VN * (g % vectors)), bits * (g / vectors));
    } else { /* 8 lanes for 16 items: the second half are the next fields of the same bytes */
        v = vi_load_twice(plane, bits * 2 * g, bits * (2 * g + 1));
    }
    return vi_and(v, vi_set1((int)(((1u << bits) - 1) * 0x01010101u)));
}

LQ_INLINE VI four_codes(const uint8_t *four, uint32_t bits, uint32_t g) {
    if (bits == 3) return vi_or(plane_fields(four, 2, g), vi_sll(plane_fields(four + 64, 1, g), 2));
    if (bits == 5) return vi_or(plane_fields(four, 4, g), vi_sll(plane_fields(four + 128, 1, g), 4));
    return plane_fields(four, bits, g);
}

#define FOUR_BYTES(bits) ((size_t)ITEMS * (bits) / 2)

/* Stream j's codes as floats. */
LQ_INLINE VF stream_codes(VI codes, uint32_t j) {
    VI v = j == 0 ? codes : vi_srl(codes, 8 * j);
    return vf_from_int(j == 3 ? v : vi_and(v, vi_set1(255)));
}

/* ---- few rows */

LQ_INLINE void add_fours_of(VF sum[][DIRECT_GROUPS], uint32_t n_rows, const float *weights, size_t stride,
                            const uint8_t *src, uint32_t n_fours, uint32_t bits, uint32_t g0) {
    for (uint32_t f = 0; f < n_fours; f++, src += FOUR_BYTES(bits), weights += 4) {
        LQ_UNROLL
        for (uint32_t g = 0; g < DIRECT_GROUPS; g++) {
            VI codes = four_codes(src, bits, g0 + g);
            LQ_UNROLL
            for (uint32_t j = 0; j < 4; j++) {
                VF x = stream_codes(codes, j);
                LQ_UNROLL
                for (uint32_t r = 0; r < n_rows; r++)
                    sum[r][g] = vf_fma(vf_set1(weights[r * stride + j]), x, sum[r][g]);
            }
        }
    }
}

/* The same with the width and the group of items as constants, so that shifts are immediate. */
LQ_INLINE void add_fours(VF sum[][DIRECT_GROUPS], uint32_t n_rows, const float *weights, size_t stride,
                         const uint8_t *src, uint32_t n_fours, uint32_t bits, uint32_t g0) {
    switch (bits) {
    case 1:
        add_fours_of(sum, n_rows, weights, stride, src, n_fours, 1, g0);
        break;
    case 2:
        add_fours_of(sum, n_rows, weights, stride, src, n_fours, 2, g0);
        break;
    case 3:
        add_fours_of(sum, n_rows, weights, stride, src, n_fours, 3, g0);
        break;
    case 4:
        add_fours_of(sum, n_rows, weights, stride, src, n_fours, 4, g0);
        break;
    default:
        add_fours_of(sum, n_rows, weights, stride, src, n_fours, 5, g0);
        break;
    }
}

/* out[r][item] = out[r][item] * decay[r] + sum over streams + constant[r]; decay NULL: out is only written. */
LQ_INLINE void direct_rows(float *out, size_t out_stride, uint32_t n_rows, const float *decay, const float *weights,
                           size_t stride, const float *constant, const lq_page_tier *tiers, uint32_t n_tiers,
                           const uint8_t *codes) {
    LQ_UNROLL
    for (uint32_t g0 = 0; g0 < N_GROUPS; g0 += DIRECT_GROUPS) {
        VF sum[DIRECT_ROWS][DIRECT_GROUPS];
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t g = 0; g < DIRECT_GROUPS; g++) {
                sum[r][g] = vf_set1(constant[r]);
                if (decay != NULL)
                    sum[r][g] = vf_fma(vf_load(out + r * out_stride + VN * (g0 + g)), vf_set1(decay[r]), sum[r][g]);
            }
        }
        for (uint32_t t = 0; t < n_tiers; t++)
            add_fours(sum, n_rows, weights + tiers[t].first_channel, stride, codes + tiers[t].offset,
                      tiers[t].n_channels / 4, tiers[t].bits, g0);
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t g = 0; g < DIRECT_GROUPS; g++) vf_store(out + r * out_stride + VN * (g0 + g), sum[r][g]);
        }
    }
}

static void direct(float *out, size_t out_stride, size_t n_rows, const float *decay, const float *weights,
                   size_t stride, const float *constant, const lq_page_tier *tiers, uint32_t n_tiers,
                   const uint8_t *codes) {
    switch (n_rows) {
    case 1:
        direct_rows(out, out_stride, 1, decay, weights, stride, constant, tiers, n_tiers, codes);
        break;
    case 2:
        direct_rows(out, out_stride, 2, decay, weights, stride, constant, tiers, n_tiers, codes);
        break;
    case 3:
        direct_rows(out, out_stride, 3, decay, weights, stride, constant, tiers, n_tiers, codes);
        break;
    default:
        direct_rows(out, out_stride, 4, decay, weights, stride, constant, tiers, n_tiers, codes);
        break;
    }
}

/* ---- many rows: tile[stream][item] of decoded numbers */

LQ_INLINE void decode_four_of(float *tile, const uint8_t *four, uint32_t bits, const float *base, const float *step) {
    LQ_UNROLL
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        VI codes = four_codes(four, bits, g);
        LQ_UNROLL
        for (uint32_t j = 0; j < 4; j++)
            vf_store(tile + j * ITEMS + VN * g, vf_fma(stream_codes(codes, j), vf_set1(step[j]), vf_set1(base[j])));
    }
}

static void decode_four(float *tile, const uint8_t *four, uint32_t bits, const float *base, const float *step) {
    switch (bits) {
    case 1:
        decode_four_of(tile, four, 1, base, step);
        break;
    case 2:
        decode_four_of(tile, four, 2, base, step);
        break;
    case 3:
        decode_four_of(tile, four, 3, base, step);
        break;
    case 4:
        decode_four_of(tile, four, 4, base, step);
        break;
    default:
        decode_four_of(tile, four, 5, base, step);
        break;
    }
}

/* out[r][item] = out[r][item] * decay[r] + sum_s weights[r][s] tile[s][item]; decay NULL: * 1; clear: out counts as 0.
 */
LQ_INLINE void tile_rows(float *out, size_t out_stride, uint32_t n_rows, bool clear, const float *decay,
                         const float *weights, size_t stride, const float *tile, uint32_t n_streams) {
    for (uint32_t item = 0; item < ITEMS; item += VN * TILE_VECTORS) {
        VF sum[TILE_ROWS][TILE_VECTORS];
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) {
                sum[r][v] = clear ? vf_set1(0.0f) : vf_load(out + r * out_stride + item + VN * v);
                if (decay != NULL) sum[r][v] = vf_mul(sum[r][v], vf_set1(decay[r]));
            }
        }
        for (uint32_t s = 0; s < n_streams; s++) {
            VF x[TILE_VECTORS];
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) x[v] = vf_load(tile + s * ITEMS + item + VN * v);
            LQ_UNROLL
            for (uint32_t r = 0; r < n_rows; r++) {
                VF weight = vf_set1(weights[r * stride + s]);
                LQ_UNROLL
                for (uint32_t v = 0; v < TILE_VECTORS; v++) sum[r][v] = vf_fma(weight, x[v], sum[r][v]);
            }
        }
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) vf_store(out + r * out_stride + item + VN * v, sum[r][v]);
        }
    }
}

static void add_tile(float *out, size_t out_stride, size_t n_rows, bool clear, const float *decay, const float *weights,
                     size_t stride, const float *tile, uint32_t n_streams) {
    size_t r = 0;
    for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS)
        tile_rows(out + r * out_stride, out_stride, TILE_ROWS, clear, decay != NULL ? decay + r : NULL,
                  weights + r * stride, stride, tile, n_streams);
    for (; r < n_rows; r++)
        tile_rows(out + r * out_stride, out_stride, 1, clear, decay != NULL ? decay + r : NULL, weights + r * stride,
                  stride, tile, n_streams);
}

/* ---- scales */

/* n packed sixes as bytes. */
static void unpack6(uint8_t *restrict dst, const uint8_t *restrict src, uint32_t n) {
    const uint8_t *high = src + n / 2;
    for (uint32_t i = 0; i < n / 2; i++) dst[i] = src[i] & 15u;
    for (uint32_t i = 0; i < n / 2; i++) dst[i + n / 2] = src[i] >> 4;
    for (uint32_t k = 0; k < 4; k++)
        for (uint32_t i = 0; i < n / 4; i++) dst[k * (n / 4) + i] |= (uint8_t)((high[i] >> 2 * k & 3u) << 4);
}

static float half_at(const uint8_t *src) { return lq_half_to_float((uint16_t)(src[0] | src[1] << 8)); }

/* base and step of n channels or tokens of one super-block. */
static void line_of(float *restrict base, float *restrict step, const uint8_t *restrict s_codes,
                    const uint8_t *restrict m_codes, const uint8_t *super, uint32_t n, uint32_t bits) {
    float unit_s = half_at(super), unit_m = half_at(super + 2), part = 2.0f / (float)((1u << bits) - 1);
    for (uint32_t i = 0; i < n; i++) {
        float s = (float)(int)s_codes[i] * unit_s;
        base[i] = (float)((int)m_codes[i] - 32) * unit_m - s;
        step[i] = s * part;
    }
}

static void key_scales(const lq_page_format *f, const uint8_t *scales, float *base, float *step) {
    uint8_t s_codes[LQ_PAGE_MAX_HEAD_DIM], m_codes[LQ_PAGE_MAX_HEAD_DIM];
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups);
    if (f->f16_scales) {
        lq_page_key_scales(f, scales, base, step);
        return;
    }
    unpack6(s_codes, codes, f->head_dim);
    unpack6(m_codes, codes + f->head_dim / 4 * 3, f->head_dim);
    for (uint32_t t = 0; t < f->n_tiers; t++) {
        uint32_t at = f->tiers[t].first_channel;
        line_of(base + at, step + at, s_codes + at, m_codes + at, scales + 4 * t, f->tiers[t].n_channels,
                f->tiers[t].bits);
    }
}

static void value_scales(const lq_page_format *f, const uint8_t *scales, uint32_t g, float *base, float *step) {
    uint8_t s_codes[LQ_PAGE_TOKENS], m_codes[LQ_PAGE_TOKENS];
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups) + f->head_dim / 2 * 3 + g * 96;
    if (f->f16_scales) {
        lq_page_value_scales(f, scales, g, base, step);
        return;
    }
    unpack6(s_codes, codes, LQ_PAGE_TOKENS);
    unpack6(m_codes, codes + 48, LQ_PAGE_TOKENS);
    line_of(base, step, s_codes, m_codes, scales + 4 * (f->n_tiers + g), LQ_PAGE_TOKENS, f->v_bits);
}

/* Folds the streams' scales into a row's weights: returns sum_s w[s] base[s]. n is a multiple of VN. */
LQ_INLINE float fold_row(float *folded, const float *w, const float *base, const float *step, size_t n) {
    VF constant = vf_set1(0.0f);
    for (size_t i = 0; i < n; i += VN) {
        VF x = vf_load(w + i);
        constant = vf_fma(x, vf_load(base + i), constant);
        vf_store(folded + i, vf_mul(x, vf_load(step + i)));
    }
    return vf_sum(constant);
}

static void scale_by(float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= a;
}

/* ---- the two kernels */

static void page_scores(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                        const lq_page_format *f, lq_page_record page, float scale) {
    float base[LQ_PAGE_MAX_HEAD_DIM], step[LQ_PAGE_MAX_HEAD_DIM];
    uint32_t n = f->head_dim;
    key_scales(f, page.scales, base, step);
    scale_by(base, scale, n);
    scale_by(step, scale, n);
    if (n_q <= DIRECT_ROWS && n % VN == 0) {
        float folded[DIRECT_ROWS * LQ_PAGE_MAX_HEAD_DIM], constant[DIRECT_ROWS];
        for (size_t r = 0; r < n_q; r++) constant[r] = fold_row(folded + r * n, q + r * q_stride, base, step, n);
        direct(scores, s_stride, n_q, NULL, folded, n, constant, f->tiers, f->n_tiers, page.k);
        return;
    }
    float tile[TILE_STREAMS * ITEMS];
    uint32_t filled = 0, first = 0;
    for (uint32_t t = 0; t < f->n_tiers; t++) {
        const uint8_t *four = page.k + f->tiers[t].offset;
        uint32_t bits = f->tiers[t].bits, place = f->tiers[t].first_channel, end = place + f->tiers[t].n_channels;
        for (; place < end; place += 4, four += FOUR_BYTES(bits)) {
            decode_four(tile + filled * ITEMS, four, bits, base + place, step + place);
            filled += 4;
            if (filled < TILE_STREAMS && place + 4 < n) continue;
            add_tile(scores, s_stride, n_q, first == 0, NULL, q + first, q_stride, tile, filled);
            first += filled;
            filled = 0;
        }
    }
}

/* A group of 64 value channels. */
static void values_group(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                         const uint8_t *codes, uint32_t bits, const float *base, const float *step) {
    if (n_q <= DIRECT_ROWS) {
        lq_page_tier all = {.bits = bits, .n_channels = LQ_PAGE_TOKENS};
        float folded[DIRECT_ROWS * LQ_PAGE_TOKENS], constant[DIRECT_ROWS];
        for (size_t r = 0; r < n_q; r++)
            constant[r] = fold_row(folded + r * LQ_PAGE_TOKENS, p + r * p_stride, base, step, LQ_PAGE_TOKENS);
        direct(acc, acc_stride, n_q, decay, folded, LQ_PAGE_TOKENS, constant, &all, 1, codes);
        return;
    }
    float tile[TILE_STREAMS * ITEMS];
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t += TILE_STREAMS) {
        for (uint32_t i = 0; i < TILE_STREAMS; i += 4, codes += FOUR_BYTES(bits))
            decode_four(tile + i * ITEMS, codes, bits, base + t + i, step + t + i);
        add_tile(acc, acc_stride, n_q, false, t == 0 ? decay : NULL, p + t, p_stride, tile, TILE_STREAMS);
    }
}

/* The last group of a head, n < 64 channels: codes as bytes first, sums in a row of 64. */
static void values_tail(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *f, uint32_t g, const uint8_t *v, const float *base, const float *step) {
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_GROUP];
    float tile[TILE_STREAMS * ITEMS], row[ITEMS];
    uint32_t n = lq_page_group_len(f, g);
    lq_page_unpack_group(f, v, g, codes);
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t += TILE_STREAMS) {
        memset(tile, 0, sizeof tile);
        for (uint32_t i = 0; i < TILE_STREAMS; i++)
            for (uint32_t d = 0; d < n; d++)
                tile[i * ITEMS + d] = base[t + i] + step[t + i] * (float)codes[(t + i) * n + d];
        for (size_t r = 0; r < n_q; r++) {
            memset(row, 0, sizeof row);
            memcpy(row, acc + r * acc_stride, n * sizeof *row);
            tile_rows(row, ITEMS, 1, false, t == 0 ? decay + r : NULL, p + r * p_stride + t, p_stride, tile,
                      TILE_STREAMS);
            memcpy(acc + r * acc_stride, row, n * sizeof *row);
        }
    }
}

static void page_values(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *f, lq_page_record page) {
    float base[LQ_PAGE_TOKENS], step[LQ_PAGE_TOKENS];
    for (uint32_t g = 0; g < f->n_groups; g++, acc += LQ_PAGE_GROUP) {
        value_scales(f, page.scales, g, base, step);
        if (lq_page_group_len(f, g) == LQ_PAGE_GROUP)
            values_group(acc, acc_stride, decay, p, p_stride, n_q, page.v + lq_page_group_offset(f, g), f->v_bits, base,
                         step);
        else
            values_tail(acc, acc_stride, decay, p, p_stride, n_q, f, g, page.v, base, step);
    }
}

/* ---- quantized cells */

static void cell_load_q8(float *dst, const uint8_t *src, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK, i = 0;
        float d = half_at(src);
        const int8_t *q = (const int8_t *)(src + 2);
        for (; i + VN <= n; i += VN) vf_store(dst + at + i, vf_mul(vf_from_bytes(q + i), vf_set1(d)));
        for (; i < n; i++) dst[at + i] = d * (float)q[i];
        src += 2 + n;
    }
}

static void cell_store_q8(uint8_t *dst, const float *x, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK, i = 0;
        VF top = vf_set1(0.0f);
        for (; i + VN <= n; i += VN) top = vf_max(vf_abs(vf_load(x + at + i)), top); /* the second survives a NaN */
        float largest = vf_largest(top);
        for (; i < n; i++) largest = fabsf(x[at + i]) > largest ? fabsf(x[at + i]) : largest;
        uint16_t half = lq_float_to_half(largest / 127.0f);
        float d = lq_half_to_float(half);
        *dst++ = (uint8_t)(half & 255u);
        *dst++ = (uint8_t)(half >> 8);
        for (i = 0; i < n; i++) {
            float q = page_round(page_clamp(d > 0.0f ? x[at + i] / d : 0.0f, -127.0f, 127.0f));
            dst[i] = (uint8_t)(int8_t)(int)q;
        }
        dst += n;
    }
}

#define Q_CELLS 16 /* decoded at once */
#define Q_KEYS 4   /* of them, in one tile of sums */
#define Q_ROWS 3

/* scores of n_rows queries and four decoded cells */
LQ_INLINE void dots_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_rows,
                         const float *cells, size_t n_cells, size_t head_dim, float scale) {
    VF sum[Q_ROWS][Q_KEYS];
    float rest[Q_ROWS][Q_KEYS] = {{0.0f}}, out[Q_KEYS];
    size_t d = 0;
    LQ_UNROLL
    for (size_t i = 0; i < n_rows; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < Q_KEYS; j++) sum[i][j] = vf_set1(0.0f);
    }
    for (; d + VN <= head_dim; d += VN) {
        LQ_UNROLL
        for (size_t j = 0; j < Q_KEYS; j++) {
            VF key = vf_load(cells + j * head_dim + d);
            LQ_UNROLL
            for (size_t i = 0; i < n_rows; i++) sum[i][j] = vf_fma(vf_load(q + i * q_stride + d), key, sum[i][j]);
        }
    }
    for (; d < head_dim; d++)
        for (size_t i = 0; i < n_rows; i++)
            for (size_t j = 0; j < Q_KEYS; j++) rest[i][j] += q[i * q_stride + d] * cells[j * head_dim + d];
    LQ_UNROLL
    for (size_t i = 0; i < n_rows; i++) {
        vf_sums_of_4(out, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
        for (size_t j = 0; j < n_cells; j++) scores[i * s_stride + j] = scale * (out[j] + rest[i][j]);
    }
}

static void attn_scores_q(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                          lq_cell_format format, const uint8_t *k, size_t n_k, size_t head_dim, float scale) {
    float cells[Q_KEYS * LQ_PAGE_MAX_HEAD_DIM];
    for (size_t j = 0; j < n_k; j += Q_KEYS) {
        size_t n = n_k - j < Q_KEYS ? n_k - j : Q_KEYS, i = 0;
        for (size_t c = 0; c < Q_KEYS; c++) { /* the last cell stands in for those that are not there */
            cell_load_q(format, cells + c * head_dim, k, head_dim);
            if (c + 1 < n) k += lq_cell_bytes(format, (uint32_t)head_dim);
        }
        k += lq_cell_bytes(format, (uint32_t)head_dim);
        for (; i + Q_ROWS <= n_q; i += Q_ROWS)
            dots_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, Q_ROWS, cells, n, head_dim,
                      scale);
        for (; i < n_q; i++)
            dots_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, 1, cells, n, head_dim, scale);
    }
}

/* n_vectors VN dimensions from d on of one row. */
LQ_INLINE void add_cells_at(float *acc, const float *decay, const float *p, const float *cells, size_t n_cells,
                            size_t head_dim, size_t d, size_t n_vectors) {
    VF sum[4];
    LQ_UNROLL
    for (size_t v = 0; v < n_vectors; v++) {
        sum[v] = vf_load(acc + d + VN * v);
        if (decay != NULL) sum[v] = vf_mul(sum[v], vf_set1(*decay));
    }
    for (size_t j = 0; j < n_cells; j++) {
        VF weight = vf_set1(p[j]);
        LQ_UNROLL
        for (size_t v = 0; v < n_vectors; v++)
            sum[v] = vf_fma(weight, vf_load(cells + j * head_dim + d + VN * v), sum[v]);
    }
    LQ_UNROLL
    for (size_t v = 0; v < n_vectors; v++) vf_store(acc + d + VN * v, sum[v]);
}

LQ_INLINE void add_cells(float *acc, const float *decay, const float *p, const float *cells, size_t n_cells,
                         size_t head_dim) {
    size_t d = 0;
    for (; d + 4 * VN <= head_dim; d += 4 * VN) add_cells_at(acc, decay, p, cells, n_cells, head_dim, d, 4);
    for (; d + VN <= head_dim; d += VN) add_cells_at(acc, decay, p, cells, n_cells, head_dim, d, 1);
    for (; d < head_dim; d++) {
        float sum = decay != NULL ? acc[d] * *decay : acc[d];
        for (size_t j = 0; j < n_cells; j++) sum += p[j] * cells[j * head_dim + d];
        acc[d] = sum;
    }
}

static void attn_values_q(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                          size_t n_q, lq_cell_format format, const uint8_t *v, size_t n_k, size_t head_dim) {
    float cells[Q_CELLS * LQ_PAGE_MAX_HEAD_DIM];
    for (size_t j = 0; j < n_k; j += Q_CELLS) {
        size_t n = n_k - j < Q_CELLS ? n_k - j : Q_CELLS;
        for (size_t i = 0; i < n; i++, v += lq_cell_bytes(format, (uint32_t)head_dim))
            cell_load_q(format, cells + i * head_dim, v, head_dim);
        for (size_t i = 0; i < n_q; i++)
            add_cells(acc + i * acc_stride, j == 0 ? decay + i : NULL, p + i * p_stride + j, cells, n, head_dim);
    }
}

/* ---- rotation and sums */

/* Stages inside a vector, then between vectors; n is a power of two, at least VN. */
static void hadamard_block(float *x, size_t n) {
    VF norm = vf_set1(1.0f / sqrtf((float)n));
    for (size_t i = 0; i < n; i += VN) vf_store(x + i, vf_hadamard(vf_load(x + i)));
    for (size_t half = VN; half < n; half *= 2) {
        for (size_t i = 0; i < n; i += 2 * half) {
            for (size_t j = i; j < i + half; j += VN) {
                VF a = vf_load(x + j), b = vf_load(x + j + half);
                vf_store(x + j, vf_add(a, b));
                vf_store(x + j + half, vf_sub(a, b));
            }
        }
    }
    for (size_t i = 0; i < n; i += VN) vf_store(x + i, vf_mul(vf_load(x + i), norm));
}

static void hadamard(float *x, size_t head_dim) {
    bool whole = (head_dim & (head_dim - 1)) == 0 && head_dim >= VN;
    if (whole) {
        hadamard_block(x, head_dim);
        return;
    }
    if (head_dim < LQ_PAGE_GROUP) {
        lq_hadamard(x, head_dim);
        return;
    }
    for (; head_dim >= LQ_PAGE_GROUP; head_dim -= LQ_PAGE_GROUP, x += LQ_PAGE_GROUP) hadamard_block(x, LQ_PAGE_GROUP);
    if (head_dim > 0) lq_hadamard(x, head_dim); /* less than 64: the same blocks as at the end of a longer head */
}

static void axpy(float *dst, const float *x, float a, size_t n) {
    size_t i = 0;
    for (; i + VN <= n; i += VN) vf_store(dst + i, vf_fma(vf_load(x + i), vf_set1(a), vf_load(dst + i)));
    for (; i < n; i++) dst[i] += a * x[i];
}

static void encode_keys(const lq_page_format *f, const float *x, const uint16_t *order, lq_page_record page) {
    page_encode_keys(f, x, order, page);
}

static void encode_values(const lq_page_format *f, const float *x, lq_page_record page) {
    page_encode_values(f, x, page);
}

static void init_attn(lq_kernels *kernels) {
    kernels->attn_scores_q = attn_scores_q;
    kernels->attn_values_q = attn_values_q;
    kernels->page_scores = page_scores;
    kernels->page_values = page_values;
    kernels->page_encode_keys = encode_keys;
    kernels->page_encode_values = encode_values;
    kernels->cell_store_q = cell_store_q;
    kernels->cell_load_q = cell_load_q;
    kernels->hadamard = hadamard;
    kernels->axpy = axpy;
}

#endif
