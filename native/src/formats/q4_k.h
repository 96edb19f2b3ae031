/* q4_k.h - Q4_K: 256 weights in 8 groups of 32, (d * sc) * q - dmin * min (4.5 bits a weight). */
#ifndef LQ_FORMATS_Q4_K_H
#define LQ_FORMATS_Q4_K_H

#include <stddef.h>
#include <stdint.h>

#define LQ_Q4_K_LEN 256

typedef struct lq_block_q4_k {
    uint8_t d[2];       /* binary16 */
    uint8_t dmin[2];    /* binary16 */
    uint8_t scales[12]; /* sc and min of the groups, 6 bits each: lq_q4_k_scales() */
    uint8_t qs[128];    /* per pair of groups 32 bytes: low nibbles the even group, high nibbles the odd one */
} lq_block_q4_k;

/* Unpacks sc and min. For groups 0..3, sc is the low six bits of bytes 0..3 and min those of bytes 4..7; for groups
 * 4..7, the low four bits are the nibbles of bytes 8..11 (sc low, min high), the upper two on top of bytes 0..3 and
 * 4..7. */
static inline void lq_q4_k_scales(const uint8_t scales[12], uint8_t sc[8], uint8_t min[8]) {
    for (int j = 0; j < 4; j++) {
        sc[j] = scales[j] & 63;
        min[j] = scales[j + 4] & 63;
        sc[j + 4] = (uint8_t)((scales[j + 8] & 15) | (scales[j] >> 6 << 4));
        min[j + 4] = (uint8_t)((scales[j + 8] >> 4) | (scales[j + 4] >> 6 << 4));
    }
}
_Static_assert(sizeof(lq_block_q4_k) == 144, "Q4_K blocks are packed");

void lq_dequantize_q4_k(float *dst, const void *src, size_t n_values);

#endif
