/* q4_1.h - Q4_1: 32 weights d * q + m, q of 4 bits (5 bits a weight). */
#ifndef LQ_FORMATS_Q4_1_H
#define LQ_FORMATS_Q4_1_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q4_1_LEN 32

typedef struct lq_block_q4_1 {
    uint8_t d[2];   /* binary16 */
    uint8_t m[2];   /* binary16, the smallest weight */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_q4_1;
_Static_assert(sizeof(lq_block_q4_1) == 20, "Q4_1 blocks are packed");

void lq_dequantize_q4_1(float *dst, const void *src, size_t n_values);

#endif
