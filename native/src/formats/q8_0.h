/* q8_0.h - Q8_0: 32 weights d * q, q of 8 bits (8.5 bits a weight). */
#ifndef LQ_FORMATS_Q8_0_H
#define LQ_FORMATS_Q8_0_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q8_0_LEN 32

typedef struct lq_block_q8_0 {
    uint8_t d[2];  /* binary16 */
    int8_t qs[32]; /* -128..127 */
} lq_block_q8_0;
_Static_assert(sizeof(lq_block_q8_0) == 34, "Q8_0 blocks are packed");

void lq_dequantize_q8_0(float *dst, const void *src, size_t n_values);

#endif
