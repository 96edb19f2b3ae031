/* attn_avx2.c - attention over packed pages and quantized cells with AVX2 and FMA. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_avx2_attn(lq_kernels *kernels) { init_attn(kernels); }
