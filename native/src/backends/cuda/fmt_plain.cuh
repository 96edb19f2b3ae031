/* fmt_plain.cuh - F32, F16 and BF16: no units, a value at a time, multiplied as floats; and for the latter two what
 * tensor cores do with them. */
#ifndef LQ_CUDA_FMT_PLAIN_CUH
#define LQ_CUDA_FMT_PLAIN_CUH

#include "backends/cuda/compat.cuh"

/* c += a b of a whole warp: a 16 x 16 and b 16 x 8 halves, c 16 x 8 floats, in the lanes as PTX's mma.m16n8k16 has them
 * (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"): with g = lane / 4, t = lane % 4, two a word,
 *   a[0]: row g, columns 2 t, 2 t + 1; a[1]: row g + 8; a[2], a[3]: the same rows, columns 2 t + 8, 2 t + 9;
 *   b[0]: column g, rows 2 t, 2 t + 1; b[1]: rows 2 t + 8, 2 t + 9;
 *   c[0], c[1]: row g, columns 2 t, 2 t + 1; c[2], c[3]: row g + 8.
 * In emulation, and for devices that lack it (which are never asked), each lane collects what it needs. */
template <class F> LQ_DEVICE void mma_plain(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    int lane = (int)(threadIdx.x % LQ_WARP), row = lane / 4 * 4, column = lane % 4 * 2 * 4;
    for (int k = 0; k < 4; k++) {
        for (int half = 0; half < 2; half++) {
            uint32_t upper = __shfl_sync(LQ_ALL_LANES, a[2 * half], row + k);
            uint32_t lower = __shfl_sync(LQ_ALL_LANES, a[2 * half + 1], row + k);
            uint32_t left = __shfl_sync(LQ_ALL_LANES, b[half], column + k);
            uint32_t right = __shfl_sync(LQ_ALL_LANES, b[half], column + 4 + k);
            for (int i = 0; i < 32; i += 16) {
                float top = F::value((uint16_t)(upper >> i)), bottom = F::value((uint16_t)(lower >> i));
                float x = F::value((uint16_t)(left >> i)), y = F::value((uint16_t)(right >> i));
                c[0] += top * x, c[1] += top * y, c[2] += bottom * x, c[3] += bottom * y;
            }
        }
    }
}

struct fmt_f32 {
    typedef float item;
    LQ_DEVICE float value(float x) { return x; }
};

struct fmt_f16 {
    typedef uint16_t item;
    static const bool scaled = true; /* its range is small */
    LQ_DEVICE float value(uint16_t x) { return half_to_float(x); }
    LQ_DEVICE uint16_t nearest(float x) { return float_to_half(x); }
    LQ_DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
        mma_plain<fmt_f16>(c, a, b);
#endif
    }
};

struct fmt_bf16 {
    typedef uint16_t item;
    static const bool scaled = false;
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
#else
        mma_plain<fmt_bf16>(c, a, b);
#endif
    }
};

#endif
