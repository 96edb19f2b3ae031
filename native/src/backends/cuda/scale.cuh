/* scale.cuh - rows of activations as F16, which ends at 65504: each has a unit. */
#ifndef LQ_CUDA_SCALE_CUH
#define LQ_CUDA_SCALE_CUH

#include "backends/cuda/compat.cuh"

/* Powers of two: a row's numbers times scale are below 2^15, and what they are multiples of is unit = 1 / scale. most:
 * the largest of them. */
LQ_DEVICE void fit_halves(float most, float *scale, float *unit) {
    uint32_t exponent = __float_as_uint(most) >> 23; /* of 2^(exponent - 127); below 15 the scale would overflow */
    if (exponent < 15) exponent = 15;
    *scale = __uint_as_float((268 - exponent) << 23);
    *unit = __uint_as_float((exponent - 14) << 23);
}

#endif
