/* iq4_xs.h - IQ4_XS: 256 weights in 8 groups of 32, (d * (sc - 32)) * value of a four-bit code (4.25 bits a
 * weight). */
#ifndef LQ_FORMATS_IQ4_XS_H
#define LQ_FORMATS_IQ4_XS_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ4_XS_LEN 256

typedef struct lq_block_iq4_xs {
    uint8_t d[2];        /* binary16 */
    uint8_t scales_h[2]; /* bits 2 j, 2 j + 1 of both bytes: the upper two bits of group j's sc */
    uint8_t scales_l[4]; /* nibble j: the lower four bits of group j's sc */
    uint8_t qs[128];     /* 16 bytes for each group, laid out as in IQ4_NL */
} lq_block_iq4_xs;
_Static_assert(sizeof(lq_block_iq4_xs) == 136, "IQ4_XS blocks are packed");

void lq_dequantize_iq4_xs(float *dst, const void *src, size_t n_values);

#endif
