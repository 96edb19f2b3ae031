/* iq2_s.h - IQ2_S: 256 weights in 16 groups of 16, vectors of 8 from a codebook of 1024 (2.5625 bits a weight). */
#ifndef LQ_FORMATS_IQ2_S_H
#define LQ_FORMATS_IQ2_S_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ2_S_LEN 256

typedef struct lq_block_iq2_s {
    uint8_t d[2];      /* binary16 */
    uint8_t qs[32];    /* lower 8 bits of each vector's codebook index */
    uint8_t signs[32]; /* byte i: the signs of vector i's weights */
    uint8_t qh[8];     /* bits 2 i, 2 i + 1 of all bytes: the upper two of index i */
    uint8_t scales[8]; /* nibble j: scale of group j */
} lq_block_iq2_s;
_Static_assert(sizeof(lq_block_iq2_s) == 82, "IQ2_S blocks are packed");

void lq_dequantize_iq2_s(float *dst, const void *src, size_t n_values);

#endif
