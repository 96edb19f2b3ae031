/* f16.c - F16: widened to float, exactly. */
#include "formats/f16.h"

#include "formats/bytes.h"

void lq_dequantize_f16(float *dst, const void *src, size_t n_values) {
    const lq_block_f16 *block = src;
    for (size_t i = 0; i < n_values; i++) dst[i] = lq_read_half(block[i].value);
}
