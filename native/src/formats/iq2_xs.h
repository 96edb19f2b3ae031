/* iq2_xs.h - IQ2_XS: 256 weights in 16 groups of 16, vectors of 8 from a codebook of 512 (2.3125 bits a
 * weight). */
#ifndef LQ_FORMATS_IQ2_XS_H
#define LQ_FORMATS_IQ2_XS_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ2_XS_LEN 256

typedef struct lq_block_iq2_xs {
    uint8_t d[2];      /* binary16 */
    uint8_t qs[32][2]; /* of each vector: 9 bits of codebook index, 7 of signs */
    uint8_t scales[8]; /* nibble j: scale of group j */
} lq_block_iq2_xs;
_Static_assert(sizeof(lq_block_iq2_xs) == 74, "IQ2_XS blocks are packed");

void lq_dequantize_iq2_xs(float *dst, const void *src, size_t n_values);

#endif
