/* f16.h - F16: plain half floats (16 bits a weight). */
#ifndef LQ_FORMATS_F16_H
#define LQ_FORMATS_F16_H

#include <stddef.h>
#include <stdint.h>

typedef struct lq_block_f16 {
    uint8_t value[2]; /* binary16 */
} lq_block_f16;
_Static_assert(sizeof(lq_block_f16) == 2, "F16 values are packed");

void lq_dequantize_f16(float *dst, const void *src, size_t n_values);

#endif
