/* q5_0.c - Q5_0 in scalar code. */
#include "formats/q5_0.h"

#include "formats/bytes.h"

void lq_dequantize_q5_0(float *dst, const void *src, size_t n_values) {
    const lq_block_q5_0 *block = src;
    for (size_t b = 0; b < n_values / LQ_Q5_0_LEN; b++, block++, dst += LQ_Q5_0_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) {
            int low = i < 16 ? block->qs[i] & 15 : block->qs[i - 16] >> 4;
            int high = block->qh[i / 8] >> i % 8 & 1;
            dst[i] = d * (float)((low | high << 4) - 16);
        }
    }
}
