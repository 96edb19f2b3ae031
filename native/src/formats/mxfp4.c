/* mxfp4.c - MXFP4 in scalar code. */
#include "formats/mxfp4.h"

#include <math.h>

#include "formats/iq_values.h"

void lq_dequantize_mxfp4(float *dst, const void *src, size_t n_values) {
    const lq_block_mxfp4 *block = src;
    for (size_t b = 0; b < n_values / LQ_MXFP4_LEN; b++, block++, dst += LQ_MXFP4_LEN) {
        float d = ldexpf(1.0f, block->e - 128);
        for (int i = 0; i < 32; i++) dst[i] = d * (float)lq_e2m1_values[block->qs[i % 16] >> i / 16 * 4 & 15];
    }
}
