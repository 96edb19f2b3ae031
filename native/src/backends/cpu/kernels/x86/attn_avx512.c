/* attn_avx512.c - attention over packed pages and quantized cells with AVX-512. */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_avx512_attn(lq_kernels *kernels) { init_attn(kernels); }
