/* warp_mma.h - PTX's mma on the fibers of emulation.h: each lane reads the registers of all lanes.
 *
 * PTX ISA, "Matrix Fragments for mma.m16n8k16": with g = lane / 4, t = lane % 4 a lane has rows g and g + 8 of a,
 * column g of b, and columns 2 t, 2 t + 1 of c in rows g (c[0], c[1]) and g + 8. A register of a or b holds neighbours
 * along k: halves 2 t and 2 t + 1 (later registers: these plus 8), or bytes 4 t to 4 t + 3. */
#ifndef LQ_EMULATED_WARP_MMA_H
#define LQ_EMULATED_WARP_MMA_H

#include <string.h>

#include "emulation.h"

/* Two registers of every lane, exchanged within the warp. */
struct lq_emulated_lanes {
    uint64_t values[32];
    lq_emulated_lanes(uint32_t first, uint32_t second) {
        memcpy(values, lq_emulated_gather((uint64_t)second << 32 | first), sizeof values);
    }
    uint32_t get(uint32_t lane, uint32_t index) const { return (uint32_t)(values[lane] >> 32 * index); }
};

/* c += a b. value(bits) gives the float value of a half. */
template <class Value>
static inline void lq_emulated_mma_halves(float c[4], const uint32_t a[4], const uint32_t b[2], Value value) {
    lq_emulated_lanes upper(a[0], a[2]), lower(a[1], a[3]), right(b[0], b[1]);
    uint32_t g = lq_emulated_lane() / 4, t = lq_emulated_lane() % 4;
    for (uint32_t i = 0; i < 4; i++) {
        const lq_emulated_lanes &left = i < 2 ? upper : lower;
        double sum = c[i];
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t owner = k % 8 / 2, shift = 16 * (k % 2);
            uint16_t x = (uint16_t)(left.get(4 * g + owner, k / 8) >> shift);
            uint16_t y = (uint16_t)(right.get(4 * (2 * t + i % 2) + owner, k / 8) >> shift);
            sum += (double)value(x) * value(y);
        }
        c[i] = (float)sum;
    }
}

/* The same for signed bytes. */
static inline void lq_emulated_mma_bytes(int32_t c[4], const int32_t a[2], int32_t b) {
    lq_emulated_lanes left((uint32_t)a[0], (uint32_t)a[1]), right((uint32_t)b, 0);
    uint32_t g = lq_emulated_lane() / 4, t = lq_emulated_lane() % 4;
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < 16; k++) {
            int8_t x = (int8_t)(left.get(4 * g + k / 4, i / 2) >> 8 * (k % 4));
            int8_t y = (int8_t)(right.get(4 * (2 * t + i % 2) + k / 4, 0) >> 8 * (k % 4));
            c[i] += x * y;
        }
    }
}

#endif
