/* iq2_xxs.h - IQ2_XXS: 256 weights in 8 groups of 32, vectors of 8 from a codebook of 256 (2.0625 bits a weight). */
#ifndef LQ_FORMATS_IQ2_XXS_H
#define LQ_FORMATS_IQ2_XXS_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ2_XXS_LEN 256

typedef struct lq_block_iq2_xxs {
    uint8_t d[2];     /* binary16 */
    uint8_t qs[8][8]; /* of each group: four codebook indices, then 32 bits: four times 7 of signs, 4 of the scale */
} lq_block_iq2_xxs;
_Static_assert(sizeof(lq_block_iq2_xxs) == 66, "IQ2_XXS blocks are packed");

void lq_dequantize_iq2_xxs(float *dst, const void *src, size_t n_values);

#endif
