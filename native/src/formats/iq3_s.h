/* iq3_s.h - IQ3_S: 256 weights in 8 groups of 32, vectors of 4 from a codebook of 512 (3.4375 bits a weight). */
#ifndef LQ_FORMATS_IQ3_S_H
#define LQ_FORMATS_IQ3_S_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ3_S_LEN 256

typedef struct lq_block_iq3_s {
    uint8_t d[2];      /* binary16 */
    uint8_t qs[64];    /* lower 8 bits of each vector's codebook index */
    uint8_t qh[8];     /* bit i of all bytes: the ninth of index i */
    uint8_t signs[32]; /* bit i of all bytes: weight i is negative */
    uint8_t scales[4]; /* nibble j: scale of group j */
} lq_block_iq3_s;
_Static_assert(sizeof(lq_block_iq3_s) == 110, "IQ3_S blocks are packed");

void lq_dequantize_iq3_s(float *dst, const void *src, size_t n_values);

#endif
