/* q5_0.h - Q5_0: 32 weights d * (q - 16), q of 5 bits (5.5 bits a weight). */
#ifndef LQ_FORMATS_Q5_0_H
#define LQ_FORMATS_Q5_0_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q5_0_LEN 32

typedef struct lq_block_q5_0 {
    uint8_t d[2];   /* binary16 */
    uint8_t qh[4];  /* bit i: the fifth bit of weight i */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_q5_0;
_Static_assert(sizeof(lq_block_q5_0) == 22, "Q5_0 blocks are packed");

void lq_dequantize_q5_0(float *dst, const void *src, size_t n_values);

#endif
