/* tq1_0.h - TQ1_0: 256 weights d * (-1, 0 or 1), five to a byte (1.6875 bits a weight). */
#ifndef LQ_FORMATS_TQ1_0_H
#define LQ_FORMATS_TQ1_0_H

#include <stddef.h>
#include <stdint.h>

#define LQ_TQ1_0_LEN 256

typedef struct lq_block_tq1_0 {
    uint8_t qs[48]; /* 32 bytes with weights 0..159, 16 with 160..239 */
    uint8_t qh[4];  /* four to a byte: 240..255 */
    uint8_t d[2];   /* binary16 */
} lq_block_tq1_0;
_Static_assert(sizeof(lq_block_tq1_0) == 54, "TQ1_0 blocks are packed");

void lq_dequantize_tq1_0(float *dst, const void *src, size_t n_values);

#endif
