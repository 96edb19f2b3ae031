/* fmt_k.cuh - decoders of the K types and the ternary types. A block of 256 weights has eight units. */
#ifndef LQ_CUDA_FMT_K_CUH
#define LQ_CUDA_FMT_K_CUH

#include "backends/cuda/unit.cuh"

/* Two bits each of weights 4 i to 4 i + 3 of unit j, which has bits 2 (j % 4) and up of the 32 bytes at 32 (j / 4). */
LQ_DEVICE uint32_t two_bits(const uint8_t *qs, uint32_t j, int i) {
    return read_u32_of_2(qs + j / 4 * 32 + 4 * i) >> 2 * (j % 4) & 0x03030303u;
}

struct fmt_q2_k {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 84;
        uint32_t j = index % 8;
        float d = read_half(block + 80), dmin = read_half(block + 82);
        for (int i = 0; i < 8; i++) u->q[i] = (int)two_bits(block + 16, j, i);
        for (int h = 0; h < 2; h++) {
            uint32_t scale = block[2 * j + h];
            u->d[h] = d * (float)(scale & 15);
            u->m[h] = -(dmin * (float)(scale >> 4));
        }
    }
};

struct fmt_q3_k {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 110;
        uint32_t j = index % 8;
        float d = read_half(block + 108);
        for (int i = 0; i < 8; i++) {
            uint32_t high = read_u32_of_2(block + 4 * i) >> j & 0x01010101u;
            u->q[i] = centred(two_bits(block + 32, j, i) | high << 2, 4);
        }
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t group = 2 * j + h;
            int low = block[96 + group % 8] >> group / 8 * 4 & 15, high = block[104 + group % 4] >> group / 4 * 2 & 3;
            u->d[h] = d * (float)((low | high << 4) - 32);
            u->m[h] = 0.0f;
        }
    }
};

/* sc and min of group j of Q4_K and Q5_K, from the 12 bytes behind d and dmin. */
LQ_DEVICE void k_scales(const uint8_t *scales, uint32_t j, int *sc, int *min) {
    if (j < 4) {
        *sc = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *sc = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
        *min = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
    }
}

struct fmt_q4_k {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 144;
        uint32_t j = index % 8;
        const uint4 *qs = (const uint4 *)(const void *)(block + 16 + j / 2 * 32);
        uint4 low = qs[0], high = qs[1];
        uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        int sc, min;
        k_scales(block + 4, j, &sc, &min);
        for (int i = 0; i < 8; i++) u->q[i] = (int)(words[i] >> 4 * (j % 2) & 0x0f0f0f0fu);
        set_scale(u, read_half(block) * (float)sc, -(read_half(block + 2) * (float)min));
    }
};

struct fmt_q5_k {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 176;
        uint32_t j = index % 8;
        const uint4 *qs = (const uint4 *)(const void *)(block + 48 + j / 2 * 32);
        const uint4 *qh = (const uint4 *)(const void *)(block + 16);
        uint4 low = qs[0], high = qs[1], fifth = qh[0], more = qh[1];
        uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        uint32_t bits[8] = {fifth.x, fifth.y, fifth.z, fifth.w, more.x, more.y, more.z, more.w};
        int sc, min;
        k_scales(block + 4, j, &sc, &min);
        for (int i = 0; i < 8; i++)
            u->q[i] = (int)((words[i] >> 4 * (j % 2) & 0x0f0f0f0fu) | (bits[i] >> j & 0x01010101u) << 4);
        set_scale(u, read_half(block) * (float)sc, -(read_half(block + 2) * (float)min));
    }
};

struct fmt_q6_k {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 210;
        uint32_t j = index % 8, half = j / 4, k = j % 4;
        float d = read_half(block + 208);
        for (int i = 0; i < 8; i++) {
            uint32_t low = read_u32_of_2(block + 64 * half + 32 * (k % 2) + 4 * i) >> k / 2 * 4 & 0x0f0f0f0fu;
            uint32_t high = read_u32_of_2(block + 128 + 32 * half + 4 * i) >> 2 * k & 0x03030303u;
            u->q[i] = centred(low | high << 4, 32);
        }
        for (int h = 0; h < 2; h++) {
            u->d[h] = d * (float)(int8_t)block[192 + 2 * j + h];
            u->m[h] = 0.0f;
        }
    }
};

/* ---- ternary */

LQ_DEVICE int trit(uint32_t byte, uint32_t n) {
    uint32_t power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
    return (int)((byte * power & 255) * 3 >> 8) - 1;
}

struct fmt_tq1_0 {
    LQ_DEVICE int weight(const uint8_t *block, uint32_t i) {
        if (i < 160) return trit(block[i % 32], i / 32);
        if (i < 240) return trit(block[32 + i % 16], (i - 160) / 16);
        return trit(block[48 + i % 4], (i - 240) / 4);
    }
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 54;
        uint32_t first = index % 8 * 32;
        for (int i = 0; i < 8; i++) {
            uint32_t at = first + 4 * i;
            u->q[i] = pack4(weight(block, at), weight(block, at + 1), weight(block, at + 2), weight(block, at + 3));
        }
        set_scale(u, read_half(block + 52), 0.0f);
    }
};

struct fmt_tq2_0 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 66;
        for (int i = 0; i < 8; i++) u->q[i] = centred(two_bits(block, index % 8, i), 1);
        set_scale(u, read_half(block + 64), 0.0f);
    }
};

#endif
