/* strip_avx512vnni.c - products with many activation rows, with AVX-512 VNNI. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/strip_vnni.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 4
#include "backends/cpu/kernels/strip_tile.h"

void lq_kernels_init_avx512vnni_strip(lq_kernels *kernels) { set_many_products(kernels); }
