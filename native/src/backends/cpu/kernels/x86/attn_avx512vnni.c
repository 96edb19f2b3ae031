/* attn_avx512vnni.c - attention over packed pages and quantized cells with AVX-512 VNNI. */
#define LQ_DOT_ASM /* vec_512.h says why */
#include "backends/cpu/kernels/x86/vec_512.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_avx512vnni_attn(lq_kernels *kernels) { init_attn(kernels); }
