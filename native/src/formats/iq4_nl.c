/* iq4_nl.c - IQ4_NL in scalar code. */
#include "formats/iq4_nl.h"

#include "formats/bytes.h"
#include "formats/iq_values.h"

void lq_dequantize_iq4_nl(float *dst, const void *src, size_t n_values) {
    const lq_block_iq4_nl *block = src;
    for (size_t b = 0; b < n_values / LQ_IQ4_NL_LEN; b++, block++, dst += LQ_IQ4_NL_LEN) {
        float d = lq_read_half(block->d);
        for (int i = 0; i < 32; i++) dst[i] = d * (float)lq_iq4_values[block->qs[i % 16] >> i / 16 * 4 & 15];
    }
}
