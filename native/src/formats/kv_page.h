/* kv_page.h - the packed KV page: 64 consecutive tokens of one layer and KV head. Keys are quantized per channel, in
 * tiers of 1 to 5 bits, values per token and group of 64 channels, in 2 to 4 bits. docs/format.md is the specification;
 * encoding uses float32 in a fixed order, so that every implementation agrees on every bit.
 *
 * A page's record holds key codes, value codes and scales, in this order. In memory the records of one page index and
 * all KV heads of a layer form a block, sorted by kind: [head] key codes, [head] value codes, [head] scales, padded to
 * 64 bytes, so that codes are aligned to 32 bytes.
 *
 * A code c of b bits stands for the level x = m + s (2c - (n-1)) / (n-1), n = 2^b. */
#ifndef LQ_FORMATS_KV_PAGE_H
#define LQ_FORMATS_KV_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LQ_PAGE_TOKENS 64
#define LQ_PAGE_MAX_TIERS 5
#define LQ_PAGE_GROUP 64 /* channels that share a value scale; the last group of a head may be shorter */
#define LQ_PAGE_MAX_HEAD_DIM 512
#define LQ_PAGE_LANES 16
#define LQ_PAGE_MAX_LANES (LQ_PAGE_MAX_HEAD_DIM + LQ_PAGE_MAX_TIERS * LQ_PAGE_LANES)
#define LQ_PAGE_MAX_GROUPS (LQ_PAGE_MAX_HEAD_DIM / LQ_PAGE_GROUP)

/* The tiers that a user asks for: falling widths, each with its fraction of the channels; the fractions add up to 1. */
typedef struct lq_page_split {
    uint32_t n_tiers;
    struct {
        uint32_t bits; /* 1..5 */
        uint32_t numerator;
        uint32_t denominator;
    } tiers[LQ_PAGE_MAX_TIERS];
} lq_page_split;

typedef struct lq_page_tier {
    uint32_t bits;
    uint32_t n_channels;    /* multiple of 4 */
    uint32_t first_channel; /* in page order */
    uint32_t first_lane; /* like first_channel, but each tier starts at a multiple of LQ_PAGE_LANES, so that no vector
                            mixes tiers */
    uint32_t offset;     /* bytes from the key codes' start */
} lq_page_tier;

typedef struct lq_page_format {
    uint32_t head_dim; /* multiple of 8 */
    uint32_t n_lanes;  /* the end of the last tier, rounded up to LQ_PAGE_LANES */
    uint32_t n_tiers;
    lq_page_tier tiers[LQ_PAGE_MAX_TIERS];
    uint32_t v_bits;    /* 1..5; users may ask for 2, 3, 4 */
    uint32_t n_groups;  /* groups of value channels */
    bool least_squares; /* key scales are min/max refined by two rounds of least squares; else min/max */
    bool f16_scales;    /* (s, m) are f16 pairs; else 6-bit codes under an f16 pair per super-block */
    uint32_t k_bytes;   /* key codes of one record; the next two likewise */
    uint32_t v_bytes;
    uint32_t scale_bytes;
} lq_page_format;

/* Pointers to the key codes, value codes and scales of one head's record in a block. */
typedef struct lq_page_record {
    uint8_t *k;
    uint8_t *v;
    uint8_t *scales;
} lq_page_record;

/* Fills a format; split, v_bits and head_dim must be valid (head_dim a multiple of 8, at most LQ_PAGE_MAX_HEAD_DIM).
 * Tiers that round to no channel at this head_dim are left out. */
void lq_page_format_init(lq_page_format *format, uint32_t head_dim, const lq_page_split *split, uint32_t v_bits,
                         bool least_squares, bool f16_scales);

/* Channels of value group g. */
static inline uint32_t lq_page_group_len(const lq_page_format *format, uint32_t g) {
    uint32_t left = format->head_dim - g * LQ_PAGE_GROUP;
    return left < LQ_PAGE_GROUP ? left : LQ_PAGE_GROUP;
}

/* The offset in bytes of group g within a record's value codes. */
static inline uint32_t lq_page_group_offset(const lq_page_format *format, uint32_t g) {
    return g * LQ_PAGE_GROUP * LQ_PAGE_TOKENS / 8 * format->v_bits;
}

/* Bytes of the block that holds one page of n_heads KV heads. */
static inline uint64_t lq_page_block_bytes(const lq_page_format *format, uint32_t n_heads) {
    uint64_t record = (uint64_t)format->k_bytes + format->v_bytes + format->scale_bytes;
    return (record * n_heads + 63) & ~63ull;
}

/* The record of one head in a block. */
static inline lq_page_record lq_page_record_at(const lq_page_format *format, const uint8_t *block, uint32_t n_heads,
                                               uint32_t head) {
    uint8_t *base = (uint8_t *)(uintptr_t)block;
    uint8_t *v = base + (size_t)n_heads * format->k_bytes, *scales = v + (size_t)n_heads * format->v_bytes;
    lq_page_record record = {base + (size_t)head * format->k_bytes, v + (size_t)head * format->v_bytes,
                             scales + (size_t)head * format->scale_bytes};
    return record;
}

/* Orders channels by falling range (max - min) over the page's tokens, equal ranges by rising index; with one tier the
 * order is 0, 1, 2... k: [LQ_PAGE_TOKENS][head_dim]. order[i] = the channel at index i of the page order. */
void lq_page_learn_order(const lq_page_format *format, const float *k, uint16_t *order);

/* Encodes keys x: [LQ_PAGE_TOKENS][head_dim] f32 holding f16 values, in the model's channel order. Writes record.k and
 * the keys' scales. */
void lq_page_encode_keys(const lq_page_format *format, const float *x, const uint16_t *order, lq_page_record record);
/* Encodes values, already rotated if the recipe rotates them. Writes record.v and the values' scales. */
void lq_page_encode_values(const lq_page_format *format, const float *x, lq_page_record record);

/* Decodes the scales of keys to base and step, each [head_dim] in page order: x = base + step * code. */
void lq_page_key_scales(const lq_page_format *format, const uint8_t *scales, float *base, float *step);
/* Does the same for the tokens of value group g; base and step: [LQ_PAGE_TOKENS]. */
void lq_page_value_scales(const lq_page_format *format, const uint8_t *scales, uint32_t g, float *base, float *step);

/* Unpack codes to one byte each. Keys: [head_dim][LQ_PAGE_TOKENS], in page order; values: [LQ_PAGE_TOKENS][head_dim].
 */
void lq_page_unpack_keys(const lq_page_format *format, const uint8_t *k, uint8_t *out);
void lq_page_unpack_values(const lq_page_format *format, const uint8_t *v, uint8_t *out);

/* Unpacks one value group: out[token][channel within the group]. */
void lq_page_unpack_group(const lq_page_format *format, const uint8_t *v, uint32_t g, uint8_t *out);

/* Transforms x in place, by an orthonormal Walsh-Hadamard transform (Sylvester order) over blocks of head_dim: one
 * block if it is a power of two, else blocks of 64, then of the powers of two that make up the rest, largest first. It
 * is its own inverse. */
void lq_hadamard(float *x, size_t head_dim);

#endif
