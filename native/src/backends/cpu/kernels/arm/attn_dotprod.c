/* attn_dotprod.c - attention over packed pages with the dot product extension: one instruction from codes to sums. */
#include "backends/cpu/kernels/arm/attn_neon.h"

#include "backends/cpu/kernels/attn_many_float.h"

void lq_kernels_init_dotprod_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_float(kernels);
}
