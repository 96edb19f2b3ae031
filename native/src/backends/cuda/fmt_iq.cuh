/* fmt_iq.cuh - decoders of the IQ types (codebooks of short vectors with signs, or of 16 uneven values) and of four-bit
 * floats. */
#ifndef LQ_CUDA_FMT_IQ_CUH
#define LQ_CUDA_FMT_IQ_CUH

#include "backends/cuda/unit.cuh"

/* Expands seven stored signs to eight: the number of negative weights is even. */
LQ_DEVICE uint32_t iq_signs(uint32_t bits) {
    uint32_t parity = bits & 127;
    parity ^= parity >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (bits & 127) | (parity & 1) << 7;
}

/* Decodes eight weights to two words: each has two bits of entry, which choose the level 8, 25 or 43. */
LQ_DEVICE void iq2_vector(int *q, uint32_t entry, uint32_t signs) {
    for (int word = 0; word < 2; word++) {
        int w[4];
        for (int i = 0; i < 4; i++) {
            int at = 4 * word + i, level = (int)(0x002b1908u >> 8 * (entry >> 2 * at & 3) & 255);
            w[i] = signs >> at & 1 ? -level : level;
        }
        q[word] = pack4(w[0], w[1], w[2], w[3]);
    }
}

/* Decodes four weights to a word: each has three bits of entry, which choose one of the eight bytes of levels. */
LQ_DEVICE int iq3_vector(uint32_t entry, uint32_t signs, uint64_t levels) {
    int w[4];
    for (int i = 0; i < 4; i++) {
        int level = (int)(levels >> 8 * (entry >> 3 * i & 7) & 255);
        w[i] = signs >> i & 1 ? -level : level;
    }
    return pack4(w[0], w[1], w[2], w[3]);
}

/* Decodes eight weights to two words, in units of 1/8: -1, 0 or 1, plus delta / 8 (delta is -1 or 1). */
LQ_DEVICE void iq1_vector(int *q, uint32_t entry, int delta) {
    for (int word = 0; word < 2; word++) {
        int w[4];
        for (int i = 0; i < 4; i++) w[i] = 8 * ((int)(entry >> 2 * (4 * word + i) & 3) - 1) + delta;
        q[word] = pack4(w[0], w[1], w[2], w[3]);
    }
}

LQ_DEVICE float iq_scale(float d, uint32_t code, float unit_part) { return d * (0.5f + (float)code) * unit_part; }

struct fmt_iq2_xxs {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 66, *qs = block + 2 + index % 8 * 8;
        uint32_t rest = read_u32_of_2(qs + 4);
        for (int i = 0; i < 4; i++) iq2_vector(u->q + 2 * i, grids.iq2_xxs[qs[i]], iq_signs(rest >> 7 * i));
        set_scale(u, iq_scale(read_half(block), rest >> 28, 0.25f), 0.0f);
    }
};

struct fmt_iq2_xs {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 74;
        uint32_t j = index % 8, scales = block[66 + j];
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t code = read_u16(block + 2 + 2 * (4 * j + i));
            iq2_vector(u->q + 2 * i, grids.iq2_xs[code & 511], iq_signs(code >> 9));
        }
        for (int h = 0; h < 2; h++) {
            u->d[h] = iq_scale(read_half(block), scales >> 4 * h & 15, 0.25f);
            u->m[h] = 0.0f;
        }
    }
};

struct fmt_iq2_s {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 82;
        uint32_t j = index % 8, high = block[66 + j], scales = block[74 + j];
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t entry = block[2 + 4 * j + i] | (high >> 2 * i & 3) << 8;
            iq2_vector(u->q + 2 * i, grids.iq2_s[entry], block[34 + 4 * j + i]);
        }
        for (int h = 0; h < 2; h++) {
            u->d[h] = iq_scale(read_half(block), scales >> 4 * h & 15, 0.25f);
            u->m[h] = 0.0f;
        }
    }
};

struct fmt_iq3_xxs {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 98;
        uint32_t j = index % 8, rest = read_u32_of_2(block + 66 + 4 * j);
        for (uint32_t i = 0; i < 8; i++)
            u->q[i] = iq3_vector(grids.iq3_xxs[block[2 + 8 * j + i]], iq_signs(rest >> 7 * (i / 2)) >> i % 2 * 4,
                                 0x3e342c241c140c04ull); /* 4, 12, 20, 28, 36, 44, 52, 62 */
        set_scale(u, iq_scale(read_half(block), rest >> 28, 0.5f), 0.0f);
    }
};

struct fmt_iq3_s {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 110;
        uint32_t j = index % 8, high = block[66 + j];
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t entry = block[2 + 8 * j + i] | (high >> i & 1) << 8;
            u->q[i] = iq3_vector(grids.iq3_s[entry], (uint32_t)block[74 + 4 * j + i / 2] >> i % 2 * 4,
                                 0x0f0d0b0907050301ull); /* 1, 3, ... 15 */
        }
        set_scale(u, read_half(block) * (float)(1 + 2 * (block[106 + j / 2] >> j % 2 * 4 & 15)), 0.0f);
    }
};

struct fmt_iq1_s {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 50;
        uint32_t j = index % 8, high = read_u16(block + 34 + 2 * j);
        for (uint32_t i = 0; i < 4; i++)
            iq1_vector(u->q + 2 * i, grids.iq1[block[2 + 4 * j + i] | (high >> 3 * i & 7) << 8], high >> 15 ? -1 : 1);
        set_scale(u, read_half(block) * (float)(2 * (high >> 12 & 7) + 1) * 0.125f, 0.0f);
    }
};

struct fmt_iq1_m {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &grids, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 56, *scales = block + 48;
        uint32_t j = index % 8, half = 0;
        for (int i = 0; i < 4; i++) half |= (uint32_t)(scales[2 * i + 1] >> 4) << 4 * i;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t at = 4 * j + i, high = block[32 + at / 2] >> at % 2 * 4 & 15;
            iq1_vector(u->q + 2 * i, grids.iq1[block[at] | (high & 7) << 8], high & 8 ? -1 : 1);
        }
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t group = 2 * j + h, word = read_u16(scales + 2 * (group / 4));
            u->d[h] = half_to_float((uint16_t)half) * (float)(2 * (word >> 3 * (group % 4) & 7) + 1) * 0.125f;
            u->m[h] = 0.0f;
        }
    }
};

/* ---- a table of 16 values */

/* Looks up four codes, one per byte, in a table of 16 bytes: low has values 0 to 7, high 8 to 15. */
LQ_DEVICE int look_up4(uint32_t codes, uint64_t low, uint64_t high) {
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t code = codes >> 8 * i & 15;
        out |= (uint32_t)((code < 8 ? low : high) >> 8 * (code & 7) & 255) << 8 * i;
    }
    return (int)out;
}

/* The table is lq_iq4_values of formats/iq_values.h. */
LQ_DEVICE int iq4_word(uint32_t codes) { return look_up4(codes, 0xf6eaddcfbfad9881ull, 0x7159453526190d01ull); }

struct fmt_iq4_nl {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 18;
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_2(block + 2 + 4 * i);
            u->q[i] = iq4_word(qs & 0x0f0f0f0fu);
            u->q[i + 4] = iq4_word(qs >> 4 & 0x0f0f0f0fu);
        }
        set_scale(u, read_half(block), 0.0f);
    }
};

struct fmt_iq4_xs {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 8) * 136;
        uint32_t j = index % 8;
        int low = block[4 + j / 2] >> j % 2 * 4 & 15, high = block[2 + j / 4] >> j % 4 * 2 & 3;
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_4(block + 8 + 16 * j + 4 * i);
            u->q[i] = iq4_word(qs & 0x0f0f0f0fu);
            u->q[i + 4] = iq4_word(qs >> 4 & 0x0f0f0f0fu);
        }
        set_scale(u, read_half(block) * (float)((low | high << 4) - 32), 0.0f);
    }
};

/* ---- four-bit floats: the table's values are doubled, so the scales are halved */

/* The table is lq_e2m1_values of formats/iq_values.h. */
LQ_DEVICE int e2m1_word(uint32_t codes) { return look_up4(codes, 0x0c08060403020100ull, 0xf4f8fafcfdfeff00ull); }

struct fmt_mxfp4 {
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)index * 17;
        uint32_t e = block[0]; /* the scale is 2^(e - 128), subnormal for e = 0, 1 */
        for (int i = 0; i < 4; i++) {
            uint32_t qs = read_u32_of_1(block + 1 + 4 * i);
            u->q[i] = e2m1_word(qs & 0x0f0f0f0fu);
            u->q[i + 4] = e2m1_word(qs >> 4 & 0x0f0f0f0fu);
        }
        set_scale(u, __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0.0f);
    }
};

struct fmt_nvfp4 {
    LQ_DEVICE float half_scale(uint32_t code) { /* half of an E4M3 number */
        uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
        if (code == 0x7f) return 0.0f;
        if (exponent == 0) return (float)mantissa * 0.0009765625f;              /* 2^-10 */
        return (float)(8 + mantissa) * __uint_as_float((exponent + 116) << 23); /* 2^(exponent - 11) */
    }
    LQ_DEVICE void get(const uint8_t *row, uint32_t index, const unit_grids &, unit *u) {
        const uint8_t *block = row + (size_t)(index / 2) * 36, *qs = block + 4 + index % 2 * 16;
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 2; i++) {
                uint32_t codes = read_u32_of_4(qs + 8 * h + 4 * i);
                u->q[4 * h + i] = e2m1_word(codes & 0x0f0f0f0fu);
                u->q[4 * h + 2 + i] = e2m1_word(codes >> 4 & 0x0f0f0f0fu);
            }
            u->d[h] = half_scale(block[index % 2 * 2 + h]);
            u->m[h] = 0.0f;
        }
    }
};

#endif
