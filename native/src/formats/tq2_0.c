/* tq2_0.c - TQ2_0 in scalar code. */
#include "formats/tq2_0.h"

#include "formats/bytes.h"

void lq_dequantize_tq2_0(float *dst, const void *src, size_t n_values) {
    const lq_block_tq2_0 *block = src;
    for (size_t b = 0; b < n_values / LQ_TQ2_0_LEN; b++, block++, dst += LQ_TQ2_0_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < LQ_TQ2_0_LEN; i++)
            dst[i] = d * (float)((block->qs[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3) - 1);
    }
}
