/* attn_avxvnni.c - attention over packed pages and quantized cells with AVX-VNNI: one instruction from codes to 32-bit
 * sums. */
#include "backends/cpu/vnni_256.h"

#include "backends/cpu/attn_256.h"

void lq_kernels_init_avxvnni_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_tiles(kernels);
}
