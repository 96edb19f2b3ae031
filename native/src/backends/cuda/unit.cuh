/* unit.cuh - 32 consecutive weights of a row, whatever the format, as small integers with a scale and an offset for
 * each half of 16. Every quantized GGUF type decodes to this form, and products with 8-bit activations need nothing
 * else, so a new type is one decoder. */
#ifndef LQ_CUDA_UNIT_CUH
#define LQ_CUDA_UNIT_CUH

#include "backends/cuda/compat.cuh"

#define UNIT_LEN 32

/* Weight i is d[i / 16] q_i + m[i / 16], with q_i byte i % 4 of q[i / 4], within -127..127. */
typedef struct unit {
    int q[8];
    float d[2];
    float m[2];
} unit;

/* Codebooks of the IQ types, in device memory (formats/iq_grids.h). */
typedef struct unit_grids {
    const uint16_t *iq2_xxs, *iq2_xs, *iq2_s, *iq3_xxs, *iq3_s, *iq1;
} unit_grids;

/* ---- reading blocks: read_u32_of_N needs an address that is a multiple of N. Rows are aligned, so blocks of even size
 * have even addresses */

LQ_DEVICE float read_half(const uint8_t *at) { return half_to_float(*(const uint16_t *)(const void *)at); }
LQ_DEVICE uint32_t read_u16(const uint8_t *at) { return *(const uint16_t *)(const void *)at; }
LQ_DEVICE uint32_t read_u32_of_2(const uint8_t *at) { return read_u16(at) | read_u16(at + 2) << 16; }
LQ_DEVICE uint32_t read_u32_of_4(const uint8_t *at) { return *(const uint32_t *)(const void *)at; }
LQ_DEVICE uint32_t read_u32_of_1(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* ---- four codes in a word */

/* Subtracts half from each byte, which holds a code of up to 6 bits; no borrow crosses a byte. */
LQ_DEVICE int centred(uint32_t codes, int half) {
    return (int)((codes + 0x01010101u * (uint32_t)(128 - half)) ^ 0x80808080u);
}

/* Moves each of the low four bits to the lowest bit of its own byte. */
LQ_DEVICE uint32_t spread4(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

LQ_DEVICE void set_scale(unit *u, float d, float m) {
    u->d[0] = u->d[1] = d;
    u->m[0] = u->m[1] = m;
}

#endif
