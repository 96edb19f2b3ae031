/* attn_avx512vnni.c - attention over packed pages with AVX-512 VNNI: one instruction from codes to 32-bit sums. */
#include <immintrin.h>

/* Written out, because GCC 12 copies every sum before and after the intrinsic where sums live through a loop: a third
 * of the time of a page. */
static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

static inline __m512i add_words(__m512i acc, __m512i a, __m512i b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

#include "backends/cpu/kernels/x86/attn_512.h"

#include "backends/cpu/kernels/attn_many_int16.h"

void lq_kernels_init_avx512vnni_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_words(kernels);
}
