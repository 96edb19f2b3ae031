/* iq3_s.c - IQ3_S in scalar code. */
#include "formats/iq3_s.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

static const float levels[8] = {1.0f, 3.0f, 5.0f, 7.0f, 9.0f, 11.0f, 13.0f, 15.0f};

void lq_dequantize_iq3_s(float *dst, const void *src, size_t n_values) {
    const lq_block_iq3_s *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ3_S_LEN; b++, block++, dst += LQ_IQ3_S_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 64; i++) {
            unsigned index = block->qs[i] | (block->qh[i / 8] >> i % 8 & 1u) << 8;
            float scale = d * (float)(1 + 2 * (block->scales[i / 16] >> i / 8 % 2 * 4 & 15));
            lq_iq3_decode(dst + 4 * i, lq_iq3_s_grid[index], block->signs[i / 2] >> i % 2 * 4, scale, levels);
        }
    }
}
