/* scale.cuh - scales rows of activations for F16, whose largest number is 65504. */
#ifndef LQ_CUDA_SCALE_CUH
#define LQ_CUDA_SCALE_CUH

#include "backends/cuda/compat.cuh"

/* Finds two powers of two for a row whose largest magnitude is most: its numbers times scale are below 2^15, and
 * unit = 1 / scale. */
LQ_DEVICE void fit_halves(float most, float *scale, float *unit) {
    uint32_t exponent = __float_as_uint(most) >> 23; /* below 15, unit would be 0 */
    if (exponent < 15) exponent = 15;
    *scale = __uint_as_float((268 - exponent) << 23);
    *unit = __uint_as_float((exponent - 14) << 23);
}

#endif
