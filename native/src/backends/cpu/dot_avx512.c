/* dot_avx512.c - avx512 kernels. */
#include "backends/cpu/kernels.h"

void lq_kernels_init_avx512_dot(lq_kernels *kernels) { kernels->level = "avx512"; }
