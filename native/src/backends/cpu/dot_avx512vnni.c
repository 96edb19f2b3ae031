/* dot_avx512vnni.c - avx512vnni kernels. */
#include "backends/cpu/kernels.h"

void lq_kernels_init_avx512vnni_dot(lq_kernels *kernels) { kernels->level = "avx512vnni"; }
