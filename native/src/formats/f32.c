/* f32.c - F32: nothing to decode. */
#include "formats/f32.h"

#include <string.h>

void lq_dequantize_f32(float *dst, const void *src, size_t n_values) {
    if (n_values > 0) memcpy(dst, src, n_values * sizeof(lq_block_f32));
}
