/* kv_page_body.h - encodes pages, compiled once for every instruction set: the loops run over channels and hold only
 * operations that every set rounds alike (no contraction, no reordering), so the bits are the same everywhere.
 *
 * The including file defines nothing; it gets static functions page_encode_keys() and page_encode_values(). */
#ifndef LQ_FORMATS_KV_PAGE_BODY_H
#define LQ_FORMATS_KV_PAGE_BODY_H

#include <string.h>

#include "core/half.h"
#include "formats/kv_page.h"

/* Nearest integer, ties to even, for |x| < 2^22: what rintf gives, but inlined by every compiler. */
static inline float page_round(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* Comparisons are written so that a NaN becomes lo. */
static inline float page_clamp(float x, float lo, float hi) {
    x = x >= lo ? x : lo;
    return x <= hi ? x : hi;
}

/* The plane of b-bit fields that hold n items of 4 interleaved streams: L = n b / 8 lanes; byte 4 lane + j holds, from
 * bit b i on, item L i + lane of stream j. Fields of width 3 and 5 are two planes, the low bits (2 or 4) first. */
static inline size_t page_plane_bytes(uint32_t bits, uint32_t n) { return (size_t)n * bits / 2; }

/* src: item i of stream j at src[i * item_stride + j * stream_stride]. */
static inline void page_put_plane(uint8_t *dst, const uint8_t *src, size_t item_stride, size_t stream_stride,
                                  uint32_t n, uint32_t bits, uint32_t shift) {
    uint32_t lanes = n * bits / 8, per_byte = 8 / bits, mask = (1u << bits) - 1;
    for (uint32_t lane = 0; lane < lanes; lane++) {
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t byte = 0;
            for (uint32_t i = 0; i < per_byte; i++)
                byte |= ((uint32_t)(src[(size_t)(lanes * i + lane) * item_stride + j * stream_stride] >> shift) & mask)
                        << (bits * i);
            dst[4 * lane + j] = (uint8_t)byte;
        }
    }
}

static inline uint8_t *page_put(uint8_t *dst, const uint8_t *src, size_t item_stride, size_t stream_stride, uint32_t n,
                                uint32_t bits) {
    uint32_t low = bits == 3 ? 2 : (bits == 5 ? 4 : bits);
    page_put_plane(dst, src, item_stride, stream_stride, n, low, 0);
    dst += page_plane_bytes(low, n);
    if (low != bits) {
        page_put_plane(dst, src, item_stride, stream_stride, n, 1, low);
        dst += page_plane_bytes(1, n);
    }
    return dst;
}

/* n 6-bit numbers: n/2 bytes of low nibbles (byte i: numbers i and i + n/2), n/4 bytes of the two high bits (byte i:
 * numbers i, i + n/4, i + n/2, i + 3n/4). n is a multiple of 4. */
static inline uint8_t *page_put6(uint8_t *dst, const uint8_t *src, uint32_t n) {
    for (uint32_t i = 0; i < n / 2; i++) dst[i] = (uint8_t)((src[i] & 15u) | (src[i + n / 2] & 15u) << 4);
    dst += n / 2;
    for (uint32_t i = 0; i < n / 4; i++)
        dst[i] = (uint8_t)(src[i] >> 4 | (src[i + n / 4] >> 4) << 2 | (src[i + n / 2] >> 4) << 4 |
                           (src[i + 3 * (n / 4)] >> 4) << 6);
    return dst + n / 4;
}

/* Rounds n pairs (s, m) to their stored form, in place, as one super-block: 6-bit codes under an f16 pair. */
static inline void page_round_scales(float *s, float *m, uint32_t n, uint8_t *s_codes, uint8_t *m_codes,
                                     uint8_t *super) {
    float top_s = 0.0f, top_m = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        float size = m[i] < 0.0f ? -m[i] : m[i];
        top_s = s[i] > top_s ? s[i] : top_s;
        top_m = size > top_m ? size : top_m;
    }
    uint16_t pair[2] = {lq_float_to_half(top_s / 63.0f), lq_float_to_half(top_m / 31.0f)};
    float unit_s = lq_half_to_float(pair[0]), unit_m = lq_half_to_float(pair[1]);
    for (uint32_t i = 0; i < 2; i++) {
        super[2 * i] = (uint8_t)(pair[i] & 255u);
        super[2 * i + 1] = (uint8_t)(pair[i] >> 8);
    }
    for (uint32_t i = 0; i < n; i++) {
        float cs = unit_s > 0.0f ? page_round(page_clamp(s[i] / unit_s, 1.0f, 63.0f)) : 1.0f;
        float cm = unit_m > 0.0f ? page_round(page_clamp(m[i] / unit_m, -31.0f, 31.0f)) : 0.0f;
        s_codes[i] = (uint8_t)cs;
        m_codes[i] = (uint8_t)(cm + 32.0f);
        s[i] = cs * unit_s;
        m[i] = cm * unit_m;
    }
}

static inline void page_store_half(uint8_t *dst, float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = lq_float_to_half(x[i]);
        dst[2 * i] = (uint8_t)(h & 255u);
        dst[2 * i + 1] = (uint8_t)(h >> 8);
        x[i] = lq_half_to_float(h);
    }
}

/* The factor h / s of codes (x - m) (h / s) + h. Without a range (s = 0) it is 0, so that all codes are the same. */
static inline float page_factor(float half_levels, float s) { return s > 0.0f ? half_levels / s : 0.0f; }

/* ---- keys: per channel; x[t * head_dim + i] */

typedef struct page_channels {
    float s[LQ_PAGE_MAX_HEAD_DIM];
    float m[LQ_PAGE_MAX_HEAD_DIM];
    float r[LQ_PAGE_MAX_HEAD_DIM];
} page_channels;

/* Finds min and max of n columns; s = half the range, m = its middle. */
static inline void page_column_range(const float *x, size_t stride, uint32_t n, page_channels *c) {
    float *lo = c->s, *hi = c->m;
    memcpy(lo, x, n * sizeof(float));
    memcpy(hi, x, n * sizeof(float));
    for (uint32_t t = 1; t < LQ_PAGE_TOKENS; t++) {
        const float *row = x + t * stride;
        for (uint32_t i = 0; i < n; i++) lo[i] = row[i] < lo[i] ? row[i] : lo[i];
        for (uint32_t i = 0; i < n; i++) hi[i] = row[i] > hi[i] ? row[i] : hi[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        float low = lo[i], high = hi[i];
        c->s[i] = (high - low) * 0.5f;
        c->m[i] = (low + high) * 0.5f + 0.0f; /* never -0, whichever zero came first */
    }
}

/* Does one round of least squares: computes codes for (s, m), then the (s, m) that fit these codes best. mid: the
 * middle of each channel's range. */
static inline void page_refit(const float *x, size_t stride, uint32_t n, uint32_t bits, const float *mid,
                              page_channels *c) {
    float top = (float)((1u << bits) - 1), half_levels = top * 0.5f;
    float sum_y[LQ_PAGE_MAX_HEAD_DIM], sum_u[LQ_PAGE_MAX_HEAD_DIM], sum_yu[LQ_PAGE_MAX_HEAD_DIM],
        sum_uu[LQ_PAGE_MAX_HEAD_DIM];
    for (uint32_t i = 0; i < n; i++) {
        c->r[i] = page_factor(half_levels, c->s[i]);
        sum_y[i] = sum_u[i] = sum_yu[i] = sum_uu[i] = 0.0f;
    }
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        const float *row = x + t * stride;
        for (uint32_t i = 0; i < n; i++) {
            float y = row[i] - mid[i];
            float u = 2.0f * page_round(page_clamp((row[i] - c->m[i]) * c->r[i] + half_levels, 0.0f, top)) - top;
            sum_y[i] += y;
            sum_u[i] += u;
            sum_yu[i] += y * u;
            sum_uu[i] += u * u;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        float spread = 64.0f * sum_uu[i] - sum_u[i] * sum_u[i]; /* exact: below 2^24 */
        float slope = spread > 0.0f ? (64.0f * sum_yu[i] - sum_y[i] * sum_u[i]) / spread : 0.0f;
        float s = slope * top;
        if (s > 0.0f) {
            c->m[i] = mid[i] + (sum_y[i] - slope * sum_u[i]) * 0.015625f;
            c->s[i] = s;
        }
    }
}

static inline void page_encode_keys(const lq_page_format *f, const float *x, const uint16_t *order,
                                    lq_page_record record) {
    float tile[LQ_PAGE_TOKENS * LQ_PAGE_GROUP]; /* channels in page order, at most 64 at a time */
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_GROUP];
    uint8_t s_codes[LQ_PAGE_MAX_HEAD_DIM], m_codes[LQ_PAGE_MAX_HEAD_DIM];
    float s[LQ_PAGE_MAX_HEAD_DIM], m[LQ_PAGE_MAX_HEAD_DIM];
    page_channels c;
    uint8_t *out = record.k;
    for (uint32_t tier = 0; tier < f->n_tiers; tier++) {
        uint32_t bits = f->tiers[tier].bits, first = f->tiers[tier].first_channel, n_tier = f->tiers[tier].n_channels;
        float top = (float)((1u << bits) - 1), half_levels = top * 0.5f;
        /* All channels of a tier share a super-block, so their scales come first. */
        for (uint32_t at = 0; at < n_tier; at += LQ_PAGE_GROUP) {
            uint32_t n = n_tier - at < LQ_PAGE_GROUP ? n_tier - at : LQ_PAGE_GROUP;
            for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++)
                for (uint32_t i = 0; i < n; i++) tile[t * n + i] = x[t * f->head_dim + order[first + at + i]];
            page_column_range(tile, n, n, &c);
            if (f->least_squares) {
                float mid[LQ_PAGE_GROUP];
                memcpy(mid, c.m, n * sizeof(float));
                page_refit(tile, n, n, bits, mid, &c);
                page_refit(tile, n, n, bits, mid, &c);
            }
            memcpy(s + first + at, c.s, n * sizeof(float));
            memcpy(m + first + at, c.m, n * sizeof(float));
        }
        if (f->f16_scales) {
            page_store_half(record.scales + 2 * (size_t)first, s + first, n_tier);
            page_store_half(record.scales + 2 * ((size_t)f->head_dim + first), m + first, n_tier);
        } else {
            page_round_scales(s + first, m + first, n_tier, s_codes + first, m_codes + first, record.scales + 4 * tier);
        }
        for (uint32_t at = 0; at < n_tier; at += LQ_PAGE_GROUP) {
            uint32_t n = n_tier - at < LQ_PAGE_GROUP ? n_tier - at : LQ_PAGE_GROUP;
            const float *ms = m + first + at;
            for (uint32_t i = 0; i < n; i++) c.r[i] = page_factor(half_levels, s[first + at + i]);
            for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
                float row[LQ_PAGE_GROUP];
                for (uint32_t i = 0; i < n; i++) row[i] = x[t * f->head_dim + order[first + at + i]];
                for (uint32_t i = 0; i < n; i++)
                    row[i] = page_round(page_clamp((row[i] - ms[i]) * c.r[i] + half_levels, 0.0f, top));
                for (uint32_t i = 0; i < n; i++) codes[t * n + i] = s[first + at + i] > 0.0f ? (uint8_t)row[i] : 0;
            }
            for (uint32_t i = 0; i < n; i += 4) out = page_put(out, codes + i, n, 1, LQ_PAGE_TOKENS, bits);
        }
    }
    if (!f->f16_scales) {
        uint8_t *at = record.scales + 4 * (f->n_tiers + f->n_groups);
        page_put6(page_put6(at, s_codes, f->head_dim), m_codes, f->head_dim);
    }
}

/* ---- values: per token and group of channels */

static inline void page_encode_group(const lq_page_format *f, const float *x, uint32_t g, lq_page_record record) {
    uint32_t n = lq_page_group_len(f, g);
    float top = (float)((1u << f->v_bits) - 1), half_levels = top * 0.5f;
    float s[LQ_PAGE_TOKENS], m[LQ_PAGE_TOKENS];
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_GROUP];
    x += g * LQ_PAGE_GROUP;
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        const float *row = x + (size_t)t * f->head_dim;
        float lo = row[0], hi = row[0];
        for (uint32_t i = 1; i < n; i++) lo = row[i] < lo ? row[i] : lo;
        for (uint32_t i = 1; i < n; i++) hi = row[i] > hi ? row[i] : hi;
        s[t] = (hi - lo) * 0.5f;
        m[t] = (lo + hi) * 0.5f + 0.0f; /* never -0 */
    }
    if (f->f16_scales) {
        uint8_t *at = record.scales + 4 * (size_t)f->head_dim + (size_t)g * 4 * LQ_PAGE_TOKENS;
        page_store_half(at, s, LQ_PAGE_TOKENS);
        page_store_half(at + 2 * LQ_PAGE_TOKENS, m, LQ_PAGE_TOKENS);
    } else {
        uint8_t s_codes[LQ_PAGE_TOKENS], m_codes[LQ_PAGE_TOKENS];
        uint8_t *at = record.scales + 4 * (f->n_tiers + f->n_groups) + f->head_dim / 2 * 3 + g * 96;
        page_round_scales(s, m, LQ_PAGE_TOKENS, s_codes, m_codes, record.scales + 4 * (f->n_tiers + g));
        page_put6(page_put6(at, s_codes, LQ_PAGE_TOKENS), m_codes, LQ_PAGE_TOKENS);
    }
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        const float *in = x + (size_t)t * f->head_dim;
        float row[LQ_PAGE_GROUP], r = page_factor(half_levels, s[t]), middle = m[t];
        for (uint32_t i = 0; i < n; i++) row[i] = page_round(page_clamp((in[i] - middle) * r + half_levels, 0.0f, top));
        for (uint32_t i = 0; i < n; i++) codes[t * n + i] = s[t] > 0.0f ? (uint8_t)row[i] : 0;
    }
    uint8_t *out = record.v + lq_page_group_offset(f, g);
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t += 4) out = page_put(out, codes + t * n, 1, n, n, f->v_bits);
}

static inline void page_encode_values(const lq_page_format *f, const float *x, lq_page_record record) {
    for (uint32_t g = 0; g < f->n_groups; g++) page_encode_group(f, x, g, record);
}

#endif
