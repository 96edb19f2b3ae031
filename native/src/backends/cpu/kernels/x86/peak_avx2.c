/* peak_avx2.c - as many 8-bit products as AVX2 can do. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/x86/peak.h"

void lq_kernels_init_avx2_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
