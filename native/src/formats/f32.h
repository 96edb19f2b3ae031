/* f32.h - F32: plain 32-bit floats (32 bits a weight). */
#ifndef LQ_FORMATS_F32_H
#define LQ_FORMATS_F32_H

#include <stddef.h>
#include <stdint.h>

typedef struct lq_block_f32 {
    uint8_t value[4]; /* binary32 */
} lq_block_f32;
_Static_assert(sizeof(lq_block_f32) == 4, "F32 values are packed");

void lq_dequantize_f32(float *dst, const void *src, size_t n_values);

#endif
