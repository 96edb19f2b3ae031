/* fmt_q.cuh - decoders of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. A block is a unit. formats/q*.h has the layouts. */
#ifndef LQ_CUDA_FMT_Q_CUH
#define LQ_CUDA_FMT_Q_CUH

#include "backends/cuda/unit.cuh"

struct fmt_q4_0 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 18;
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_2(block + 2 + 4 * i);
            u->q[i] = centred(qs & 0x0f0f0f0fu, 8);
            u->q[i + 4] = centred(qs >> 4 & 0x0f0f0f0fu, 8);
        }
        set_scale(u, read_half(block), 0.0f);
    }
};

struct fmt_q4_1 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 20;
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_4(block + 4 + 4 * i);
            u->q[i] = (int)(qs & 0x0f0f0f0fu);
            u->q[i + 4] = (int)(qs >> 4 & 0x0f0f0f0fu);
        }
        set_scale(u, read_half(block), read_half(block + 2));
    }
};

struct fmt_q5_0 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 22;
        uint32_t high = read_u32_of_2(block + 2);
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_2(block + 6 + 4 * i);
            u->q[i] = centred((qs & 0x0f0f0f0fu) | spread4(high >> 4 * i) << 4, 16);
            u->q[i + 4] = centred((qs >> 4 & 0x0f0f0f0fu) | spread4(high >> (16 + 4 * i)) << 4, 16);
        }
        set_scale(u, read_half(block), 0.0f);
    }
};

struct fmt_q5_1 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 24;
        uint32_t high = read_u32_of_4(block + 4);
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_4(block + 8 + 4 * i);
            u->q[i] = (int)((qs & 0x0f0f0f0fu) | spread4(high >> 4 * i) << 4);
            u->q[i + 4] = (int)((qs >> 4 & 0x0f0f0f0fu) | spread4(high >> (16 + 4 * i)) << 4);
        }
        set_scale(u, read_half(block), read_half(block + 2));
    }
};

/* Weights are -128..127. Activations are at least -127, so that -128 times -128 never occurs and sums stay in range. */
struct fmt_q8_0 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 34;
        for (int i = 0; i < 8; i++) u->q[i] = (int)read_u32_of_2(block + 2 + 4 * i);
        set_scale(u, read_half(block), 0.0f);
    }
};

#endif
