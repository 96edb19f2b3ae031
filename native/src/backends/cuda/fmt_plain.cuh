/* fmt_plain.cuh - F32, F16 and BF16: no units, a value at a time, multiplied as floats; and for the latter two what
 * tensor cores do with them. */
#ifndef LQ_CUDA_FMT_PLAIN_CUH
#define LQ_CUDA_FMT_PLAIN_CUH

#include "backends/cuda/compat.cuh"

/* What tensor cores that multiply halves need: compute capability, as __CUDA_ARCH__ has it. */
#define LQ_F16_CAPABILITY 750
#define LQ_BF16_CAPABILITY 800

/* mma(c, a, b): c += a b of a whole warp: a 16 x 16 and b 16 x 8 halves, c 16 x 8 floats, in the lanes as PTX's
 * mma.m16n8k16 has them (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"): with g = lane / 4,
 * t = lane % 4, two a word,
 *   a[0]: row g, columns 2 t, 2 t + 1; a[1]: row g + 8; a[2], a[3]: the same rows, columns 2 t + 8, 2 t + 9;
 *   b[0]: column g, rows 2 t, 2 t + 1; b[1]: rows 2 t + 8, 2 t + 9;
 *   c[0], c[1]: row g, columns 2 t, 2 t + 1; c[2], c[3]: row g + 8.
 * Kernels for devices that lack it do nothing, and are not started. */
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
    static constexpr bool scaled = true; /* its range is small */
    static constexpr bool on_tensor_cores = LQ_CODE_FOR(LQ_F16_CAPABILITY);
    LQ_DEVICE float value(uint16_t x) { return half_to_float(x); }
    LQ_DEVICE uint16_t nearest(float x) { return float_to_half(x); }
    LQ_DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750 /* half of the columns each */
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
