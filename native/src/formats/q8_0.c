/* q8_0.c - Q8_0 in scalar code. */
#include "formats/q8_0.h"

#include "formats/bytes.h"

void lq_dequantize_q8_0(float *dst, const void *src, size_t n_values) {
    const lq_block_q8_0 *block = src;
    for (size_t b = 0; b < n_values / LQ_Q8_0_LEN; b++, block++, dst += LQ_Q8_0_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) dst[i] = (float)block->qs[i] * d;
    }
}
