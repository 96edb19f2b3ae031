/* iq2_xxs.c - IQ2_XXS in scalar code. */
#include "formats/iq2_xxs.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

void lq_dequantize_iq2_xxs(float *dst, const void *src, size_t n_values) {
    const lq_block_iq2_xxs *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ2_XXS_LEN; b++, block++, dst += LQ_IQ2_XXS_LEN) {
        float d = lq_read_half(block->d);
        for (int j = 0; j < 8; j++) {
            uint32_t rest = lq_read_u32(block->qs[j] + 4);
            float scale = d * (0.5f + (float)(rest >> 28)) * 0.25f;
            for (int i = 0; i < 4; i++)
                lq_iq2_decode(dst + 32 * j + 8 * i, lq_iq2_xxs_grid[block->qs[j][i]], lq_iq_signs(rest >> 7 * i),
                              scale);
        }
    }
}
