/* dot_neon.c - products with NEON as every 64-bit ARM processor has it: packed weights with int8 activations, and plain
 * floats. */
#include "backends/cpu/kernels/arm/dot_neon.h"

LQ_NEON_TYPES_OF_32(LQ_NEON_MATMUL)
LQ_NEON_TYPES_OF_16(LQ_NEON_MATMUL)

/* ---- floats: four sums side by side, then a tree */

LQ_INLINE float sum_of(const float32x4_t acc[4]) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(acc[0], acc[1]), vaddq_f32(acc[2], acc[3])));
}

static float dot_f32(const float *a, const float *b, size_t n) {
    float32x4_t acc[4] = {zero_sum(), zero_sum(), zero_sum(), zero_sum()};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 4; j++) acc[j] = vfmaq_f32(acc[j], vld1q_f32(a + i + 4 * j), vld1q_f32(b + i + 4 * j));
    for (; i + 4 <= n; i += 4) acc[0] = vfmaq_f32(acc[0], vld1q_f32(a + i), vld1q_f32(b + i));
    float sum = sum_of(acc);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Convert eight values of 16 bits to floats. */
LQ_INLINE void widen_f16(float32x4_t out[2], uint16x8_t v) {
    out[0] = vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u16(v)));
    out[1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(v));
}

LQ_INLINE void widen_bf16(float32x4_t out[2], uint16x8_t v) {
    out[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
    out[1] = vreinterpretq_f32_u32(vshll_high_n_u16(v, 16));
}

/* Loads the rest of a row: fewer than eight values, then zeros. */
LQ_INLINE uint16x8_t load_rest(const uint16_t *a, size_t n) {
    uint16_t values[8] = {0};
    memcpy(values, a, n * sizeof *a);
    return vld1q_u16(values);
}

#define LQ_DOT_16_BITS(name, widen)                                                                                    \
    static float name(const uint16_t *a, const float *b, size_t n) {                                                   \
        float32x4_t acc[4] = {zero_sum(), zero_sum(), zero_sum(), zero_sum()}, v[2];                                   \
        size_t i = 0;                                                                                                  \
        for (; i + 16 <= n; i += 16)                                                                                   \
            for (int j = 0; j < 2; j++) {                                                                              \
                widen(v, vld1q_u16(a + i + 8 * j));                                                                    \
                acc[2 * j] = vfmaq_f32(acc[2 * j], v[0], vld1q_f32(b + i + 8 * j));                                    \
                acc[2 * j + 1] = vfmaq_f32(acc[2 * j + 1], v[1], vld1q_f32(b + i + 8 * j + 4));                        \
            }                                                                                                          \
        for (; i < n; i += 8) {                                                                                        \
            size_t n_left = n - i < 8 ? n - i : 8;                                                                     \
            float x[8] = {0.0f};                                                                                       \
            memcpy(x, b + i, n_left * sizeof *b);                                                                      \
            widen(v, load_rest(a + i, n_left));                                                                        \
            acc[0] = vfmaq_f32(acc[0], v[0], vld1q_f32(x));                                                            \
            acc[1] = vfmaq_f32(acc[1], v[1], vld1q_f32(x + 4));                                                        \
        }                                                                                                              \
        return sum_of(acc);                                                                                            \
    }

LQ_DOT_16_BITS(dot_f16_f32, widen_f16)
LQ_DOT_16_BITS(dot_bf16_f32, widen_bf16)

/* ---- activations */

/* a where it is larger, else b: b where a is a NaN, as in the scalar form. */
LQ_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

LQ_INLINE int32x4_t round_to_int(float32x4_t x, float inverse, bool any) {
    float32x4_t q = any ? vmulq_n_f32(x, inverse) : zero_sum();
    q = vbslq_f32(vcgeq_f32(q, vdupq_n_f32(-127.0f)), q, vdupq_n_f32(-127.0f)); /* a NaN becomes -127 */
    return vcvtnq_s32_f32(vminq_f32(q, vdupq_n_f32(127.0f)));
}

LQ_INLINE int16x8_t narrow(int32x4_t a, int32x4_t b) { return vmovn_high_s32(vmovn_s32(a), b); }

static void quantize_q8(lq_q8_row row, const float *x, size_t n) {
    for (size_t b = 0; b < n / LQ_Q8_BLOCK; b++, x += LQ_Q8_BLOCK) {
        float32x4_t v[8], top = zero_sum();
        for (int j = 0; j < 8; j++) {
            v[j] = vld1q_f32(x + 4 * j);
            top = larger(vabsq_f32(v[j]), top);
        }
        float largest = vmaxvq_f32(top), inverse = 127.0f / largest;
        bool any = largest >= LQ_Q8_LEAST;
        row.d[b] = any ? largest * (1.0f / 127.0f) : 0.0f;
        for (int half = 0; half < 2; half++) {
            const float32x4_t *from = v + 4 * half;
            int16x8_t low = narrow(round_to_int(from[0], inverse, any), round_to_int(from[1], inverse, any));
            int16x8_t high = narrow(round_to_int(from[2], inverse, any), round_to_int(from[3], inverse, any));
            int8x16_t q = vmovn_high_s16(vmovn_s16(low), high);
            vst1q_s8(row.q + b * LQ_Q8_BLOCK + 16 * half, q);
            row.sums[2 * b + half] = vaddlvq_s8(q);
        }
    }
}

void lq_kernels_init_neon_dot(lq_kernels *kernels) {
    kernels->quantize_q8 = quantize_q8;
    kernels->dot_f32 = dot_f32;
    kernels->dot_f16_f32 = dot_f16_f32;
    kernels->dot_bf16_f32 = dot_bf16_f32;
    lq_kernels_init_neon_dot_grid(kernels);
    LQ_NEON_TYPES_OF_32(LQ_NEON_ENTRY)
    LQ_NEON_TYPES_OF_16(LQ_NEON_ENTRY)
}
