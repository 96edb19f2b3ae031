/* attn_neon.c - attention over packed pages and quantized cells with NEON as every 64-bit ARM processor has it. */
#include "backends/cpu/kernels/arm/vec_128.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_neon_attn(lq_kernels *kernels) { init_attn(kernels); }
