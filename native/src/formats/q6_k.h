/* q6_k.h - Q6_K: 256 weights in 16 groups of 16, (d * sc) * (q - 32), q of 6 bits (6.5625 bits a weight). */
#ifndef LQ_FORMATS_Q6_K_H
#define LQ_FORMATS_Q6_K_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q6_K_LEN 256

/* Each half of 128 weights has 64 bytes of ql and 32 of qh. Its weight 32 k + i has the low four bits in byte
 * 32 (k % 2) + i of ql (low nibble for k < 2, else high) and the upper two in bits 2 k, 2 k + 1 of byte i of qh. */
typedef struct lq_block_q6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint8_t d[2]; /* binary16 */
} lq_block_q6_k;
_Static_assert(sizeof(lq_block_q6_k) == 210, "Q6_K blocks are packed");

void lq_dequantize_q6_k(float *dst, const void *src, size_t n_values);

#endif
