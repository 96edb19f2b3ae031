/* fmt_plain.cuh - F32, F16 and BF16 weights. They are read one value at a time and multiplied as floats, or, F16 and
 * BF16, multiplied by tensor cores. */
#ifndef LQ_CUDA_FMT_PLAIN_CUH
#define LQ_CUDA_FMT_PLAIN_CUH

#include "backends/cuda/compat.cuh"

/* Least compute capability, as __CUDA_ARCH__ counts it, whose tensor cores multiply the type. */
#define LQ_F16_CAPABILITY 750
#define LQ_BF16_CAPABILITY 800

/* mma(c, a, b): c += a b, computed by a whole warp: a is 16 x 16 and b 16 x 8 halves, c 16 x 8 floats. The lanes hold
 * the fragments of PTX's mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"), two
 * halves in a word: with g = lane / 4, t = lane % 4,
 *   a[0]: row g, columns 2 t, 2 t + 1; a[1]: row g + 8; a[2], a[3]: the same rows, columns 2 t + 8, 2 t + 9;
 *   b[0]: column g, rows 2 t, 2 t + 1; b[1]: rows 2 t + 8, 2 t + 9;
 *   c[0], c[1]: row g, columns 2 t, 2 t + 1; c[2], c[3]: row g + 8.
 * In code for devices without it mma() is empty and the kernels that use it return at once; they are never started. */
#ifdef __CUDA_ARCH__
#define LQ_CODE_FOR(capability) (__CUDA_ARCH__ >= (capability))
#else
#define LQ_CODE_FOR(capability) true
#endif

struct fmt_f32 {
    typedef float item;
    LQ_DEVICE float value(float x) { return x; }
};

struct fmt_f16 {
    typedef uint16_t item;
    static constexpr bool scaled = true; /* F16 ends at 65504, so each row gets a scale (scale.cuh) */
    static constexpr bool on_tensor_cores = LQ_CODE_FOR(LQ_F16_CAPABILITY);
    LQ_DEVICE float value(uint16_t x) { return half_to_float(x); }
    LQ_DEVICE uint16_t nearest(float x) { return float_to_half(x); }
    LQ_DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750 /* each does half of the sum */
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(b[0]));
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#elif !defined(__CUDACC__)
        lq_emulated_mma_halves(c, a, b, value);
#endif
    }
};

struct fmt_bf16 {
    typedef uint16_t item;
    static constexpr bool scaled = false;
    static constexpr bool on_tensor_cores = LQ_CODE_FOR(LQ_BF16_CAPABILITY);
    LQ_DEVICE float value(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }
    LQ_DEVICE uint16_t nearest(float x) { /* to nearest, ties to even; a NaN stays one */
        uint32_t bits = __float_as_uint(x);
        if (x != x) return (uint16_t)(bits >> 16 | 0x40);
        return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    LQ_DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__CUDACC__)
        lq_emulated_mma_halves(c, a, b, value);
#endif
    }
};

#endif
