/* attn_avx512.c - attention over packed pages and quantized cells with AVX-512. */
#include <immintrin.h>

/* Codes are at most 31: two products of 16 bits do not overflow. */
static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
}

#include "backends/cpu/kernels/x86/attn_512.h"

#include "backends/cpu/kernels/attn_many_float.h"

void lq_kernels_init_avx512_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_float(kernels);
}
