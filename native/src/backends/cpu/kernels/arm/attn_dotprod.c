/* attn_dotprod.c - attention over packed pages and quantized cells with the dot product extension. */
#include "backends/cpu/kernels/arm/vec_128.h"

#include "backends/cpu/kernels/attn_page.h"

#include "backends/cpu/kernels/attn_many.h"

#include "backends/cpu/kernels/attn_many_float.h"

void lq_kernels_init_dotprod_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_float(kernels);
}
