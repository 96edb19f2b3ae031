/* ptx.h - the functions that the output of tools/codegen/ptx_to_cpp.py calls: PTX's instructions for which C has no
 * operator, and its memory (PTX ISA 9.0). Registers are unsigned integers, 32-bit ones also for floats. Shared memory
 * has addresses of its own, from LQ_PTX_SHARED on; all other memory has the host's addresses.
 *
 * It checks that every access is on a multiple of its size, that none is outside of shared memory, and that all lanes
 * take part in an instruction that needs all. */
#ifndef LQ_EMULATED_PTX_H
#define LQ_EMULATED_PTX_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <vector_types.h>

#include <limits>

#include "../emulation.h"
#include "../warp_mma.h"

typedef int8_t s8;
typedef uint8_t u8;
typedef int16_t s16;
typedef uint16_t u16;
typedef int32_t s32;
typedef uint32_t u32;
typedef int64_t s64;
typedef uint64_t u64;

#define LQ_PTX_SHARED 64u /* the first address of shared memory; not 0, which is NULL */

/* An entry of the table of kernels at the end of a generated file. */
struct lq_ptx_kernel {
    const char *name;
    void (*run)(void *const *parameters);
    unsigned max_threads;     /* .maxntid; 0: not given */
    unsigned shared_bytes;    /* static; a launch may add more */
    unsigned parameter_bytes; /* of all parameters */
};

template <class To, class From> static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline float f32(u32 bits) { return bits_as<float>(bits); }
static inline u32 b32(float value) { return bits_as<u32>(value); }

/* ---- memory */

template <class T> static inline T load(u64 address) {
    if (address % sizeof(T) != 0) lq_emulated_fail("a load that is not on a multiple of its size");
    T value;
    memcpy(&value, (const void *)address, sizeof value);
    return value;
}
template <class T> static inline void store(u64 address, T value) {
    if (address % sizeof(T) != 0) lq_emulated_fail("a store that is not on a multiple of its size");
    memcpy((void *)address, &value, sizeof value);
}
static inline u64 whole(u64 address, unsigned n_bytes) { /* checks a vector's address */
    if (address % n_bytes != 0) lq_emulated_fail("a vector that is not on a multiple of its size");
    return address;
}
static inline u64 shared_at(const lq_emulated_thread *self, u64 address, unsigned n_bytes) {
    if (address < LQ_PTX_SHARED || address - LQ_PTX_SHARED + n_bytes > self->shared_bytes)
        lq_emulated_fail("an access outside of shared memory");
    return (u64)(uintptr_t)self->shared + (address - LQ_PTX_SHARED);
}

/* ---- integers */

template <class T> static inline T shift_left(T a, u32 n) { return n >= 8 * sizeof a ? 0 : (T)(a << n); }
template <class T> static inline T shift_right(T a, u32 n) { /* signed types keep the sign */
    if (n < 8 * sizeof a) return (T)(a >> n);
    return a < 0 ? (T)-1 : (T)0;
}
template <class T> static inline T quotient(T a, T b) {
    if (b == 0) lq_emulated_fail("a division by 0");
    return (T)(a / b);
}
template <class T> static inline T remainder_of(T a, T b) {
    if (b == 0) lq_emulated_fail("a division by 0");
    return (T)(a % b);
}
template <class T> static inline T bit_field_insert(T a, T b, u32 start, u32 length) {
    unsigned n = 8 * sizeof a;
    start &= 255, length &= 255;
    if (start >= n || length == 0) return b;
    T ones = length >= n ? (T) ~(T)0 : (T)(((T)1 << length) - 1);
    return (T)((b & ~(T)(ones << start)) | (T)((a & ones) << start));
}
static inline u32 permute(u32 a, u32 b, u32 selection) {
    u64 both = (u64)b << 32 | a;
    u32 out = 0;
    for (unsigned i = 0; i < 4; i++) {
        u32 choice = selection >> 4 * i & 15, byte = (u32)(both >> 8 * (choice & 7)) & 255;
        if ((choice & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
        out |= byte << 8 * i;
    }
    return out;
}
static inline u32 dot4_signed(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 4; i++) c += (u32)((s32)(s8)(a >> 8 * i) * (s32)(s8)(b >> 8 * i));
    return c;
}

/* ---- floats: round to nearest, ties to even, unless noted */

static inline float flushed(float x) { return fabsf(x) < std::numeric_limits<float>::min() ? copysignf(0.0f, x) : x; }
static inline float fma_down(float a, float b, float c) {
    long double exact = (long double)((double)a * b) + c;
    float out = (float)exact;
    return out > exact ? nextafterf(out, -INFINITY) : out;
}
static inline float saturated(float x) { return x >= 0.0f ? (x <= 1.0f ? x : 1.0f) : 0.0f; } /* NaN becomes 0 */
template <class T> static inline T to_integer(float x) {
    if (x != x) return 0;
    if (x <= (float)std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
    if (x >= (float)std::numeric_limits<T>::max()) return std::numeric_limits<T>::max();
    return (T)x;
}
static inline u16 f16_bits(float x) { return bits_as<u16>((_Float16)x); }
static inline float f16_value(u16 bits) { return (float)bits_as<_Float16>(bits); }
static inline float bf16_value(u16 bits) { return f32((u32)bits << 16); }

/* ---- warps */

static inline u32 lane() { return lq_emulated_lane(); }
static inline void whole_warp(u32 mask) {
    if (mask != ~0u) lq_emulated_fail("a warp operation that is not of all lanes");
}
static inline u32 shuffle(u32 value, u32 source, u32 clamp, u32 mask) {
    whole_warp(mask);
    if (clamp != 31) lq_emulated_fail("a shuffle of parts of a warp");
    return (u32)lq_emulated_gather(value)[source & 31];
}

/* warp_mma.h computes in place; these have separate registers for the result. */
template <class Value>
static inline void mma_halves(u32 d[4], const u32 a[4], const u32 b[2], const u32 c[4], Value value) {
    float sums[4];
    memcpy(sums, c, sizeof sums);
    lq_emulated_mma_halves(sums, a, b, value);
    memcpy(d, sums, sizeof sums);
}
static inline void mma_f16(u32 d[4], const u32 a[4], const u32 b[2], const u32 c[4]) {
    mma_halves(d, a, b, c, f16_value);
}
static inline void mma_bf16(u32 d[4], const u32 a[4], const u32 b[2], const u32 c[4]) {
    mma_halves(d, a, b, c, bf16_value);
}
/* mma.m16n8k8 is the first half of mma.m16n8k16 along k. */
static inline void mma_f16_8(u32 d[4], const u32 a[2], const u32 b[1], const u32 c[4]) {
    u32 more_a[4] = {a[0], a[1], 0, 0}, more_b[2] = {b[0], 0};
    mma_f16(d, more_a, more_b, c);
}
static inline void mma_s8(u32 d[4], const u32 a[2], const u32 b[1], const u32 c[4]) {
    s32 left[2] = {(s32)a[0], (s32)a[1]}, sums[4];
    memcpy(sums, c, sizeof sums);
    lq_emulated_mma_bytes(sums, left, (s32)b[0]);
    memcpy(d, sums, sizeof sums);
}
/* mma.m8n8k16 is the first 8 rows of mma.m16n8k16. */
static inline void mma_s8_8(u32 d[2], const u32 a[1], const u32 b[1], const u32 c[2]) {
    u32 more_a[2] = {a[0], 0}, more_c[4] = {c[0], c[1], 0, 0}, more_d[4];
    mma_s8(more_d, more_a, b, more_c);
    d[0] = more_d[0], d[1] = more_d[1];
}

#endif
