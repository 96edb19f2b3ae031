/* iq1_s.c - IQ1_S in scalar code. */
#include "formats/iq1_s.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

void lq_dequantize_iq1_s(float *dst, const void *src, size_t n_values) {
    const lq_block_iq1_s *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ1_S_LEN; b++, block++, dst += LQ_IQ1_S_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) {
            unsigned high = block->qh[i / 4][0] | (unsigned)block->qh[i / 4][1] << 8;
            float scale = d * (float)(2 * (high >> 12 & 7) + 1), delta = high >> 15 ? -0.125f : 0.125f;
            lq_iq1_decode(dst + 8 * i, lq_iq1_grid[block->qs[i] | (high >> 3 * (i % 4) & 7) << 8], scale, delta);
        }
    }
}
