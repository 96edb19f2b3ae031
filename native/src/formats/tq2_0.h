/* tq2_0.h - TQ2_0: 256 weights d * (q - 1), q of 2 bits (2.0625 bits a weight). */
#ifndef LQ_FORMATS_TQ2_0_H
#define LQ_FORMATS_TQ2_0_H

#include <stddef.h>
#include <stdint.h>

#define LQ_TQ2_0_LEN 256

typedef struct lq_block_tq2_0 {
    uint8_t qs[64]; /* laid out as in Q2_K */
    uint8_t d[2];   /* binary16 */
} lq_block_tq2_0;
_Static_assert(sizeof(lq_block_tq2_0) == 66, "TQ2_0 blocks are packed");

void lq_dequantize_tq2_0(float *dst, const void *src, size_t n_values);

#endif
