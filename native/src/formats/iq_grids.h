/* iq_grids.h - codebooks of short vectors and sign bits, which the IQ types share.
 *
 * An entry of iq2 and iq1 grids is eight values of two bits, the first lowest; of iq3 grids, four values of three bits.
 */
#ifndef LQ_FORMATS_IQ_GRIDS_H
#define LQ_FORMATS_IQ_GRIDS_H

#include <stdint.h>

extern const uint16_t lq_iq2_xxs_grid[256];
extern const uint16_t lq_iq2_xs_grid[512];
extern const uint16_t lq_iq2_s_grid[1024];
extern const uint16_t lq_iq3_xxs_grid[256];
extern const uint16_t lq_iq3_s_grid[512];
extern const uint16_t lq_iq1_grid[2048];

/* Decodes eight weights scale * level; those whose bit is set in signs are negative. */
static inline void lq_iq2_decode(float dst[8], uint16_t entry, unsigned signs, float scale) {
    static const float levels[4] = {8.0f, 25.0f, 43.0f, 0.0f};
    for (int i = 0; i < 8; i++) {
        float value = scale * levels[entry >> 2 * i & 3];
        dst[i] = signs >> i & 1 ? -value : value;
    }
}

/* Decodes four weights likewise. levels: those of the type. */
static inline void lq_iq3_decode(float dst[4], uint16_t entry, unsigned signs, float scale, const float levels[8]) {
    for (int i = 0; i < 4; i++) {
        float value = scale * levels[entry >> 3 * i & 7];
        dst[i] = signs >> i & 1 ? -value : value;
    }
}

/* Decodes eight weights scale * (-1, 0 or 1, plus delta). */
static inline void lq_iq1_decode(float dst[8], uint16_t entry, float scale, float delta) {
    for (int i = 0; i < 8; i++) dst[i] = scale * ((float)((entry >> 2 * i & 3) - 1) + delta);
}

/* Restores eight signs from seven stored bits: the number of negative weights is even. */
static inline unsigned lq_iq_signs(unsigned bits) {
    unsigned parity = bits & 127;
    parity ^= parity >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (bits & 127) | (parity & 1) << 7;
}

#endif
