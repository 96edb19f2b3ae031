/* q3_k.h - Q3_K: 256 weights in 16 groups of 16, (d * (sc - 32)) * (q - 4), q of 3 bits (3.4375 bits a weight). */
#ifndef LQ_FORMATS_Q3_K_H
#define LQ_FORMATS_Q3_K_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q3_K_LEN 256

typedef struct lq_block_q3_k {
    uint8_t hmask[32]; /* bit j of byte i: the upper bit of weight 32 j + i */
    uint8_t qs[64];    /* the lower two bits, laid out as in Q2_K */
    uint8_t scales[12];
    uint8_t d[2]; /* binary16 */
} lq_block_q3_k;
_Static_assert(sizeof(lq_block_q3_k) == 110, "Q3_K blocks are packed");

void lq_dequantize_q3_k(float *dst, const void *src, size_t n_values);

#endif
