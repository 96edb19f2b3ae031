/* q5_1.h - Q5_1: 32 weights d * q + m, q of 5 bits (6 bits a weight). */
#ifndef LQ_FORMATS_Q5_1_H
#define LQ_FORMATS_Q5_1_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q5_1_LEN 32

typedef struct lq_block_q5_1 {
    uint8_t d[2];   /* binary16 */
    uint8_t m[2];   /* binary16 */
    uint8_t qh[4];  /* bit i: the fifth bit of weight i */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_q5_1;
_Static_assert(sizeof(lq_block_q5_1) == 24, "Q5_1 blocks are packed");

void lq_dequantize_q5_1(float *dst, const void *src, size_t n_values);

#endif
