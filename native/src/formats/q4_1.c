/* q4_1.c - Q4_1 in scalar code. */
#include "formats/q4_1.h"

#include "formats/bytes.h"

void lq_dequantize_q4_1(float *dst, const void *src, size_t n_values) {
    const lq_block_q4_1 *block = src;
    for (size_t b = 0; b < n_values / LQ_Q4_1_LEN; b++, block++, dst += LQ_Q4_1_LEN) {
        float d = lq_read_half(block->d);
        float m = lq_read_half(block->m);
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)(block->qs[i] & 15) + m;
            dst[i + 16] = d * (float)(block->qs[i] >> 4) + m;
        }
    }
}
