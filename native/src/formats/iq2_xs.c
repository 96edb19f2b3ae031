/* iq2_xs.c - IQ2_XS in scalar code. */
#include "formats/iq2_xs.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

void lq_dequantize_iq2_xs(float *dst, const void *src, size_t n_values) {
    const lq_block_iq2_xs *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ2_XS_LEN; b++, block++, dst += LQ_IQ2_XS_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) {
            unsigned code = block->qs[i][0] | (unsigned)block->qs[i][1] << 8;
            float scale = d * (0.5f + (float)(block->scales[i / 4] >> i / 2 % 2 * 4 & 15)) * 0.25f;
            lq_iq2_decode(dst + 8 * i, lq_iq2_xs_grid[code & 511], lq_iq_signs(code >> 9), scale);
        }
    }
}
