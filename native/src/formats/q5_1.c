/* q5_1.c - Q5_1 in scalar code. */
#include "formats/q5_1.h"

#include "formats/bytes.h"

void lq_dequantize_q5_1(float *dst, const void *src, size_t n_values) {
    const lq_block_q5_1 *block = src;
    for (size_t b = 0; b < n_values / LQ_Q5_1_LEN; b++, block++, dst += LQ_Q5_1_LEN) {
        float d = lq_read_half(block->d), m = lq_read_half(block->m);
        for (int i = 0; i < 32; i++) {
            int low = block->qs[i % 16] >> i / 16 * 4 & 15;
            int high = block->qh[i / 8] >> i % 8 & 1;
            dst[i] = d * (float)(low | high << 4) + m;
        }
    }
}
