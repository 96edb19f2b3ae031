/* fmt_plain.cuh - F32, F16 and BF16: no units, a value at a time, multiplied as floats. */
#ifndef LQ_CUDA_FMT_PLAIN_CUH
#define LQ_CUDA_FMT_PLAIN_CUH

#include "backends/cuda/compat.cuh"

struct fmt_f32 {
    typedef float item;
    LQ_DEVICE float value(float x) { return x; }
};

struct fmt_f16 {
    typedef uint16_t item;
    LQ_DEVICE float value(uint16_t x) { return half_to_float(x); }
};

struct fmt_bf16 {
    typedef uint16_t item;
    LQ_DEVICE float value(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }
};

#endif
