/* peak_avx512.c - as many 8-bit products as AVX-512 without VNNI can do. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/x86/peak.h"

void lq_kernels_init_avx512_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
