/* attn_avxvnni.c - attention over packed pages and quantized cells with AVX-VNNI. */
#include "backends/cpu/kernels/x86/vec_256.h"

#include "backends/cpu/kernels/attn_page.h"

#include "backends/cpu/kernels/attn_many.h"

#include "backends/cpu/kernels/attn_many_int16.h"

void lq_kernels_init_avxvnni_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_int16(kernels);
}
