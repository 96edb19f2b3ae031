/* attn_avxvnni.c - attention over packed pages and quantized cells with AVX-VNNI. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_avxvnni_attn(lq_kernels *kernels) { init_attn(kernels); }
