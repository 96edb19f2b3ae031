/* q4_0.c - Q4_0 in scalar code. */
#include "formats/q4_0.h"

#include "formats/bytes.h"

void lq_dequantize_q4_0(float *dst, const void *src, size_t n_values) {
    const lq_block_q4_0 *block = src;
    for (size_t b = 0; b < n_values / LQ_Q4_0_LEN; b++, block++, dst += LQ_Q4_0_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)((block->qs[i] & 15) - 8);
            dst[i + 16] = d * (float)((block->qs[i] >> 4) - 8);
        }
    }
}
