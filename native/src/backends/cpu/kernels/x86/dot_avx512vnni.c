/* dot_avx512vnni.c - integer products with AVX-512 VNNI: one instruction from bytes to 32-bit sums. */
#include "backends/cpu/kernels/x86/dot_512.h"

void lq_kernels_init_avx512vnni_dot(lq_kernels *kernels) { set_products(kernels); }
