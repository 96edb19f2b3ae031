/* page.cuh - the layout of a packed page (formats/kv_page.h, docs/format.md) for kernels. Keys' channels have an index
 * in page order: index i is channel order[i]. */
#ifndef LQ_CUDA_PAGE_CUH
#define LQ_CUDA_PAGE_CUH

#include "backends/cuda/compat.cuh"

LQ_DEVICE lq_page_record page_record(const lq_page_format &f, uint8_t *block, uint32_t n_heads, uint32_t head) {
    uint8_t *v = block + (size_t)n_heads * f.k_bytes, *scales = v + (size_t)n_heads * f.v_bytes;
    lq_page_record record = {block + (size_t)head * f.k_bytes, v + (size_t)head * f.v_bytes,
                             scales + (size_t)head * f.scale_bytes};
    return record;
}

LQ_DEVICE uint32_t page_group_len(const lq_page_format &f, uint32_t g) {
    uint32_t left = f.head_dim - g * LQ_PAGE_GROUP;
    return left < LQ_PAGE_GROUP ? left : LQ_PAGE_GROUP;
}

LQ_DEVICE uint32_t page_group_offset(const lq_page_format &f, uint32_t g) {
    return g * LQ_PAGE_GROUP * LQ_PAGE_TOKENS / 8 * f.v_bits;
}

/* The tier of the channel with this index in page order. */
LQ_DEVICE uint32_t page_tier(const lq_page_format &f, uint32_t index) {
    uint32_t tier = 0;
    while (tier + 1 < f.n_tiers && index >= f.tiers[tier + 1].first_channel) tier++;
    return tier;
}

/* Bits of a code in the first plane; a width of 3 or 5 has a second plane of one bit. */
LQ_DEVICE uint32_t plane_bits(uint32_t bits) { return bits == 3 ? 2 : bits == 5 ? 4 : bits; }

/* Item i of the four streams whose planes, n items of `bits` bits, start at words. Returns one code per byte. */
LQ_DEVICE uint32_t page_codes4(const uint32_t *words, uint32_t n, uint32_t bits, uint32_t i) {
    uint32_t low = plane_bits(bits), lanes = n * low / 8;
    uint32_t codes = words[i % lanes] >> low * (i / lanes) & 0x01010101u * ((1u << low) - 1);
    if (low != bits) {
        uint32_t more = n / 8;
        codes |= (words[lanes + i % more] >> i / more & 0x01010101u) << low;
    }
    return codes;
}

/* Number i of n packed sixes. */
LQ_DEVICE uint32_t page_six(const uint8_t *src, uint32_t n, uint32_t i) {
    uint32_t low = src[i % (n / 2)] >> (i < n / 2 ? 0 : 4) & 15u;
    uint32_t high = src[n / 2 + i % (n / 4)] >> 2 * (i / (n / 4)) & 3u;
    return low | high << 4;
}

LQ_DEVICE float page_half(const uint8_t *src) { return half_to_float((uint16_t)(src[0] | src[1] << 8)); }

/* A key is middle + step * (code - half the largest code); this finds both for an index in page order of a tier. */
LQ_DEVICE void page_key_scale(const lq_page_format &f, const uint8_t *scales, uint32_t tier, uint32_t index,
                              float *middle, float *step) {
    uint32_t n = f.head_dim;
    float s, m;
    if (f.f16_scales) {
        s = page_half(scales + 2 * (size_t)index);
        m = page_half(scales + 2 * ((size_t)n + index));
    } else {
        const uint8_t *codes = scales + 4 * (f.n_tiers + f.n_groups);
        s = (float)page_six(codes, n, index) * page_half(scales + 4 * tier);
        m = ((float)page_six(codes + n / 4 * 3, n, index) - 32.0f) * page_half(scales + 4 * tier + 2);
    }
    *middle = m;
    *step = s * (2.0f / (float)((1u << f.tiers[tier].bits) - 1));
}

/* The same for the values of token t in group g. */
LQ_DEVICE void page_value_scale(const lq_page_format &f, const uint8_t *scales, uint32_t g, uint32_t t, float *middle,
                                float *step) {
    float s, m;
    if (f.f16_scales) {
        const uint8_t *halves = scales + 4 * (size_t)f.head_dim + (size_t)g * 4 * LQ_PAGE_TOKENS;
        s = page_half(halves + 2 * t);
        m = page_half(halves + 2 * (LQ_PAGE_TOKENS + t));
    } else {
        const uint8_t *super = scales + 4 * (f.n_tiers + g);
        const uint8_t *codes = scales + 4 * (f.n_tiers + f.n_groups) + f.head_dim / 2 * 3 + g * 96;
        s = (float)page_six(codes, LQ_PAGE_TOKENS, t) * page_half(super);
        m = ((float)page_six(codes + 48, LQ_PAGE_TOKENS, t) - 32.0f) * page_half(super + 2);
    }
    *middle = m;
    *step = s * (2.0f / (float)((1u << f.v_bits) - 1));
}

#endif
