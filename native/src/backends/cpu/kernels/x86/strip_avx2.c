/* strip_avx2.c - products with many activation rows, with AVX2: sums of 16 bits for as many steps as fit. */
#include "backends/cpu/kernels/x86/strip_256.h"
#include "backends/cpu/kernels/x86/strip_int16.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 3

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, s)); }
LQ_INLINE vint sum_total(vint sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

/* |w| times s with the sign of w. */
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) {
    return _mm256_add_epi32(sum, sum_total(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(s, w))));
}

#define LQ_FLOAT_X 4
#include "backends/cpu/kernels/strip_tile.h"

#include "backends/cpu/kernels/strip_float.h"

void lq_kernels_init_avx2_strip(lq_kernels *kernels) {
    set_many_products(kernels);
    kernels->matmul_many_f32 = many_f32;
}
