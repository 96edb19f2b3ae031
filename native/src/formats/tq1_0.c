/* tq1_0.c - TQ1_0 in scalar code. */
#include "formats/tq1_0.h"

#include "formats/bytes.h"

/* A byte is a fraction of 256 in base three; returns its n-th digit less one. */
static int trit(uint8_t byte, int n) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    return ((uint8_t)(byte * powers[n]) * 3 >> 8) - 1;
}

void lq_dequantize_tq1_0(float *dst, const void *src, size_t n_values) {
    const lq_block_tq1_0 *block = src;
    for (size_t b = 0; b < n_values / LQ_TQ1_0_LEN; b++, block++, dst += LQ_TQ1_0_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 160; i++) dst[i] = d * (float)trit(block->qs[i % 32], i / 32);
        for (int i = 0; i < 80; i++) dst[160 + i] = d * (float)trit(block->qs[32 + i % 16], i / 16);
        for (int i = 0; i < 16; i++) dst[240 + i] = d * (float)trit(block->qh[i % 4], i / 4);
    }
}
