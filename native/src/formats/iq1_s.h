/* iq1_s.h - IQ1_S: 256 weights in 8 groups of 32, vectors of 8 from a codebook of 2048 (1.5625 bits a weight). */
#ifndef LQ_FORMATS_IQ1_S_H
#define LQ_FORMATS_IQ1_S_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ1_S_LEN 256

typedef struct lq_block_iq1_s {
    uint8_t d[2];     /* binary16 */
    uint8_t qs[32];   /* lower 8 bits of each vector's codebook index */
    uint8_t qh[8][2]; /* of each group: four times the upper 3 index bits, 3 bits of scale, the sign of delta */
} lq_block_iq1_s;
_Static_assert(sizeof(lq_block_iq1_s) == 50, "IQ1_S blocks are packed");

void lq_dequantize_iq1_s(float *dst, const void *src, size_t n_values);

#endif
