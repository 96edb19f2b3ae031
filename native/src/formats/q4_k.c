/* q4_k.c - Q4_K in scalar code. */
#include "formats/q4_k.h"

#include "formats/bytes.h"

void lq_dequantize_q4_k(float *dst, const void *src, size_t n_values) {
    const lq_block_q4_k *block = src;
    for (size_t b = 0; b < n_values / LQ_Q4_K_LEN; b++, block++, dst += LQ_Q4_K_LEN) {
        float d = lq_read_half(block->d);
        float dmin = lq_read_half(block->dmin);
        uint8_t sc[8], min[8];
        lq_q4_k_scales(block->scales, sc, min);
        for (int j = 0; j < 8; j++) {
            const uint8_t *qs = block->qs + j / 2 * 32;
            float scale = d * (float)sc[j];
            float offset = dmin * (float)min[j];
            for (int i = 0; i < 32; i++) dst[32 * j + i] = scale * (float)(qs[i] >> j % 2 * 4 & 15) - offset;
        }
    }
}
