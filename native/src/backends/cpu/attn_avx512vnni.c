/* attn_avx512vnni.c - attention over packed pages with AVX-512 VNNI: one instruction from codes to 32-bit sums. */
#include <immintrin.h>

static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) { return _mm512_dpbusd_epi32(acc, u, s); }

#include "backends/cpu/attn_avx512.h"

void lq_kernels_init_avx512vnni_attn(lq_kernels *kernels) { init_attn(kernels); }
