/* iq2_s.c - IQ2_S in scalar code. */
#include "formats/iq2_s.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

void lq_dequantize_iq2_s(float *dst, const void *src, size_t n_values) {
    const lq_block_iq2_s *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ2_S_LEN; b++, block++, dst += LQ_IQ2_S_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) {
            unsigned index = block->qs[i] | (block->qh[i / 4] >> i % 4 * 2 & 3u) << 8;
            float scale = d * (0.5f + (float)(block->scales[i / 4] >> i / 2 % 2 * 4 & 15)) * 0.25f;
            lq_iq2_decode(dst + 8 * i, lq_iq2_s_grid[index], block->signs[i], scale);
        }
    }
}
