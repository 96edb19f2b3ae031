/* attn_avx512.c - attention over packed pages and quantized cells with AVX-512. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/attn_page.h"

#include "backends/cpu/kernels/attn_many.h"

#include "backends/cpu/kernels/attn_many_float.h"

void lq_kernels_init_avx512_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_float(kernels);
}
