/* test_formats.c - tests the table of formats, block sizes, and decoding against a second decoder that reads the
 * layouts bit by bit. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "core/half.h"
#include "formats/formats.h"

static unsigned long long seed = 2;

/* ---- a second decoder: a block as a string of bits, every field fetched by bit position */

static unsigned bits(const uint8_t *block, size_t first, size_t n) {
    unsigned value = 0;
    for (size_t i = 0; i < n; i++) value |= (unsigned)(block[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    return value;
}

/* Decodes a binary16 by its definition, exactly, in double. */
static double half_at(const uint8_t *block, size_t byte) {
    unsigned mantissa = bits(block, 8 * byte, 10), exponent = bits(block, 8 * byte + 10, 5);
    double sign = bits(block, 8 * byte + 15, 1) ? -1.0 : 1.0;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24));
}

static int signed_byte(const uint8_t *block, size_t byte) {
    return (int)bits(block, 8 * byte, 8) - 256 * (int)bits(block, 8 * byte + 7, 1);
}

/* Scale (0) or minimum (1) of group j of a Q4_K or Q5_K block, whose 12 scale bytes start at byte 4. */
static unsigned k_scale(const uint8_t *block, size_t j, size_t which) {
    size_t base = 8 * (4 + 4 * which);
    if (j < 4) return bits(block, base + 8 * j, 6);
    return bits(block, 8 * (12 + j - 4) + 4 * which, 4) | bits(block, base + 8 * (j - 4) + 6, 2) << 4;
}

/* Whether weight() below knows a type; for others only what holds for all formats is tested. */
static bool has_second_decoder(int32_t type) {
    return type == LQ_TYPE_F16 || type == LQ_TYPE_Q4_0 || type == LQ_TYPE_Q4_1 || type == LQ_TYPE_Q5_0 ||
           type == LQ_TYPE_Q8_0 || type == LQ_TYPE_Q4_K || type == LQ_TYPE_Q5_K || type == LQ_TYPE_Q6_K;
}

/* Weight i of a block as the real number that the format defines. */
static double weight(int32_t type, const uint8_t *b, size_t i) {
    size_t nibble = 8 * (i % 16) + 4 * (i / 16);                   /* within qs of a block of 32 */
    size_t k_nibble = 8 * (i / 64 * 32 + i % 32) + i / 32 % 2 * 4; /* within qs of a K block */
    size_t j = i / 32;
    switch (type) {
    case LQ_TYPE_F16:
        return half_at(b, 0);
    case LQ_TYPE_Q4_0:
        return half_at(b, 0) * ((int)bits(b, 16 + nibble, 4) - 8);
    case LQ_TYPE_Q4_1:
        return half_at(b, 0) * bits(b, 32 + nibble, 4) + half_at(b, 2);
    case LQ_TYPE_Q5_0:
        return half_at(b, 0) * ((int)(bits(b, 48 + nibble, 4) | bits(b, 16 + i, 1) << 4) - 16);
    case LQ_TYPE_Q8_0:
        return half_at(b, 0) * signed_byte(b, 2 + i);
    case LQ_TYPE_Q4_K:
        return half_at(b, 0) * k_scale(b, j, 0) * bits(b, 8 * 16 + k_nibble, 4) - half_at(b, 2) * k_scale(b, j, 1);
    case LQ_TYPE_Q5_K:
        return half_at(b, 0) * k_scale(b, j, 0) *
                   (bits(b, 8 * 48 + k_nibble, 4) | bits(b, 8 * (16 + i % 32) + j, 1) << 4) -
               half_at(b, 2) * k_scale(b, j, 1);
    case LQ_TYPE_Q6_K: {
        size_t h = i / 128, k = j % 4;
        unsigned low = bits(b, 8 * (64 * h + 32 * (k % 2) + i % 32) + 4 * (k / 2), 4);
        unsigned high = bits(b, 8 * (128 + 32 * h + i % 32) + 2 * k, 2);
        return half_at(b, 208) * signed_byte(b, 192 + i / 16) * ((int)(low | high << 4) - 32);
    }
    default:
        return NAN;
    }
}

/* The largest error that rounding to float may leave: 2^-23 of the larger term of a difference. */
static double bound(int32_t type, const uint8_t *b, size_t i, double value) {
    double offset = 0.0;
    if (type == LQ_TYPE_Q4_1) offset = half_at(b, 2);
    if (type == LQ_TYPE_Q4_K || type == LQ_TYPE_Q5_K) offset = half_at(b, 2) * k_scale(b, i / 32, 1);
    return 0x1p-22 * (fabs(value) + fabs(offset)) + 0x1p-149;
}

static void test_decoding(int32_t type) {
    const lq_format *format = lq_format_find(type);
    enum { N_BLOCKS = 300 };
    size_t n_values = N_BLOCKS * format->block_len, n_bytes = N_BLOCKS * format->block_bytes;
    for (size_t shift = 0; shift < 4; shift++) {
        /* ends with the allocation, starts at any address; one value in front and one behind stay as they are */
        uint8_t *memory = malloc(n_bytes + shift), *src = memory + shift;
        float *dst = malloc((n_values + 2) * sizeof(float));
        if (memory == NULL || dst == NULL) exit(2);
        for (size_t i = 0; i < n_bytes; i++) src[i] = (uint8_t)check_random(&seed);
        dst[0] = dst[n_values + 1] = 12345.0f;
        CHECK_STATUS(lq_dequantize(type, src, n_bytes, dst + 1, n_values), LQ_OK);
        for (size_t i = 0; has_second_decoder(type) && i < n_values; i++) {
            const uint8_t *block = src + i / format->block_len * format->block_bytes;
            double want = weight(type, block, i % format->block_len), got = dst[1 + i];
            bool same = isnan(want)   ? isnan(got)
                        : isinf(want) ? got == want
                                      : fabs(got - want) <= bound(type, block, i % format->block_len, want);
            CHECK_MSG(same, "%s: weight %zu is %.9g, decoded %.9g", format->name, i, want, got);
        }
        CHECK(dst[0] == 12345.0f && dst[n_values + 1] == 12345.0f);
        free(dst);
        free(memory);
    }
}

static void test_f32(void) {
    uint32_t patterns[5] = {0x7fc01234, 0x00000001, 0x80000000, 0xff800000, 0x3f800000};
    uint8_t src[21];
    float dst[5];
    memcpy(src + 1, patterns, sizeof patterns);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_F32, src + 1, 20, dst, 5), LQ_OK);
    CHECK(memcmp(dst, patterns, sizeof patterns) == 0);
}

/* Decodes a block written by hand, by the formats' descriptions, without the second decoder. */
static void test_known_block(void) {
    uint8_t block[20] = {0x00, 0x38, 0x00, 0xbc}; /* Q4_1: d = 0.5, m = -1 */
    float values[32];
    for (int i = 0; i < 16; i++) block[4 + i] = (uint8_t)(i | (15 - i) << 4);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_1, block, 20, values, 32), LQ_OK);
    for (int i = 0; i < 16; i++) {
        CHECK(values[i] == 0.5f * (float)i - 1.0f);
        CHECK(values[16 + i] == 0.5f * (float)(15 - i) - 1.0f);
    }
}

static void test_halves(void) {
    for (unsigned h = 0; h < 65536; h++) {
        uint8_t bytes[2] = {(uint8_t)h, (uint8_t)(h >> 8)};
        double want = half_at(bytes, 0);
        float got = lq_half_to_float((uint16_t)h);
        CHECK(isnan(want) ? isnan(got) : (double)got == want && !signbit(want) == !signbit(got));
        if (!isnan(want)) CHECK(lq_float_to_half(got) == h);
    }
}

static void test_table(void) {
    static const struct {
        int32_t type;
        const char *name;
        uint32_t block_len, block_bytes;
    } want[] = {{0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},
                {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},    {8, "Q8_0", 32, 34},
                {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}};
    size_t n_found = 0;
    for (int32_t type = -3; type < LQ_TYPE_COUNT + 3; type++) {
        const lq_format *format = lq_format_find(type);
        if (format == NULL) continue;
        n_found++;
        CHECK(format->type == type && format->dequantize != NULL && format->block_len > 0 && format->block_bytes > 0);
        CHECK(lq_format_row_bytes(format, 7 * format->block_len) == 7 * format->block_bytes);
        CHECK(lq_format_row_bytes(format, 0) == 0);
        if (format->block_len > 1) CHECK(lq_format_row_bytes(format, format->block_len + 1) == 0);
    }
    CHECK(n_found >= sizeof(want) / sizeof(want[0]));
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        const lq_format *format = lq_format_find(want[i].type);
        CHECK(format != NULL && strcmp(format->name, want[i].name) == 0 && format->block_len == want[i].block_len &&
              format->block_bytes == want[i].block_bytes);
    }
    CHECK(lq_format_find(INT32_MIN) == NULL && lq_format_find(INT32_MAX) == NULL && lq_format_find(4) == NULL);
}

static void test_refusals(void) {
    uint8_t src[64] = {0};
    float dst[64] = {7.0f};
    CHECK_STATUS(lq_dequantize(99, src, 18, dst, 32), LQ_E_UNSUPPORTED);
    CHECK_STATUS(lq_dequantize(-1, src, 18, dst, 32), LQ_E_UNSUPPORTED);
    CHECK(strstr(lq_error_message(), "-1") != NULL);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 17, dst, 32), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 19, dst, 32), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 36, dst, 32), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 0, dst, 32), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 18, dst, 31), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 18, dst, UINT64_MAX - 31), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_F16, src, (uint64_t)1 << 63, dst, (uint64_t)1 << 62),
                 LQ_E_ARG);                                                             /* 4 n is 2^64 */
    CHECK_STATUS(lq_dequantize(LQ_TYPE_F32, src, 0, dst, (uint64_t)1 << 62), LQ_E_ARG); /* 4 n wraps to 0 */
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, NULL, 18, dst, 32), LQ_E_ARG);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, src, 18, NULL, 32), LQ_E_ARG);
    CHECK(dst[0] == 7.0f);
    CHECK_STATUS(lq_dequantize(LQ_TYPE_Q4_0, NULL, 0, NULL, 0), LQ_OK);
}

int main(void) {
    test_table();
    test_refusals();
    test_halves();
    test_known_block();
    test_f32();
    for (int32_t type = LQ_TYPE_F16; type < LQ_TYPE_COUNT; type++)
        if (lq_format_find(type) != NULL) test_decoding(type);
    return check_report("test_formats");
}
