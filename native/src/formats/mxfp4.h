/* mxfp4.h - MXFP4: 32 weights 2^(e - 127) * E2M1 number (4.25 bits a weight; OCP Microscaling Formats 1.0). */
#ifndef LQ_FORMATS_MXFP4_H
#define LQ_FORMATS_MXFP4_H

#include <stddef.h>
#include <stdint.h>

#define LQ_MXFP4_LEN 32

typedef struct lq_block_mxfp4 {
    uint8_t e;      /* E8M0 */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_mxfp4;
_Static_assert(sizeof(lq_block_mxfp4) == 17, "MXFP4 blocks are packed");

void lq_dequantize_mxfp4(float *dst, const void *src, size_t n_values);

#endif
