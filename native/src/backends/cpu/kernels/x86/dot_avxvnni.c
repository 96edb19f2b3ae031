/* dot_avxvnni.c - integer products with AVX-VNNI, of processors that have VNNI without AVX-512. */
#include "backends/cpu/kernels/x86/dot_256.h"

void lq_kernels_init_avxvnni_dot(lq_kernels *kernels) { set_products(kernels); }
