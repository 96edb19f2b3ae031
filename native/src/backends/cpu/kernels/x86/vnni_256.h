/* vnni_256.h - what words_256.h has, with AVX-VNNI: one instruction from bytes to 32-bit sums, of any size of u. */
#ifndef LQ_CPU_VNNI_256_H
#define LQ_CPU_VNNI_256_H

#include <immintrin.h>

#include "backends/cpu/kernels/simd.h"

LQ_INLINE __m256i add_dot(__m256i acc, __m256i u, __m256i s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }

LQ_INLINE __m256i dot4(__m256i u, __m256i s) { return add_dot(_mm256_setzero_si256(), u, s); }

LQ_INLINE __m256i dot8(__m256i u0, __m256i s0, __m256i u1, __m256i s1) { return add_dot(dot4(u0, s0), u1, s1); }

#endif
