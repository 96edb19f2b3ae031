/* vec_128.h - the vector vocabulary with NEON: a vector is a pair of registers of 128 bits. Eight lanes keep the shared
 * bodies as they are for 256 bits, and compilers hold the pair in registers. x86/vec_256.h explains the words. */
#ifndef LQ_CPU_VEC_128_H
#define LQ_CPU_VEC_128_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "backends/cpu/kernels/simd.h"

#define V_LANES 8
#define V_REGISTERS 16 /* pairs */

typedef struct vfloat {
    float32x4_t low, high;
} vfloat;

typedef struct vint {
    int32x4_t low, high;
} vint;

/* ---- floats */

LQ_INLINE vfloat vf_load(const float *p) { return (vfloat){vld1q_f32(p), vld1q_f32(p + 4)}; }
LQ_INLINE void vf_store(float *p, vfloat a) {
    vst1q_f32(p, a.low);
    vst1q_f32(p + 4, a.high);
}
LQ_INLINE vfloat vf_load_n(const float *p, size_t n) {
    float lanes[V_LANES] = {0.0f};
    memcpy(lanes, p, n * sizeof *p);
    return vf_load(lanes);
}
LQ_INLINE void vf_store_n(float *p, vfloat a, size_t n) {
    float lanes[V_LANES];
    vf_store(lanes, a);
    memcpy(p, lanes, n * sizeof *p);
}
LQ_INLINE vfloat vf_set1(float x) { return (vfloat){vdupq_n_f32(x), vdupq_n_f32(x)}; }
LQ_INLINE vfloat vf_add(vfloat a, vfloat b) { return (vfloat){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
LQ_INLINE vfloat vf_sub(vfloat a, vfloat b) { return (vfloat){vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
LQ_INLINE vfloat vf_mul(vfloat a, vfloat b) { return (vfloat){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
LQ_INLINE vfloat vf_div(vfloat a, vfloat b) { return (vfloat){vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
LQ_INLINE vfloat vf_neg(vfloat a) { return (vfloat){vnegq_f32(a.low), vnegq_f32(a.high)}; }
LQ_INLINE vfloat vf_abs(vfloat a) { return (vfloat){vabsq_f32(a.low), vabsq_f32(a.high)}; }
/* a where it is larger, else b: b where either is a NaN. */
LQ_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
LQ_INLINE vfloat vf_max(vfloat a, vfloat b) { return (vfloat){larger(a.low, b.low), larger(a.high, b.high)}; }
/* Unlike on x86, a NaN wherever one is. */
LQ_INLINE vfloat vf_min(vfloat a, vfloat b) { return (vfloat){vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)}; }
LQ_INLINE vfloat vf_fma(vfloat a, vfloat b, vfloat c) {
    return (vfloat){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
LQ_INLINE vfloat vf_fnma(vfloat a, vfloat b, vfloat c) {
    return (vfloat){vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
LQ_INLINE vfloat vf_round(vfloat a) { return (vfloat){vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
LQ_INLINE vfloat vf_if_greater(vfloat a, vfloat b, vfloat yes, vfloat no) {
    return (vfloat){vbslq_f32(vcgtq_f32(a.low, b.low), yes.low, no.low),
                    vbslq_f32(vcgtq_f32(a.high, b.high), yes.high, no.high)};
}

/* ---- floats: across the lanes */

LQ_INLINE float vf_sum(vfloat a) { return vaddvq_f32(vaddq_f32(a.low, a.high)); }
LQ_INLINE float vf_largest(vfloat a) { return vmaxvq_f32(vmaxq_f32(a.low, a.high)); }
LQ_INLINE void vf_sums_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    float32x4_t ab = vpaddq_f32(vaddq_f32(a.low, a.high), vaddq_f32(b.low, b.high));
    float32x4_t cd = vpaddq_f32(vaddq_f32(c.low, c.high), vaddq_f32(d.low, d.high));
    vst1q_f32(out, vpaddq_f32(ab, cd));
}
LQ_INLINE void vf_largest_of_4(float out[4], vfloat a, vfloat b, vfloat c, vfloat d) {
    float32x4_t ab = vpmaxq_f32(vmaxq_f32(a.low, a.high), vmaxq_f32(b.low, b.high));
    float32x4_t cd = vpmaxq_f32(vmaxq_f32(c.low, c.high), vmaxq_f32(d.low, d.high));
    vst1q_f32(out, vpmaxq_f32(ab, cd));
}
/* (a, b) -> (a + b, a - b) for neighbours, then pairs, fours. */
LQ_INLINE float32x4_t hadamard_4(float32x4_t x) {
    float32x4_t even = vtrn1q_f32(x, x), odd = vtrn2q_f32(x, x);
    x = vtrn1q_f32(vaddq_f32(even, odd), vsubq_f32(even, odd));
    float32x4_t first = vcombine_f32(vget_low_f32(x), vget_low_f32(x));
    float32x4_t second = vcombine_f32(vget_high_f32(x), vget_high_f32(x));
    return vcombine_f32(vget_low_f32(vaddq_f32(first, second)), vget_low_f32(vsubq_f32(first, second)));
}
LQ_INLINE vfloat vf_hadamard(vfloat x) {
    float32x4_t low = hadamard_4(x.low), high = hadamard_4(x.high);
    return (vfloat){vaddq_f32(low, high), vsubq_f32(low, high)};
}

/* ---- sums of a dot product: one register, so that a tile of 16 sums fits; the low lanes come first */

typedef float32x4_t vsum;

LQ_INLINE vsum vs_zero(void) { return vdupq_n_f32(0.0f); }
LQ_INLINE vsum vs_add_products(vsum sum, vfloat a, vfloat b) {
    return vfmaq_f32(vfmaq_f32(sum, a.low, b.low), a.high, b.high);
}
LQ_INLINE void vs_store_4(float *p, vsum a, vsum b, vsum c, vsum d, float factor, size_t n) {
    float32x4_t sums = vmulq_n_f32(vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)), factor);
    float lanes[4];
    if (n == 4) {
        vst1q_f32(p, sums);
        return;
    }
    vst1q_f32(lanes, sums);
    memcpy(p, lanes, n * sizeof *p);
}

/* ---- conversions */

LQ_INLINE vint vi_as_int(vfloat a) { return (vint){vreinterpretq_s32_f32(a.low), vreinterpretq_s32_f32(a.high)}; }
LQ_INLINE vfloat vf_as_float(vint a) { return (vfloat){vreinterpretq_f32_s32(a.low), vreinterpretq_f32_s32(a.high)}; }
LQ_INLINE vint vi_from_float(vfloat a) { return (vint){vcvtnq_s32_f32(a.low), vcvtnq_s32_f32(a.high)}; }
LQ_INLINE vfloat vf_from_int(vint a) { return (vfloat){vcvtq_f32_s32(a.low), vcvtq_f32_s32(a.high)}; }
LQ_INLINE vfloat vf_from_int8(const int8_t *p) {
    int16x8_t v = vmovl_s8(vld1_s8(p));
    return (vfloat){vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
}
LQ_INLINE vfloat vf_from_uint8(const uint8_t *p) {
    uint16x8_t v = vmovl_u8(vld1_u8(p));
    return (vfloat){vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_high_u16(v))};
}
LQ_INLINE vfloat vf_load_half(const void *p) {
    float16x8_t v = vreinterpretq_f16_u8(vld1q_u8(p));
    return (vfloat){vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
LQ_INLINE vfloat vf_load_half_n(const void *p, size_t n) {
    uint16_t halves[V_LANES] = {0};
    memcpy(halves, p, n * sizeof *halves);
    return vf_load_half(halves);
}
LQ_INLINE void vf_store_half(uint16_t *p, vfloat a) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.low), a.high)));
}
LQ_INLINE void vf_store_half_n(uint16_t *p, vfloat a, size_t n) {
    uint16_t halves[V_LANES];
    vf_store_half(halves, a);
    memcpy(p, halves, n * sizeof *halves);
}

/* ---- integers */

LQ_INLINE vint vi_load(const void *p) {
    const uint8_t *bytes = p;
    return (vint){vreinterpretq_s32_u8(vld1q_u8(bytes)), vreinterpretq_s32_u8(vld1q_u8(bytes + 16))};
}
LQ_INLINE void vi_store(void *p, vint a) {
    uint8_t *bytes = p;
    vst1q_u8(bytes, vreinterpretq_u8_s32(a.low));
    vst1q_u8(bytes + 16, vreinterpretq_u8_s32(a.high));
}
LQ_INLINE void vi_store_int8(int8_t *p, vint a) { vst1_s8(p, vqmovn_s16(vqmovn_high_s32(vqmovn_s32(a.low), a.high))); }
LQ_INLINE vint vi_set1(int32_t x) { return (vint){vdupq_n_s32(x), vdupq_n_s32(x)}; }
LQ_INLINE vint vi_and(vint a, vint b) { return (vint){vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)}; }
LQ_INLINE vint vi_or(vint a, vint b) { return (vint){vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)}; }
LQ_INLINE vint vi_add(vint a, vint b) { return (vint){vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
/* The compiler's own shifts: immediate where n is a constant after inlining, which the intrinsics cannot express. */
LQ_INLINE int32x4_t shifted_right(int32x4_t a, uint32_t n) {
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) >> n);
}
LQ_INLINE int32x4_t shifted_left(int32x4_t a, uint32_t n) {
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) << n);
}
LQ_INLINE vint vi_srl(vint a, uint32_t n) { return (vint){shifted_right(a.low, n), shifted_right(a.high, n)}; }
LQ_INLINE vint vi_sll(vint a, uint32_t n) { return (vint){shifted_left(a.low, n), shifted_left(a.high, n)}; }
LQ_INLINE vint vi_load_twice(const void *p, uint32_t low, uint32_t high) {
    (void)high;
    return vi_srl(vi_load(p), low);
}
LQ_INLINE int32x4_t pack_4(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    int16x8_t ab = vqmovn_high_s32(vqmovn_s32(a), b), cd = vqmovn_high_s32(vqmovn_s32(c), d);
    return vreinterpretq_s32_s8(vqtbl1q_s8(vqmovn_high_s16(vqmovn_s16(ab), cd), order));
}
LQ_INLINE vint vi_pack_int8(vint a, vint b, vint c, vint d) {
    return (vint){pack_4(a.low, b.low, c.low, d.low), pack_4(a.high, b.high, c.high, d.high)};
}
/* a 2^k for integers k; the result must be a normal number. */
LQ_INLINE vfloat vf_scale_2(vfloat a, vfloat k) {
    vint exponent = {vshlq_n_s32(vcvtq_s32_f32(k.low), 23), vshlq_n_s32(vcvtq_s32_f32(k.high), 23)};
    return vf_as_float(vi_add(vi_as_int(a), exponent));
}

/* ---- integer products: bytes u of at most 31 and signed bytes s, four products a lane added up in 32 bits */

LQ_INLINE int32x4_t add_dot_4(int32x4_t sum, int32x4_t u, int32x4_t s) {
    int8x16_t a = vreinterpretq_s8_s32(u), b = vreinterpretq_s8_s32(s);
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sum, a, b);
#else /* pairs of products fit in 16 bits */
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}
LQ_INLINE vint vi_add_dot(vint sum, vint u, vint s) {
    return (vint){add_dot_4(sum.low, u.low, s.low), add_dot_4(sum.high, u.high, s.high)};
}

#endif
