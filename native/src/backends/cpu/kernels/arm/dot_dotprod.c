/* dot_dotprod.c - integer products with the dot product extension (Armv8.2): one instruction from bytes to 32-bit sums.
 */
#include "backends/cpu/kernels/arm/dot_neon.h"

LQ_NEON_TYPES_OF_32(LQ_NEON_MATMUL)
LQ_NEON_TYPES_OF_16(LQ_NEON_MATMUL)

void lq_kernels_init_dotprod_dot(lq_kernels *kernels) {
    LQ_NEON_TYPES_OF_32(LQ_NEON_ENTRY)
    LQ_NEON_TYPES_OF_16(LQ_NEON_ENTRY)
}
