/* q4_0.h - Q4_0: 32 weights d * (q - 8), q of 4 bits (4.5 bits a weight). */
#ifndef LQ_FORMATS_Q4_0_H
#define LQ_FORMATS_Q4_0_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q4_0_LEN 32

typedef struct lq_block_q4_0 {
    uint8_t d[2];   /* binary16 */
    uint8_t qs[16]; /* low nibbles: weights 0..15, high nibbles: 16..31 */
} lq_block_q4_0;
_Static_assert(sizeof(lq_block_q4_0) == 18, "Q4_0 blocks are packed");

void lq_dequantize_q4_0(float *dst, const void *src, size_t n_values);

#endif
