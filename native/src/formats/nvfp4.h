/* nvfp4.h - NVFP4: 64 weights in 4 groups of 16, E4M3 scale * E2M1 number (4.5 bits a weight). */
#ifndef LQ_FORMATS_NVFP4_H
#define LQ_FORMATS_NVFP4_H

#include <stddef.h>
#include <stdint.h>

#define LQ_NVFP4_LEN 64

typedef struct lq_block_nvfp4 {
    uint8_t scales[4]; /* of each group: E4M3 without a sign */
    uint8_t qs[32];    /* 8 bytes a group: low nibbles weights 0..7, high nibbles 8..15 */
} lq_block_nvfp4;
_Static_assert(sizeof(lq_block_nvfp4) == 36, "NVFP4 blocks are packed");

void lq_dequantize_nvfp4(float *dst, const void *src, size_t n_values);

#endif
