/* cells.cuh - reads and writes cells, one token of one KV head in full precision (formats/kv_cell.h), with the same
 * bits as the CPU. Files that write cells are compiled without contraction (kv_cells.cu, rows.cu). */
#ifndef LQ_CUDA_CELLS_CUH
#define LQ_CUDA_CELLS_CUH

#include "backends/cuda/compat.cuh"

LQ_DEVICE size_t cell_bytes(lq_cell_format format, uint32_t head_dim) {
    size_t n_blocks = (head_dim + LQ_CELL_BLOCK - 1) / LQ_CELL_BLOCK;
    if (format == LQ_CELL_F16) return 2 * (size_t)head_dim;
    return format == LQ_CELL_Q8_0 ? head_dim + 2 * n_blocks : n_blocks * (2 + LQ_CELL_BLOCK / 2);
}

LQ_DEVICE float half_at(const uint8_t *at) { return half_to_float((uint16_t)(at[0] | at[1] << 8)); }

LQ_DEVICE float cell_value(lq_cell_format format, const uint8_t *cell, uint32_t i) {
    if (format == LQ_CELL_F16) return half_to_float(((const uint16_t *)(const void *)cell)[i]);
    uint32_t block = i / LQ_CELL_BLOCK, at = i % LQ_CELL_BLOCK;
    if (format == LQ_CELL_Q8_0) {
        const uint8_t *b = cell + block * (LQ_CELL_BLOCK + 2);
        return half_at(b) * (float)(int8_t)b[2 + at];
    }
    const uint8_t *b = cell + block * (LQ_CELL_BLOCK / 2 + 2);
    return half_at(b) * (float)((b[2 + at % 16] >> at / 16 * 4 & 15) - 8);
}

/* Reads values i to i + 3, i a multiple of 4, zeros beyond head_dim. wide: the cell is f16 and 8-byte aligned. */
LQ_DEVICE void cell_values4(lq_cell_format format, const uint8_t *cell, uint32_t i, uint32_t head_dim, bool wide,
                            float out[4]) {
    if (wide) {
        uint2 bits = *(const uint2 *)(const void *)(cell + 2 * (size_t)i);
        out[0] = half_to_float((uint16_t)(bits.x & 0xffffu));
        out[1] = half_to_float((uint16_t)(bits.x >> 16));
        out[2] = half_to_float((uint16_t)(bits.y & 0xffffu));
        out[3] = half_to_float((uint16_t)(bits.y >> 16));
        return;
    }
    for (uint32_t k = 0; k < 4; k++) out[k] = i + k < head_dim ? cell_value(format, cell, i + k) : 0.0f;
}

/* Writes block b of a cell from its n values x, by one thread. */
LQ_DEVICE void cell_store_block(lq_cell_format format, uint8_t *cell, uint32_t b, const float *x, uint32_t n) {
    float largest = 0.0f;
    if (format == LQ_CELL_F16) {
        for (uint32_t i = 0; i < n; i++) ((uint16_t *)(void *)cell)[b * LQ_CELL_BLOCK + i] = float_to_half(x[i]);
    } else if (format == LQ_CELL_Q8_0) {
        uint8_t *dst = cell + b * (LQ_CELL_BLOCK + 2);
        for (uint32_t i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        uint16_t half = float_to_half(largest / 127.0f);
        float d = half_to_float(half);
        dst[0] = (uint8_t)(half & 255u);
        dst[1] = (uint8_t)(half >> 8);
        for (uint32_t i = 0; i < n; i++) {
            float q = d > 0.0f ? x[i] / d : 0.0f;
            q = q >= -127.0f ? q : -127.0f; /* also for a NaN */
            q = q <= 127.0f ? q : 127.0f;
            dst[2 + i] = (uint8_t)(int8_t)rintf(q);
        }
    } else {
        uint8_t *dst = cell + b * (LQ_CELL_BLOCK / 2 + 2);
        for (uint32_t i = 0; i < n; i++) largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
        float e = largest / -8.0f, inverse = e != 0.0f ? 1.0f / e : 0.0f;
        uint16_t half = float_to_half(e);
        dst[0] = (uint8_t)(half & 255u);
        dst[1] = (uint8_t)(half >> 8);
        for (uint32_t i = 0; i < LQ_CELL_BLOCK / 2; i++) {
            uint32_t codes = 0;
            for (uint32_t k = 0; k < 2; k++) {
                uint32_t at = i + k * (LQ_CELL_BLOCK / 2);
                float q = __fadd_rn(__fmul_rn(at < n ? x[at] : 0.0f, inverse), 8.5f);
                q = q >= 0.0f ? q : 0.0f;
                codes |= (uint32_t)(int)(q <= 15.0f ? q : 15.0f) << 4 * k;
            }
            dst[2 + i] = (uint8_t)codes;
        }
    }
}

#endif
