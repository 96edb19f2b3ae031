/* q2_k.c - Q2_K in scalar code. */
#include "formats/q2_k.h"

#include "formats/bytes.h"

void lq_dequantize_q2_k(float *dst, const void *src, size_t n_values) {
    const lq_block_q2_k *block = src;
    for (size_t b = 0; b < n_values / LQ_Q2_K_LEN; b++, block++, dst += LQ_Q2_K_LEN) {
        float d = lq_read_half(block->d), dmin = lq_read_half(block->dmin);
        for (int i = 0; i < LQ_Q2_K_LEN; i++) {
            uint8_t scale = block->scales[i / 16];
            int q = block->qs[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
            dst[i] = d * (float)(scale & 15) * (float)q - dmin * (float)(scale >> 4);
        }
    }
}
