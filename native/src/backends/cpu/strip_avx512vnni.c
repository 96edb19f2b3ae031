/* strip_avx512vnni.c - products with many activation rows, with AVX-512 VNNI: one instruction a step. */
#include "backends/cpu/strip_512.h"

#define LQ_STRIP_VECTORS 2
#define LQ_STRIP_X 4
#define LQ_STRIP_SIGNED 0
#define LQ_SUM_STEPS(max) 8

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return _mm512_dpbusd_epi32(sum, u, s); }
LQ_INLINE vint sum_total(vint sum) { return sum; }
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) {
    (void)w, (void)s; /* there are none */
    return sum;
}

#include "backends/cpu/strip_tile.h"

void lq_kernels_init_avx512vnni_strip(lq_kernels *kernels) { set_many_products(kernels); }
