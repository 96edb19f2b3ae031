/* cell_q.h - quantized cells (formats/kv_cell.h). q4_0 is plain C for every level; compilers vectorize it. The
 * including file defines q8_0: cell_store_q8() and cell_load_q8(). */
#ifndef LQ_CPU_CELL_Q_H
#define LQ_CPU_CELL_Q_H

#include <math.h>

#include "core/half.h"
#include "formats/kv_cell.h"
#include "formats/q4_0.h"

/* Codes 0..15 of one block of 32 values; returns d's bits. */
static inline uint16_t cell_q4_codes(uint8_t codes[LQ_CELL_BLOCK], const float x[LQ_CELL_BLOCK]) {
    float largest = 0.0f;
    for (int i = 0; i < LQ_CELL_BLOCK; i++) largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
    float e = largest / -8.0f, inverse = e != 0.0f ? 1.0f / e : 0.0f;
    for (int i = 0; i < LQ_CELL_BLOCK; i++) {
        float q = x[i] * inverse + 8.5f;
        q = q >= 0.0f ? q : 0.0f; /* also where q is no number */
        codes[i] = (uint8_t)(int)(q <= 15.0f ? q : 15.0f);
    }
    return lq_float_to_half(e);
}

static inline void cell_store_q4(uint8_t *dst, const float *x, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK, dst += sizeof(lq_block_q4_0)) {
        float block[LQ_CELL_BLOCK] = {0.0f};
        uint8_t codes[LQ_CELL_BLOCK];
        for (size_t i = 0; i < LQ_CELL_BLOCK && at + i < head_dim; i++) block[i] = x[at + i];
        uint16_t d = cell_q4_codes(codes, block);
        dst[0] = (uint8_t)(d & 255u);
        dst[1] = (uint8_t)(d >> 8);
        for (int i = 0; i < LQ_CELL_BLOCK / 2; i++)
            dst[2 + i] = (uint8_t)(codes[i] | codes[i + LQ_CELL_BLOCK / 2] << 4);
    }
}

static inline void cell_load_q4(float *dst, const uint8_t *src, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK, src += sizeof(lq_block_q4_0)) {
        float block[LQ_CELL_BLOCK], d = lq_half_to_float((uint16_t)(src[0] | src[1] << 8));
        for (int i = 0; i < LQ_CELL_BLOCK / 2; i++) {
            block[i] = d * (float)((src[2 + i] & 15) - 8);
            block[i + LQ_CELL_BLOCK / 2] = d * (float)((src[2 + i] >> 4) - 8);
        }
        for (size_t i = 0; i < LQ_CELL_BLOCK && at + i < head_dim; i++) dst[at + i] = block[i];
    }
}

static void cell_store_q8(uint8_t *dst, const float *x, size_t head_dim);
static void cell_load_q8(float *dst, const uint8_t *src, size_t head_dim);

static void cell_store_q(lq_cell_format format, uint8_t *dst, const float *x, size_t head_dim) {
    if (format == LQ_CELL_Q4_0)
        cell_store_q4(dst, x, head_dim);
    else
        cell_store_q8(dst, x, head_dim);
}

static void cell_load_q(lq_cell_format format, float *dst, const uint8_t *src, size_t head_dim) {
    if (format == LQ_CELL_Q4_0)
        cell_load_q4(dst, src, head_dim);
    else
        cell_load_q8(dst, src, head_dim);
}

#endif
