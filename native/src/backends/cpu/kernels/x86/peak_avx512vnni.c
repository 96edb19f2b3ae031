/* peak_avx512vnni.c - as many 8-bit products as AVX-512 VNNI can do. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/x86/peak.h"

void lq_kernels_init_avx512vnni_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
