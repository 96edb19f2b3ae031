/* attn_f16_neon.c - attention over f16 keys and values with NEON. */
#include "backends/cpu/kernels/arm/vec_128.h"

#define TILE_QUERIES 4
#define TILE_VECTORS 2
#include "backends/cpu/kernels/attn_f16.h"

void lq_kernels_init_neon_attn_f16(lq_kernels *kernels) { init_attn_f16(kernels); }
