/* attn_neon.h - attention over packed pages and quantized cells with NEON, shared by attn_neon.c and attn_dotprod.c. A
 * vector of attn_page.h is two registers: eight lanes keep its loops as they are for AVX2, and compilers hold the pair
 * in registers. */
#ifndef LQ_CPU_ATTN_NEON_H
#define LQ_CPU_ATTN_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

typedef struct float_pair {
    float32x4_t low, high;
} float_pair;

typedef struct int_pair {
    int32x4_t low, high;
} int_pair;

#define VF float_pair
#define VI int_pair
#define VN 8
#define DOT_GROUPS 2

LQ_INLINE VF vf_load(const float *p) { return (VF){vld1q_f32(p), vld1q_f32(p + 4)}; }
LQ_INLINE void vf_store(float *p, VF x) {
    vst1q_f32(p, x.low);
    vst1q_f32(p + 4, x.high);
}
LQ_INLINE VF vf_set1(float x) { return (VF){vdupq_n_f32(x), vdupq_n_f32(x)}; }
LQ_INLINE VF vf_add(VF a, VF b) { return (VF){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
LQ_INLINE VF vf_sub(VF a, VF b) { return (VF){vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
LQ_INLINE VF vf_mul(VF a, VF b) { return (VF){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
LQ_INLINE VF vf_fma(VF a, VF b, VF c) {
    return (VF){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
LQ_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
LQ_INLINE VF vf_max(VF a, VF b) { return (VF){larger(a.low, b.low), larger(a.high, b.high)}; } /* of a NaN a: b */
LQ_INLINE VF vf_min(VF a, VF b) { return (VF){vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
LQ_INLINE VF vf_abs(VF a) { return (VF){vabsq_f32(a.low), vabsq_f32(a.high)}; }
LQ_INLINE float vf_sum(VF a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
LQ_INLINE float vf_largest(VF a) { return vmaxvq_f32(vmaxq_f32(a.low, a.high)); }
LQ_INLINE void vf_sums_of_4(float *out, VF a, VF b, VF c, VF d) {
    float32x4_t ab = vpaddq_f32(vaddq_f32(a.low, a.high), vaddq_f32(b.low, b.high));
    float32x4_t cd = vpaddq_f32(vaddq_f32(c.low, c.high), vaddq_f32(d.low, d.high));
    vst1q_f32(out, vpaddq_f32(ab, cd));
}
LQ_INLINE void vf_largest_of_4(float *out, VF a, VF b, VF c, VF d) {
    float32x4_t ab = vpmaxq_f32(vmaxq_f32(a.low, a.high), vmaxq_f32(b.low, b.high));
    float32x4_t cd = vpmaxq_f32(vmaxq_f32(c.low, c.high), vmaxq_f32(d.low, d.high));
    vst1q_f32(out, vpmaxq_f32(ab, cd));
}
LQ_INLINE VF vf_from_int(VI a) { return (VF){vcvtq_f32_s32(a.low), vcvtq_f32_s32(a.high)}; }
LQ_INLINE VF vf_from_bytes(const int8_t *p) {
    int16x8_t v = vmovl_s8(vld1_s8(p));
    return (VF){vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
}
LQ_INLINE VF vf_from_codes(const uint8_t *p) {
    uint16x8_t v = vmovl_u8(vld1_u8(p));
    return (VF){vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_high_u16(v))};
}
LQ_INLINE VI vi_from_float(VF a) { return (VI){vcvtnq_s32_f32(a.low), vcvtnq_s32_f32(a.high)}; }
LQ_INLINE VI vi_load(const uint8_t *p) {
    return (VI){vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p + 16))};
}
LQ_INLINE void vi_store(uint8_t *p, VI a) {
    vst1q_u8(p, vreinterpretq_u8_s32(a.low));
    vst1q_u8(p + 16, vreinterpretq_u8_s32(a.high));
}
LQ_INLINE void vi_store_s8(int8_t *p, VI a) { vst1_s8(p, vqmovn_s16(vqmovn_high_s32(vqmovn_s32(a.low), a.high))); }
LQ_INLINE VI vi_set1(int x) { return (VI){vdupq_n_s32(x), vdupq_n_s32(x)}; }
LQ_INLINE VI vi_and(VI a, VI b) { return (VI){vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)}; }
LQ_INLINE VI vi_or(VI a, VI b) { return (VI){vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)}; }
/* A float's bits, and a float plus a number on its bits: 2^k times it for k << 23. */
LQ_INLINE VI vf_bits(VF a) { return (VI){vreinterpretq_s32_f32(a.low), vreinterpretq_s32_f32(a.high)}; }
LQ_INLINE VF vf_add_bits(VF a, VI b) {
    VI sum = {vaddq_s32(vreinterpretq_s32_f32(a.low), b.low), vaddq_s32(vreinterpretq_s32_f32(a.high), b.high)};
    return (VF){vreinterpretq_f32_s32(sum.low), vreinterpretq_f32_s32(sum.high)};
}
/* The compiler's own shifts: immediate where n is a constant after inlining, which the intrinsics cannot express. */
LQ_INLINE int32x4_t shifted_right(int32x4_t a, uint32_t n) {
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) >> n);
}
LQ_INLINE int32x4_t shifted_left(int32x4_t a, uint32_t n) {
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) << n);
}
LQ_INLINE VI vi_srl(VI a, uint32_t n) { return (VI){shifted_right(a.low, n), shifted_right(a.high, n)}; }
LQ_INLINE VI vi_sll(VI a, uint32_t n) { return (VI){shifted_left(a.low, n), shifted_left(a.high, n)}; }
/* Planes of one bit have as many lanes as a vector: there is nothing to load twice. */
LQ_INLINE VI vi_load_twice(const uint8_t *p, uint32_t low, uint32_t high) {
    (void)high;
    return vi_srl(vi_load(p), low);
}

/* (a, b) -> (a + b, a - b) for neighbours, then pairs, fours. */
LQ_INLINE float32x4_t hadamard_4(float32x4_t x) {
    float32x4_t even = vtrn1q_f32(x, x), odd = vtrn2q_f32(x, x);
    x = vtrn1q_f32(vaddq_f32(even, odd), vsubq_f32(even, odd));
    float32x4_t first = vcombine_f32(vget_low_f32(x), vget_low_f32(x));
    float32x4_t second = vcombine_f32(vget_high_f32(x), vget_high_f32(x));
    return vcombine_f32(vget_low_f32(vaddq_f32(first, second)), vget_low_f32(vsubq_f32(first, second)));
}
LQ_INLINE VF vf_hadamard(VF x) {
    float32x4_t low = hadamard_4(x.low), high = hadamard_4(x.high);
    return (VF){vaddq_f32(low, high), vsubq_f32(low, high)};
}

/* Four codes, at most 31, a lane times the same four weights. */
LQ_INLINE int32x4_t dot_codes(int32x4_t acc, int32x4_t codes, int8x16_t weights) {
    int8x16_t c = vreinterpretq_s8_s32(codes);
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(acc, c, weights);
#else /* pairs of products fit in 16 bits */
    int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(weights)), high = vmull_high_s8(c, weights);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}
LQ_INLINE VI vi_dot(VI acc, VI codes, const int8_t *four) {
    int32_t bits;
    memcpy(&bits, four, 4);
    int8x16_t weights = vreinterpretq_s8_s32(vdupq_n_s32(bits));
    return (VI){dot_codes(acc.low, codes.low, weights), dot_codes(acc.high, codes.high, weights)};
}
LQ_INLINE VI add_dot(VI acc, VI codes, VI weights) {
    return (VI){dot_codes(acc.low, codes.low, vreinterpretq_s8_s32(weights.low)),
                dot_codes(acc.high, codes.high, vreinterpretq_s8_s32(weights.high))};
}
LQ_INLINE VF vf_div(VF a, VF b) { return (VF){vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
LQ_INLINE int32x4_t pack_4(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    const uint8x16_t turn = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    int16x8_t ab = vqmovn_high_s32(vqmovn_s32(a), b), cd = vqmovn_high_s32(vqmovn_s32(c), d);
    return vreinterpretq_s32_s8(vqtbl1q_s8(vqmovn_high_s16(vqmovn_s16(ab), cd), turn));
}
LQ_INLINE VI vi_pack(VI a, VI b, VI c, VI d) {
    return (VI){pack_4(a.low, b.low, c.low, d.low), pack_4(a.high, b.high, c.high, d.high)};
}

#include "backends/cpu/kernels/attn_page.h"

#define MANY_ITEMS 4 /* of two registers each */
#define MANY_VECTORS 2

#include "backends/cpu/kernels/attn_many.h"

#endif
