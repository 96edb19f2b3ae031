/* iq3_xxs.h - IQ3_XXS: 256 weights in 8 groups of 32, vectors of 4 from a codebook of 256 (3.0625 bits a weight). */
#ifndef LQ_FORMATS_IQ3_XXS_H
#define LQ_FORMATS_IQ3_XXS_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ3_XXS_LEN 256

typedef struct lq_block_iq3_xxs {
    uint8_t d[2];       /* binary16 */
    uint8_t qs[64];     /* codebook index of each vector */
    uint8_t rest[8][4]; /* 32 bits of each group: four times 7 of signs, and 4 of the scale */
} lq_block_iq3_xxs;
_Static_assert(sizeof(lq_block_iq3_xxs) == 98, "IQ3_XXS blocks are packed");

void lq_dequantize_iq3_xxs(float *dst, const void *src, size_t n_values);

#endif
