/* peak_avx512vnni.c - as many 8-bit products as AVX-512 VNNI can do. */
#include <immintrin.h>

static inline __m512i add_dot(__m512i acc, __m512i u, __m512i s) { return _mm512_dpbusd_epi32(acc, u, s); }

#include "backends/cpu/kernels/x86/peak_512.h"

void lq_kernels_init_avx512vnni_peak(lq_kernels *kernels) { kernels->int8_peak = int8_peak; }
