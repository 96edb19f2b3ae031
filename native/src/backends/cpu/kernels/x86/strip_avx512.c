/* strip_avx512.c - products with many activation rows, with AVX-512. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/strip_int16.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 4
#define LQ_FLOAT_X 6
#include "backends/cpu/kernels/strip_tile.h"

#include "backends/cpu/kernels/strip_float.h"

void lq_kernels_init_avx512_strip(lq_kernels *kernels) {
    set_many_products(kernels);
    kernels->matmul_many_f32 = many_f32;
}
