/* q2_k.h - Q2_K: 256 weights in 16 groups of 16, (d * sc) * q - dmin * min, q of 2 bits (2.625 bits a weight). */
#ifndef LQ_FORMATS_Q2_K_H
#define LQ_FORMATS_Q2_K_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q2_K_LEN 256

/* Each half of 128 weights has 32 bytes of qs: its weight 32 k + i lies in bits 2 k, 2 k + 1 of byte i. */
typedef struct lq_block_q2_k {
    uint8_t scales[16]; /* of each group: sc in the low nibble, min in the high one */
    uint8_t qs[64];
    uint8_t d[2];    /* binary16 */
    uint8_t dmin[2]; /* binary16 */
} lq_block_q2_k;
_Static_assert(sizeof(lq_block_q2_k) == 84, "Q2_K blocks are packed");

void lq_dequantize_q2_k(float *dst, const void *src, size_t n_values);

#endif
