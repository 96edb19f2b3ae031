/* q6_k.c - Q6_K in scalar code. */
#include "formats/q6_k.h"

#include "formats/bytes.h"

void lq_dequantize_q6_k(float *dst, const void *src, size_t n_values) {
    const lq_block_q6_k *block = src;
    for (size_t b = 0; b < n_values / LQ_Q6_K_LEN; b++, block++, dst += LQ_Q6_K_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < LQ_Q6_K_LEN; i++) {
            int half = i / 128, k = i / 32 % 4;
            int low = block->ql[64 * half + i % 64] >> k / 2 * 4 & 15;
            int high = block->qh[32 * half + i % 32] >> 2 * k & 3;
            dst[i] = d * (float)block->scales[i / 16] * (float)((low | high << 4) - 32);
        }
    }
}
