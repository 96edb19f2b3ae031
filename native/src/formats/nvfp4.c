/* nvfp4.c - NVFP4 in scalar code. */
#include "formats/nvfp4.h"

#include <math.h>

#include "formats/iq_values.h"

/* Half the value of an E4M3 number, bias 7; 0 for the code that means NaN. */
static float half_scale(uint8_t code) {
    int exponent = code >> 3 & 15, mantissa = code & 7;
    if (code == 0x7f) return 0.0f;
    return exponent == 0 ? ldexpf((float)mantissa, -10) : ldexpf((float)(8 + mantissa), exponent - 11);
}

void lq_dequantize_nvfp4(float *dst, const void *src, size_t n_values) {
    const lq_block_nvfp4 *block = src;
    for (size_t b = 0; b < n_values / LQ_NVFP4_LEN; b++, block++, dst += LQ_NVFP4_LEN) {
        for (int i = 0; i < 64; i++) {
            uint8_t code = block->qs[i / 16 * 8 + i % 8] >> i / 8 % 2 * 4 & 15;
            dst[i] = half_scale(block->scales[i / 16]) * (float)lq_e2m1_values[code];
        }
    }
}
