/* kv_page.c - the layout of packed KV pages, and their encoding and decoding in scalar code. */
#include "formats/kv_page.h"

#include <math.h>

#include "formats/kv_page_body.h"

void lq_page_format_init(lq_page_format *format, uint32_t head_dim, const lq_page_split *split, uint32_t v_bits,
                         bool least_squares, bool f16_scales) {
    uint64_t numerator = 0, denominator = 1;
    uint32_t first = 0;
    memset(format, 0, sizeof *format);
    format->head_dim = head_dim;
    format->v_bits = v_bits;
    format->least_squares = least_squares;
    format->f16_scales = f16_scales;
    format->n_groups = (head_dim + LQ_PAGE_GROUP - 1) / LQ_PAGE_GROUP;
    for (uint32_t i = 0; i < split->n_tiers; i++) {
        numerator = numerator * split->tiers[i].denominator + split->tiers[i].numerator * denominator;
        denominator *= split->tiers[i].denominator;
        /* The cumulative boundary in units of 4 channels, rounded half up. */
        uint64_t fours = (2 * numerator * head_dim + 4 * denominator) / (8 * denominator);
        uint32_t end = i + 1 == split->n_tiers ? head_dim : (uint32_t)(4 * fours);
        if (end > head_dim) end = head_dim;
        if (end <= first) continue;
        lq_page_tier *tier = &format->tiers[format->n_tiers++];
        tier->bits = split->tiers[i].bits;
        tier->n_channels = end - first;
        tier->first_channel = first;
        tier->first_lane = format->n_lanes;
        format->n_lanes += (tier->n_channels + LQ_PAGE_LANES - 1) / LQ_PAGE_LANES * LQ_PAGE_LANES;
        tier->offset = format->k_bytes;
        format->k_bytes += tier->n_channels * tier->bits * LQ_PAGE_TOKENS / 8;
        first = end;
    }
    format->v_bytes = head_dim * v_bits * LQ_PAGE_TOKENS / 8;
    format->scale_bytes = f16_scales ? 4 * (head_dim + format->n_groups * LQ_PAGE_TOKENS)
                                     : 4 * (format->n_tiers + format->n_groups) + head_dim / 2 * 3 +
                                           format->n_groups * (LQ_PAGE_TOKENS / 2 * 3);
}

void lq_page_learn_order(const lq_page_format *format, const float *k, uint16_t *order) {
    float range[LQ_PAGE_MAX_HEAD_DIM];
    for (uint32_t d = 0; d < format->head_dim; d++) {
        float lo = k[d], hi = k[d];
        for (uint32_t t = 1; t < LQ_PAGE_TOKENS; t++) {
            float x = k[(size_t)t * format->head_dim + d];
            lo = x < lo ? x : lo;
            hi = x > hi ? x : hi;
        }
        range[d] = hi - lo;
    }
    for (uint32_t d = 0; d < format->head_dim; d++) { /* insertion keeps equal ranges in rising order */
        uint32_t at = d;
        for (; format->n_tiers > 1 && at > 0 && range[order[at - 1]] < range[d]; at--) order[at] = order[at - 1];
        order[at] = (uint16_t)d;
    }
}

void lq_page_encode_keys(const lq_page_format *format, const float *x, const uint16_t *order, lq_page_record record) {
    page_encode_keys(format, x, order, record);
}

void lq_page_encode_values(const lq_page_format *format, const float *x, lq_page_record record) {
    page_encode_values(format, x, record);
}

/* ---- decoding */

static uint32_t get6(const uint8_t *src, uint32_t n, uint32_t i) {
    uint32_t low = src[i % (n / 2)] >> (i < n / 2 ? 0 : 4) & 15u;
    uint32_t high = src[n / 2 + i % (n / 4)] >> 2 * (i / (n / 4)) & 3u;
    return low | high << 4;
}

static float get_half(const uint8_t *src) { return lq_half_to_float((uint16_t)(src[0] | src[1] << 8)); }

static void to_line(float s, float m, uint32_t bits, float *base, float *step) {
    *base = m - s;
    *step = s * (2.0f / (float)((1u << bits) - 1));
}

void lq_page_key_scales(const lq_page_format *f, const uint8_t *scales, float *base, float *step) {
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups);
    uint32_t n = f->head_dim;
    for (uint32_t tier = 0; tier < f->n_tiers; tier++) {
        const lq_page_tier *t = &f->tiers[tier];
        for (uint32_t i = t->first_channel; i < t->first_channel + t->n_channels; i++) {
            float s, m;
            if (f->f16_scales) {
                s = get_half(scales + 2 * (size_t)i);
                m = get_half(scales + 2 * ((size_t)n + i));
            } else {
                s = (float)get6(codes, n, i) * get_half(scales + 4 * tier);
                m = ((float)get6(codes + n / 4 * 3, n, i) - 32.0f) * get_half(scales + 4 * tier + 2);
            }
            to_line(s, m, t->bits, &base[i], &step[i]);
        }
    }
}

void lq_page_value_scales(const lq_page_format *f, const uint8_t *scales, uint32_t g, float *base, float *step) {
    const uint8_t *super = scales + 4 * (f->n_tiers + g);
    const uint8_t *codes = scales + 4 * (f->n_tiers + f->n_groups) + f->head_dim / 2 * 3 + g * 96;
    const uint8_t *halves = scales + 4 * (size_t)f->head_dim + (size_t)g * 4 * LQ_PAGE_TOKENS;
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        float s, m;
        if (f->f16_scales) {
            s = get_half(halves + 2 * t);
            m = get_half(halves + 2 * (LQ_PAGE_TOKENS + t));
        } else {
            s = (float)get6(codes, LQ_PAGE_TOKENS, t) * get_half(super);
            m = ((float)get6(codes + 48, LQ_PAGE_TOKENS, t) - 32.0f) * get_half(super + 2);
        }
        to_line(s, m, f->v_bits, &base[t], &step[t]);
    }
}

/* Does the inverse of page_put; dst has the layout of its src. */
static const uint8_t *get(const uint8_t *src, uint8_t *dst, size_t item_stride, size_t stream_stride, uint32_t n,
                          uint32_t bits) {
    uint32_t low = bits == 3 ? 2 : (bits == 5 ? 4 : bits);
    for (uint32_t plane = 0, shift = 0, b = low; plane < (low == bits ? 1u : 2u); plane++, shift = low, b = 1) {
        uint32_t lanes = n * b / 8;
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < 4; j++) {
                uint32_t code = src[4 * (i % lanes) + j] >> b * (i / lanes) & ((1u << b) - 1);
                uint8_t *at = &dst[i * item_stride + j * stream_stride];
                *at = (uint8_t)(shift == 0 ? code : *at | code << shift);
            }
        }
        src += page_plane_bytes(b, n);
    }
    return src;
}

void lq_page_unpack_keys(const lq_page_format *f, const uint8_t *k, uint8_t *out) {
    for (uint32_t tier = 0; tier < f->n_tiers; tier++) {
        const lq_page_tier *t = &f->tiers[tier];
        for (uint32_t i = t->first_channel; i < t->first_channel + t->n_channels; i += 4)
            k = get(k, out + (size_t)i * LQ_PAGE_TOKENS, 1, LQ_PAGE_TOKENS, LQ_PAGE_TOKENS, t->bits);
    }
}

/* Unpacks group g to out[token * stride + channel within the group]. */
static void unpack_group(const lq_page_format *f, const uint8_t *v, uint32_t g, size_t stride, uint8_t *out) {
    uint32_t n = lq_page_group_len(f, g);
    v += lq_page_group_offset(f, g);
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t += 4) v = get(v, out + t * stride, 1, stride, n, f->v_bits);
}

void lq_page_unpack_group(const lq_page_format *f, const uint8_t *v, uint32_t g, uint8_t *out) {
    unpack_group(f, v, g, lq_page_group_len(f, g), out);
}

void lq_page_unpack_values(const lq_page_format *f, const uint8_t *v, uint8_t *out) {
    for (uint32_t g = 0; g < f->n_groups; g++) unpack_group(f, v, g, f->head_dim, out + (size_t)g * LQ_PAGE_GROUP);
}

/* ---- rotation */

static void hadamard_block(float *x, size_t n) {
    for (size_t half = 1; half < n; half *= 2) {
        for (size_t i = 0; i < n; i += 2 * half) {
            for (size_t j = i; j < i + half; j++) {
                float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
    float norm = 1.0f / sqrtf((float)n);
    for (size_t i = 0; i < n; i++) x[i] *= norm;
}

void lq_hadamard(float *x, size_t head_dim) {
    if ((head_dim & (head_dim - 1)) == 0) {
        hadamard_block(x, head_dim);
        return;
    }
    for (; head_dim >= LQ_PAGE_GROUP; head_dim -= LQ_PAGE_GROUP, x += LQ_PAGE_GROUP) hadamard_block(x, LQ_PAGE_GROUP);
    for (size_t n = LQ_PAGE_GROUP / 2; n > 0; n /= 2) {
        if ((head_dim & n) == 0) continue;
        hadamard_block(x, n);
        x += n;
    }
}
