/* iq1_m.h - IQ1_M: 256 weights in 16 groups of 16, vectors of 8 from a codebook of 2048 (1.75 bits a weight). */
#ifndef LQ_FORMATS_IQ1_M_H
#define LQ_FORMATS_IQ1_M_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ1_M_LEN 256

typedef struct lq_block_iq1_m {
    uint8_t qs[32];       /* lower 8 bits of each vector's codebook index */
    uint8_t qh[16];       /* nibble i: the upper 3 bits of index i, and the sign of delta */
    uint8_t scales[4][2]; /* four times 3 bits of scale; the four top nibbles make d, a binary16, lowest first */
} lq_block_iq1_m;
_Static_assert(sizeof(lq_block_iq1_m) == 56, "IQ1_M blocks are packed");

void lq_dequantize_iq1_m(float *dst, const void *src, size_t n_values);

#endif
