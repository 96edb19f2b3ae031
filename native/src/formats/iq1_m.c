/* iq1_m.c - IQ1_M in scalar code. */
#include "formats/iq1_m.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

void lq_dequantize_iq1_m(float *dst, const void *src, size_t n_values) {
    const lq_block_iq1_m *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ1_M_LEN; b++, block++, dst += LQ_IQ1_M_LEN) {
        uint16_t half = 0;
        for (int i = 0; i < 4; i++) half |= (uint16_t)((block->scales[i][1] >> 4) << 4 * i);
        float d = lq_half_to_float(half);
        for (int i = 0; i < 32; i++) {
            int group = i / 2, high = block->qh[i / 2] >> i % 2 * 4 & 15;
            int word = block->scales[group / 4][0] | block->scales[group / 4][1] << 8;
            float scale = d * (float)(2 * (word >> 3 * (group % 4) & 7) + 1), delta = high & 8 ? -0.125f : 0.125f;
            lq_iq1_decode(dst + 8 * i, lq_iq1_grid[block->qs[i] | (high & 7) << 8], scale, delta);
        }
    }
}
