/* attn_f16_avx512.c - attention over f16 keys and values with AVX-512. */
#include "backends/cpu/kernels/x86/vec_512.h"

#define TILE_QUERIES 5
#define TILE_VECTORS 4
#include "backends/cpu/kernels/attn_f16.h"

void lq_kernels_init_avx512_attn_f16(lq_kernels *kernels) { init_attn_f16(kernels); }
