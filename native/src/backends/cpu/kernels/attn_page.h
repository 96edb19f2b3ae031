/* attn_page.h - attention over packed pages, and their coding, written once for any vector width.
 *
 * The including file has chosen a vector width (vec_128.h, vec_256.h or vec_512.h).
 *
 * Keys and values are mirror images. A page holds "fours": 4 interleaved streams of 64 items. For keys these are 4
 * channels of 64 tokens, for values 4 tokens of 64 channels. The result has one sum per item. Each stream has one
 * weight per row: the query's channel, or the token's probability. The page's scales are folded into the weights, and
 * these are rounded to int8. Codes stay small integers, and one instruction multiplies the four codes of an item and
 * adds up the products. Few rows (decoding) read packed codes; many rows (prompts) unpack them to bytes once. */
#ifndef LQ_CPU_ATTN_PAGE_H
#define LQ_CPU_ATTN_PAGE_H

#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"
#include "formats/bytes.h"
#include "formats/kv_page_body.h"

#define ITEMS LQ_PAGE_TOKENS
#define DOT_GROUPS (V_REGISTERS / 8) /* vectors of items in a register tile */
#define N_GROUPS (ITEMS / V_LANES)   /* vectors of items */
#define DOT_ROWS 4
#define FOUR_BYTES(bits) ((size_t)ITEMS * (bits) / 2)

/* ---- reading codes */

/* Returns the codes of items V_LANES g .. V_LANES g + V_LANES - 1 from a plane of 64 items: a lane for each item, a
 * byte for each stream. */
LQ_INLINE vint plane_fields(const uint8_t *plane, uint32_t bits, uint32_t g) {
    uint32_t lanes = ITEMS * bits / 8;
    vint v;
    if (bits == 8) return vi_load(plane + 4 * V_LANES * g);
    if (lanes >= V_LANES) {
        uint32_t vectors = lanes / V_LANES;
        v = vi_srl(vi_load(plane + 4 * V_LANES * (g % vectors)), bits * (g / vectors));
    } else { /* 8 lanes hold 16 items: the second half is in the next bits of the same bytes */
        v = vi_load_twice(plane, bits * 2 * g, bits * (2 * g + 1));
    }
    return vi_and(v, vi_set1((int)(((1u << bits) - 1) * 0x01010101u)));
}

/* The same of a four, whose 3 and 5 bits are in two planes. bits 8: codes that are already unpacked to bytes. */
LQ_INLINE vint four_codes(const uint8_t *four, uint32_t bits, uint32_t g) {
    if (bits == 3) return vi_or(plane_fields(four, 2, g), vi_sll(plane_fields(four + 64, 1, g), 2));
    if (bits == 5) return vi_or(plane_fields(four, 4, g), vi_sll(plane_fields(four + 128, 1, g), 4));
    return plane_fields(four, bits, g);
}

LQ_INLINE void unpack_fours_of(uint8_t *dst, const uint8_t *src, uint32_t n_fours, uint32_t bits, ptrdiff_t ahead) {
    for (uint32_t f = 0; f < n_fours; f++, src += FOUR_BYTES(bits), dst += FOUR_BYTES(8)) {
        lq_prefetch(src, ahead, FOUR_BYTES(bits));
        LQ_UNROLL
        for (uint32_t g = 0; g < N_GROUPS; g++) vi_store(dst + 4 * V_LANES * g, four_codes(src, bits, g));
    }
}

static void unpack_fours(uint8_t *dst, const uint8_t *src, uint32_t n_fours, uint32_t bits, ptrdiff_t ahead) {
    switch (bits) {
    case 1:
        unpack_fours_of(dst, src, n_fours, 1, ahead);
        break;
    case 2:
        unpack_fours_of(dst, src, n_fours, 2, ahead);
        break;
    case 3:
        unpack_fours_of(dst, src, n_fours, 3, ahead);
        break;
    case 4:
        unpack_fours_of(dst, src, n_fours, 4, ahead);
        break;
    default:
        unpack_fours_of(dst, src, n_fours, 5, ahead);
        break;
    }
}

/* ---- weights */

/* Up to DOT_ROWS rows of rounded weights: stream i of tier t has the weight scale[row][t] * q[row][i]. */
typedef struct folded {
    int8_t q[DOT_ROWS][LQ_PAGE_MAX_LANES];
    float scale[DOT_ROWS][8];
    float constant[DOT_ROWS]; /* added to all items: see fold() */
} folded;

/* Streams of codes as numbers: x = middle + step * (code - half the largest code). Lanes beyond a tier's streams hold
 * any finite number. */
typedef struct affine {
    float middle[LQ_PAGE_MAX_LANES];
    float step[LQ_PAGE_MAX_LANES];
} affine;

/* Folds `streams` into n_rows rows of x, whose lanes beyond a tier's streams are 0. The error of a rounded weight is
 * multiplied by the distance of a code from the middle, not by the code: the sum of x times the middles is computed in
 * float, and what the rounded weights make of half the largest code is subtracted. Both are in `constant`. */
LQ_INLINE void fold(folded *w, const float *x, size_t x_stride, uint32_t n_rows, const affine *streams,
                    const lq_page_tier *tiers, uint32_t n_tiers, float scale) {
    vfloat constant[DOT_ROWS];
    LQ_UNROLL
    for (uint32_t r = 0; r < DOT_ROWS; r++) constant[r] = vf_set1(0.0f);
    LQ_UNROLL
    for (uint32_t r = 0; r < n_rows; r++) {
        const float *row = x + r * x_stride;
        float *largest = w->scale[r], inverse[LQ_PAGE_MAX_TIERS];
        vfloat top[LQ_PAGE_MAX_TIERS];
        LQ_UNROLL
        for (uint32_t t = 0; t < LQ_PAGE_MAX_TIERS; t++) {
            top[t] = vf_set1(0.0f);
            if (t >= n_tiers) continue;
            for (uint32_t i = tiers[t].first_lane, end = i + tiers[t].n_channels; i < end; i += V_LANES) {
                vfloat value = vf_load(row + i);
                constant[r] = vf_fma(value, vf_load(streams->middle + i), constant[r]);
                top[t] = vf_max(top[t], vf_abs(vf_mul(value, vf_load(streams->step + i))));
            }
        }
        vf_largest_of_4(largest, top[0], top[1], top[2], top[3]);
        if (n_tiers > 4) largest[4] = vf_largest(top[4]);
        for (uint32_t t = 0; t < LQ_PAGE_MAX_TIERS; t++)
            inverse[t] = t < n_tiers && largest[t] > 0.0f ? 127.0f / largest[t] : 0.0f;
        for (uint32_t t = 0; t < n_tiers; t++) {
            vfloat factor = vf_set1(inverse[t]), sum = vf_set1(0.0f);
            for (uint32_t i = tiers[t].first_lane, end = i + tiers[t].n_channels; i < end; i += V_LANES) {
                vint q = vi_from_float(vf_mul(vf_mul(vf_load(row + i), vf_load(streams->step + i)), factor));
                vi_store_int8(w->q[r] + i, q);
                sum = vf_add(sum, vf_from_int(q));
            }
            largest[t] *= 1.0f / 127.0f;
            constant[r] = vf_fma(sum, vf_set1(-0.5f * largest[t] * (float)((1u << tiers[t].bits) - 1)), constant[r]);
            largest[t] *= scale;
        }
    }
    vf_sums_of_4(w->constant, constant[0], constant[1], constant[2], constant[3]);
    for (uint32_t r = 0; r < DOT_ROWS; r++) w->constant[r] *= scale;
}

/* ---- sums of products */

/* Returns the same four weights in every lane. */
LQ_INLINE vint four_weights(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return vi_set1(four);
}

LQ_INLINE void dot_fours_of(vint sum[][DOT_GROUPS], uint32_t n_rows, const int8_t *q, const uint8_t *src,
                            uint32_t n_fours, uint32_t bits, uint32_t g0, ptrdiff_t ahead) {
    for (uint32_t f = 0; f < n_fours; f++, src += FOUR_BYTES(bits), q += 4) {
        if (g0 == 0 && bits != 8) lq_prefetch(src, ahead, FOUR_BYTES(bits));
        LQ_UNROLL
        for (uint32_t g = 0; g < DOT_GROUPS; g++) {
            vint codes = four_codes(src, bits, g0 + g);
            LQ_UNROLL
            for (uint32_t r = 0; r < n_rows; r++)
                sum[r][g] = vi_add_dot(sum[r][g], codes, four_weights(q + r * sizeof(((folded *)0)->q[0])));
        }
    }
}

/* Calls dot_fours_of() with a constant width, so that shifts are immediate. */
LQ_INLINE void dot_fours(vint sum[][DOT_GROUPS], uint32_t n_rows, const int8_t *q, const uint8_t *src, uint32_t n_fours,
                         uint32_t bits, uint32_t g0, ptrdiff_t ahead) {
    switch (bits) {
    case 1:
        dot_fours_of(sum, n_rows, q, src, n_fours, 1, g0, ahead);
        break;
    case 2:
        dot_fours_of(sum, n_rows, q, src, n_fours, 2, g0, ahead);
        break;
    case 3:
        dot_fours_of(sum, n_rows, q, src, n_fours, 3, g0, ahead);
        break;
    case 4:
        dot_fours_of(sum, n_rows, q, src, n_fours, 4, g0, ahead);
        break;
    case 5:
        dot_fours_of(sum, n_rows, q, src, n_fours, 5, g0, ahead);
        break;
    default:
        dot_fours_of(sum, n_rows, q, src, n_fours, 8, g0, ahead);
        break;
    }
}

/* out[r][item] = out[r][item] * decay[r] + the weighted sum of its codes; decay NULL: out is only written. bytes: codes
 * are unpacked, 64 bytes for each stream. If they are not, the codes `ahead` are prefetched. */
LQ_INLINE void dot_rows(float *out, size_t out_stride, uint32_t n_rows, const float *decay, const folded *w,
                        const lq_page_tier *tiers, uint32_t n_tiers, const uint8_t *codes, bool bytes,
                        ptrdiff_t ahead) {
    LQ_UNROLL
    for (uint32_t g0 = 0; g0 < N_GROUPS; g0 += DOT_GROUPS) {
        for (uint32_t t = 0; t < n_tiers; t++) {
            vint sum[DOT_ROWS][DOT_GROUPS];
            LQ_UNROLL
            for (uint32_t r = 0; r < n_rows; r++) {
                LQ_UNROLL
                for (uint32_t g = 0; g < DOT_GROUPS; g++) sum[r][g] = vi_set1(0);
            }
            dot_fours(sum, n_rows, w->q[0] + tiers[t].first_lane,
                      codes + (bytes ? ITEMS * tiers[t].first_channel : tiers[t].offset), tiers[t].n_channels / 4,
                      bytes ? 8 : tiers[t].bits, g0, ahead);
            LQ_UNROLL
            for (uint32_t r = 0; r < n_rows; r++) {
                vfloat scale = vf_set1(w->scale[r][t]), constant = vf_set1(w->constant[r]);
                vfloat keep = vf_set1(decay != NULL ? decay[r] : 0.0f);
                LQ_UNROLL
                for (uint32_t g = 0; g < DOT_GROUPS; g++) {
                    float *at = out + r * out_stride + V_LANES * (g0 + g);
                    vfloat before = t > 0 ? vf_load(at) : constant;
                    if (t == 0 && decay != NULL) before = vf_fma(vf_load(at), keep, constant);
                    vf_store(at, vf_fma(vf_from_int(sum[r][g]), scale, before));
                }
            }
        }
    }
}

LQ_INLINE void fold_and_dot(float *out, size_t out_stride, uint32_t n_rows, const float *decay, const float *x,
                            size_t x_stride, const affine *streams, const lq_page_tier *tiers, uint32_t n_tiers,
                            const uint8_t *codes, bool bytes, ptrdiff_t ahead, float scale) {
    folded w;
    fold(&w, x, x_stride, n_rows, streams, tiers, n_tiers, scale);
    dot_rows(out, out_stride, n_rows, decay, &w, tiers, n_tiers, codes, bytes, ahead);
}

static void multiply(float *out, size_t out_stride, size_t n_rows, const float *decay, const float *x, size_t x_stride,
                     const affine *streams, const lq_page_tier *tiers, uint32_t n_tiers, const uint8_t *codes,
                     bool bytes, ptrdiff_t ahead, float scale) {
    size_t r = 0;
    for (; r + DOT_ROWS <= n_rows; r += DOT_ROWS)
        fold_and_dot(out + r * out_stride, out_stride, DOT_ROWS, decay != NULL ? decay + r : NULL, x + r * x_stride,
                     x_stride, streams, tiers, n_tiers, codes, bytes, ahead, scale);
    out += r * out_stride;
    x += r * x_stride;
    if (decay != NULL) decay += r;
    switch (n_rows - r) {
    case 1:
        fold_and_dot(out, out_stride, 1, decay, x, x_stride, streams, tiers, n_tiers, codes, bytes, ahead, scale);
        break;
    case 2:
        fold_and_dot(out, out_stride, 2, decay, x, x_stride, streams, tiers, n_tiers, codes, bytes, ahead, scale);
        break;
    case 3:
        fold_and_dot(out, out_stride, 3, decay, x, x_stride, streams, tiers, n_tiers, codes, bytes, ahead, scale);
        break;
    default:
        break;
    }
}

/* ---- scales */

LQ_INLINE void unpack6_quarter(uint8_t *restrict dst, const uint8_t *restrict src, uint32_t quarter, uint32_t n) {
    const uint8_t *high = src + 2 * quarter;
    for (uint32_t i = 0; i < n; i++) {
        dst[i] = (uint8_t)((src[i] & 15u) | (high[i] & 3u) << 4);
        dst[quarter + i] = (uint8_t)((src[quarter + i] & 15u) | (high[i] & 12u) << 2);
        dst[2 * quarter + i] = (uint8_t)(src[i] >> 4 | (high[i] & 48u));
        dst[3 * quarter + i] = (uint8_t)(src[quarter + i] >> 4 | (high[i] >> 6) << 4);
    }
}

/* Unpacks n codes of six bits to bytes. */
static void unpack6(uint8_t *restrict dst, const uint8_t *restrict src, uint32_t n) {
    uint32_t quarter = n / 4, i = 0;
    for (; i + 16 <= quarter; i += 16) unpack6_quarter(dst + i, src + i, quarter, 16);
    if (i < quarter) unpack6_quarter(dst + i, src + i, quarter, quarter - i);
}

/* Sets `middle` and `step` of the n channels or tokens of one super-block, rounded up to a vector. */
LQ_INLINE void set_affine(float *middle, float *step, const uint8_t *s_codes, const uint8_t *m_codes,
                          const uint8_t *super, uint32_t n, uint32_t bits) {
    vfloat unit_s = vf_set1(lq_read_half(super)), unit_m = vf_set1(lq_read_half(super + 2));
    vfloat part = vf_mul(unit_s, vf_set1(2.0f / (float)((1u << bits) - 1))), zero = vf_set1(32.0f);
    for (uint32_t i = 0; i < n; i += V_LANES) {
        vf_store(middle + i, vf_mul(vf_sub(vf_from_uint8(m_codes + i), zero), unit_m));
        vf_store(step + i, vf_mul(vf_from_uint8(s_codes + i), part));
    }
}

static void key_affine_f16(const lq_page_format *f, const uint8_t *scales, affine *streams) {
    float base[LQ_PAGE_MAX_HEAD_DIM], step[LQ_PAGE_MAX_HEAD_DIM];
    lq_page_key_scales(f, scales, base, step);
    memset(streams, 0, sizeof *streams);
    for (uint32_t t = 0; t < f->n_tiers; t++) {
        const lq_page_tier *tier = &f->tiers[t];
        float half = 0.5f * (float)((1u << tier->bits) - 1);
        for (uint32_t i = 0; i < tier->n_channels; i++) {
            streams->step[tier->first_lane + i] = step[tier->first_channel + i];
            streams->middle[tier->first_lane + i] =
                base[tier->first_channel + i] + half * step[tier->first_channel + i];
        }
    }
}

static void key_affine(const lq_page_format *f, const uint8_t *scales, affine *streams) {
    /* the last vector of the last tier may read past its end: any number is fine there */
    uint8_t s_codes[LQ_PAGE_MAX_HEAD_DIM + LQ_PAGE_LANES], m_codes[LQ_PAGE_MAX_HEAD_DIM + LQ_PAGE_LANES];
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups);
    if (f->f16_scales) {
        key_affine_f16(f, scales, streams);
        return;
    }
    memset(s_codes + f->head_dim, 0, LQ_PAGE_LANES);
    memset(m_codes + f->head_dim, 0, LQ_PAGE_LANES);
    unpack6(s_codes, codes, f->head_dim);
    unpack6(m_codes, codes + f->head_dim / 4 * 3, f->head_dim);
    for (uint32_t t = 0; t < f->n_tiers; t++) {
        uint32_t channel = f->tiers[t].first_channel, lane = f->tiers[t].first_lane;
        set_affine(streams->middle + lane, streams->step + lane, s_codes + channel, m_codes + channel, scales + 4 * t,
                   f->tiers[t].n_channels, f->tiers[t].bits);
    }
}

static void value_affine(const lq_page_format *f, const uint8_t *scales, uint32_t g, affine *streams) {
    uint8_t s_codes[LQ_PAGE_TOKENS], m_codes[LQ_PAGE_TOKENS];
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups) + f->head_dim / 2 * 3 + g * 96;
    if (f->f16_scales) {
        lq_page_value_scales(f, scales, g, streams->middle, streams->step);
        float half = 0.5f * (float)((1u << f->v_bits) - 1);
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) streams->middle[t] += half * streams->step[t];
        return;
    }
    unpack6(s_codes, codes, LQ_PAGE_TOKENS);
    unpack6(m_codes, codes + 48, LQ_PAGE_TOKENS);
    set_affine(streams->middle, streams->step, s_codes, m_codes, scales + 4 * (f->n_tiers + g), LQ_PAGE_TOKENS,
               f->v_bits);
}

/* ---- the two kernels */

/* Returns the bytes from one page's codes to the next page's, to prefetch these. 0 if there is no next page, which
 * prefetches nothing new. */
static ptrdiff_t distance(const uint8_t *from, const uint8_t *to) {
    return to != NULL ? (ptrdiff_t)((uintptr_t)to - (uintptr_t)from) : 0;
}

/* Unpacks a page's key codes to bytes, and prefetches those of the next page. */
static void unpack_keys(uint8_t *dst, const lq_page_format *f, lq_page_record page, const lq_page_record *next) {
    ptrdiff_t ahead = distance(page.k, next != NULL ? next->k : NULL);
    for (uint32_t t = 0; t < f->n_tiers; t++)
        unpack_fours(dst + ITEMS * f->tiers[t].first_channel, page.k + f->tiers[t].offset, f->tiers[t].n_channels / 4,
                     f->tiers[t].bits, ahead);
}

/* Unpacks the last group of values, n < 64 channels, to bytes. The missing channels of 64 become zeros. */
static void unpack_tail(uint8_t *dst, const lq_page_format *f, const uint8_t *v, uint32_t g) {
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_GROUP];
    uint32_t n = lq_page_group_len(f, g);
    lq_page_unpack_group(f, v, g, codes);
    memset(dst, 0, ITEMS * LQ_PAGE_TOKENS);
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++)
        for (uint32_t d = 0; d < n; d++) dst[t / 4 * FOUR_BYTES(8) + 4 * d + t % 4] = codes[t * n + d];
}

static void page_scores(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                        const lq_page_format *f, lq_page_record page, const lq_page_record *next, float scale) {
    uint8_t unpacked[ITEMS * LQ_PAGE_MAX_HEAD_DIM];
    const uint8_t *codes = page.k;
    bool bytes = n_q > DOT_ROWS;
    ptrdiff_t ahead = distance(page.k, next != NULL ? next->k : NULL);
    affine streams;
    if (next != NULL) lq_prefetch(next->scales, 0, f->scale_bytes + 63);
    key_affine(f, page.scales, &streams);
    if (bytes) {
        unpack_keys(unpacked, f, page, next);
        codes = unpacked;
    }
    multiply(scores, s_stride, n_q, NULL, q, q_stride, &streams, f->tiers, f->n_tiers, codes, bytes, ahead, scale);
}

/* Computes the last group of a head, n < 64 channels, in a row of 64 sums. */
static void values_tail(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *f, uint32_t g, const uint8_t *v, const affine *streams,
                        const lq_page_tier *all) {
    uint8_t bytes[ITEMS * LQ_PAGE_TOKENS];
    uint32_t n = lq_page_group_len(f, g);
    float row[ITEMS];
    unpack_tail(bytes, f, v, g);
    for (size_t r = 0; r < n_q; r++) {
        memset(row, 0, sizeof row);
        memcpy(row, acc + r * acc_stride, n * sizeof *row);
        multiply(row, ITEMS, 1, decay + r, p + r * p_stride, p_stride, streams, all, 1, bytes, true, 0, 1.0f);
        memcpy(acc + r * acc_stride, row, n * sizeof *row);
    }
}

static void page_values(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *f, lq_page_record page, const lq_page_record *next) {
    ptrdiff_t ahead = distance(page.v, next != NULL ? next->v : NULL);
    const lq_page_tier all = {.bits = f->v_bits, .n_channels = LQ_PAGE_TOKENS};
    uint8_t unpacked[ITEMS * LQ_PAGE_TOKENS];
    bool bytes = n_q > DOT_ROWS;
    affine streams;
    for (uint32_t g = 0; g < f->n_groups; g++, acc += LQ_PAGE_GROUP) {
        const uint8_t *codes = page.v + lq_page_group_offset(f, g);
        value_affine(f, page.scales, g, &streams);
        if (lq_page_group_len(f, g) < LQ_PAGE_GROUP) {
            values_tail(acc, acc_stride, decay, p, p_stride, n_q, f, g, page.v, &streams, &all);
            return;
        }
        if (bytes) {
            unpack_fours(unpacked, codes, LQ_PAGE_TOKENS / 4, f->v_bits, ahead);
            codes = unpacked;
        }
        multiply(acc, acc_stride, n_q, decay, p, p_stride, &streams, &all, 1, codes, bytes, ahead, 1.0f);
    }
}

/* ---- storing */

static void encode_keys(const lq_page_format *f, const float *x, const uint16_t *order, lq_page_record page) {
    page_encode_keys(f, x, order, page);
}

static void encode_values(const lq_page_format *f, const float *x, lq_page_record page) {
    page_encode_values(f, x, page);
}

static void init_pages(lq_kernels *kernels) {
    kernels->page_scores = page_scores;
    kernels->page_values = page_values;
    kernels->page_encode_keys = encode_keys;
    kernels->page_encode_values = encode_values;
}

#endif
