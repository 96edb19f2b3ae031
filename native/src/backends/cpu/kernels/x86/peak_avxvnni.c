/* peak_avxvnni.c - as many 8-bit products as AVX-VNNI can do. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/x86/peak.h"

void lq_kernels_init_avxvnni_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
