/* iq4_nl.h - IQ4_NL: 32 weights d * value of a four-bit code (4.5 bits a weight). */
#ifndef LQ_FORMATS_IQ4_NL_H
#define LQ_FORMATS_IQ4_NL_H

#include <stddef.h>
#include <stdint.h>

#define LQ_IQ4_NL_LEN 32

typedef struct lq_block_iq4_nl {
    uint8_t d[2];   /* binary16 */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_iq4_nl;
_Static_assert(sizeof(lq_block_iq4_nl) == 18, "IQ4_NL blocks are packed");

void lq_dequantize_iq4_nl(float *dst, const void *src, size_t n_values);

#endif
