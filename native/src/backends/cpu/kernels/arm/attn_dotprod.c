/* attn_dotprod.c - attention over packed pages and quantized cells with the dot product extension. */
#include "backends/cpu/kernels/arm/vec_128.h"

#include "backends/cpu/kernels/attn.h"

void lq_kernels_init_dotprod_attn(lq_kernels *kernels) { init_attn(kernels); }
