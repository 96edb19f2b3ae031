/* bf16.c - BF16 in scalar code. */
#include "formats/bf16.h"

#include <string.h>

void lq_dequantize_bf16(float *dst, const void *src, size_t n_values) {
    const lq_block_bf16 *block = src;
    for (size_t b = 0; b < n_values / LQ_BF16_LEN; b++, block++, dst += LQ_BF16_LEN) {
        uint32_t bits = (uint32_t)(block->value[0] | block->value[1] << 8) << 16;
        memcpy(dst, &bits, sizeof bits);
    }
}
