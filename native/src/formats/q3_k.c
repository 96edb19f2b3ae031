/* q3_k.c - Q3_K in scalar code. */
#include "formats/q3_k.h"

#include "formats/bytes.h"

/* Reads the six-bit scale of group j, less 32: its low four bits are a nibble of byte j % 8, the low one for groups
 * 0..7, the high one for 8..15; its upper two are bits 2 (j / 4) and the next of byte 8 + j % 4. */
static int group_scale(const uint8_t scales[12], int j) {
    int low = scales[j % 8] >> j / 8 * 4 & 15;
    int high = scales[8 + j % 4] >> j / 4 * 2 & 3;
    return (low | high << 4) - 32;
}

void lq_dequantize_q3_k(float *dst, const void *src, size_t n_values) {
    const lq_block_q3_k *block = src;
    for (size_t b = 0; b < n_values / LQ_Q3_K_LEN; b++, block++, dst += LQ_Q3_K_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < LQ_Q3_K_LEN; i++) {
            int low = block->qs[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
            int high = block->hmask[i % 32] >> i / 32 & 1;
            dst[i] = d * (float)group_scale(block->scales, i / 16) * (float)((low | high << 2) - 4);
        }
    }
}
