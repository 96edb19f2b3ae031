/* half.h - IEEE 754 binary16 <-> float, round to nearest even, in portable C (the specification of the SIMD forms). */
#ifndef LQ_CORE_HALF_H
#define LQ_CORE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lq_half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t bits;
    float value;
    if (exponent == 31) { /* infinity, NaN (made quiet, as hardware does) */
        bits = sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
    } else { /* zero and subnormals: mantissa * 2^-24 is exact in float */
        value = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t lq_float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((bits >> 13) & 0x3ffu)); /* NaN */
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                          /* rounds to infinity */
    if (bits < 0x38800000u) { /* subnormal: adding 0.5 makes the FPU round at 2^-24 */
        float magic;
        memcpy(&magic, &bits, 4);
        magic += 0.5f;
        memcpy(&bits, &magic, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + ((bits >> 13) & 1u);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

#endif
