/* attn_f16_avx2.c - attention over f16 keys and values with AVX2. */
#include "backends/cpu/kernels/x86/vec_256.h"

#define TILE_QUERIES 3
#define TILE_VECTORS 4
#include "backends/cpu/kernels/attn_f16.h"

void lq_kernels_init_avx2_attn_f16(lq_kernels *kernels) { init_attn_f16(kernels); }
