/* strip_avx512.c - products with many activation rows, with AVX-512: sums of 16 bits for as many steps as fit. */
#include "backends/cpu/kernels/x86/strip_512.h"
#include "backends/cpu/kernels/x86/strip_int16.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 4

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(u, s)); }
LQ_INLINE vint sum_total(vint sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }

/* |w| times s with the sign of w. */
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) {
    vint turned = _mm512_mask_sub_epi8(s, _mm512_movepi8_mask(w), _mm512_setzero_si512(), s);
    return _mm512_add_epi32(sum, sum_total(_mm512_maddubs_epi16(_mm512_abs_epi8(w), turned)));
}

#define LQ_FLOAT_X 6
#include "backends/cpu/kernels/strip_tile.h"

#include "backends/cpu/kernels/strip_float.h"

void lq_kernels_init_avx512_strip(lq_kernels *kernels) {
    set_many_products(kernels);
    kernels->matmul_many_f32 = many_f32;
}
