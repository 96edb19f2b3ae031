/* attn_avxvnni.c - attention over packed pages and quantized cells with AVX-VNNI: one instruction from codes to 32-bit
 * sums. */
#include "backends/cpu/kernels/x86/vnni_256.h"

LQ_INLINE __m256i add_words(__m256i acc, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(acc, a, b); }

#include "backends/cpu/kernels/x86/attn_256.h"

#include "backends/cpu/kernels/attn_many_int16.h"

void lq_kernels_init_avxvnni_attn(lq_kernels *kernels) {
    init_attn(kernels);
    init_many(kernels);
    init_many_words(kernels);
}
