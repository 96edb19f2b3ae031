/* bf16.h - BF16: the upper half of a float (16 bits a weight). */
#ifndef LQ_FORMATS_BF16_H
#define LQ_FORMATS_BF16_H

#include <stddef.h>
#include <stdint.h>

#define LQ_BF16_LEN 1

typedef struct lq_block_bf16 {
    uint8_t value[2];
} lq_block_bf16;
_Static_assert(sizeof(lq_block_bf16) == 2, "BF16 blocks are packed");

void lq_dequantize_bf16(float *dst, const void *src, size_t n_values);

#endif
