/* q5_k.h - Q5_K: 256 weights in 8 groups of 32, (d * sc) * q - dmin * min, q of 5 bits (5.5 bits a weight). */
#ifndef LQ_FORMATS_Q5_K_H
#define LQ_FORMATS_Q5_K_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q5_K_LEN 256

typedef struct lq_block_q5_k {
    uint8_t d[2];       /* binary16 */
    uint8_t dmin[2];    /* binary16 */
    uint8_t scales[12]; /* as in Q4_K */
    uint8_t qh[32];     /* bit j of byte i: the fifth bit of weight i of group j */
    uint8_t qs[128];    /* per pair of groups 32 bytes: low nibbles the even group, high nibbles the odd one */
} lq_block_q5_k;
_Static_assert(sizeof(lq_block_q5_k) == 176, "Q5_K blocks are packed");

void lq_dequantize_q5_k(float *dst, const void *src, size_t n_values);

#endif
