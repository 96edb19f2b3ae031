/* iq4_xs.c - IQ4_XS in scalar code. */
#include "formats/iq4_xs.h"

#include "formats/bytes.h"
#include "formats/iq_values.h"

void lq_dequantize_iq4_xs(float *dst, const void *src, size_t n_values) {
    const lq_block_iq4_xs *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ4_XS_LEN; b++, block++, dst += LQ_IQ4_XS_LEN) {
        float d = lq_read_half(block->d);
        for (int j = 0; j < 8; j++) {
            int low = block->scales_l[j / 2] >> j % 2 * 4 & 15, high = block->scales_h[j / 4] >> j % 4 * 2 & 3;
            float scale = d * (float)((low | high << 4) - 32);
            for (int i = 0; i < 32; i++)
                dst[32 * j + i] = scale * (float)lq_iq4_values[block->qs[16 * j + i % 16] >> i / 16 * 4 & 15];
        }
    }
}
