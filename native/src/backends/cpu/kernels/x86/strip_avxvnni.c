/* strip_avxvnni.c - products with many activation rows, with AVX-VNNI. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/strip_vnni.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 3
#include "backends/cpu/kernels/strip_tile.h"

void lq_kernels_init_avxvnni_strip(lq_kernels *kernels) { set_many_products(kernels); }
