/* iq3_xxs.c - IQ3_XXS in scalar code. */
#include "formats/iq3_xxs.h"

#include "formats/bytes.h"
#include "formats/iq_grids.h"

static const float levels[8] = {4.0f, 12.0f, 20.0f, 28.0f, 36.0f, 44.0f, 52.0f, 62.0f};

void lq_dequantize_iq3_xxs(float *dst, const void *src, size_t n_values) {
    const lq_block_iq3_xxs *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ3_XXS_LEN; b++, block++, dst += LQ_IQ3_XXS_LEN) {
        float d = lq_read_half(block->d);
        for (int j = 0; j < 8; j++) {
            uint32_t rest = lq_read_u32(block->rest[j]);
            float scale = d * (0.5f + (float)(rest >> 28)) * 0.5f;
            for (int i = 0; i < 8; i++)
                lq_iq3_decode(dst + 32 * j + 4 * i, lq_iq3_xxs_grid[block->qs[8 * j + i]],
                              lq_iq_signs(rest >> 7 * (i / 2)) >> i % 2 * 4, scale, levels);
        }
    }
}
