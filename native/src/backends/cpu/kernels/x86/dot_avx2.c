/* dot_avx2.c - products with AVX2 and FMA: packed weights with int8 activations, and plain floats. */
#include "backends/cpu/kernels/x86/dot_256.h"

/* ---- floats */

LQ_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_hadd_ps(s, s);
    return _mm_cvtss_f32(_mm_hadd_ps(s, s));
}

static float dot_f32(const float *a, const float *b, size_t n) {
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j), acc[j]);
    for (; i + 8 <= n; i += 8) acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static float dot_f16_f32(const uint16_t *a, const float *b, size_t n) {
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm256_fmadd_ps(_mm256_cvtph_ps(load128(a + i + 8 * j)), _mm256_loadu_ps(b + i + 8 * j), acc[j]);
    for (; i + 8 <= n; i += 8)
        acc[0] = _mm256_fmadd_ps(_mm256_cvtph_ps(load128(a + i)), _mm256_loadu_ps(b + i), acc[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (; i < n; i++) sum += _cvtsh_ss(a[i]) * b[i];
    return sum;
}

LQ_INLINE __m256 widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n) {
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm256_fmadd_ps(widen(load128(a + i + 8 * j)), _mm256_loadu_ps(b + i + 8 * j), acc[j]);
    for (; i + 8 <= n; i += 8) acc[0] = _mm256_fmadd_ps(widen(load128(a + i)), _mm256_loadu_ps(b + i), acc[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])));
    for (; i < n; i++)
        sum += _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int32_t)((uint32_t)a[i] << 16)))) * b[i];
    return sum;
}

static __m256i round_to_int(__m256 x, __m256 inverse, __m256 any) {
    /* this order of operands turns a NaN into -127, as the scalar form does */
    __m256 q = _mm256_max_ps(_mm256_mul_ps(x, inverse), _mm256_set1_ps(-127.0f));
    return _mm256_cvtps_epi32(_mm256_and_ps(_mm256_min_ps(q, _mm256_set1_ps(127.0f)), any));
}

static void quantize_q8(lq_q8_row row, const float *x, size_t n) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (size_t b = 0; b < n / LQ_Q8_BLOCK; b++, x += LQ_Q8_BLOCK) {
        __m256 v[4], top = _mm256_setzero_ps();
        for (int j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(x + 8 * j);
            top = _mm256_max_ps(_mm256_and_ps(v[j], no_sign), top); /* a NaN leaves top */
        }
        __m128 top4 = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
        top4 = _mm_max_ps(top4, _mm_movehl_ps(top4, top4));
        float largest = _mm_cvtss_f32(_mm_max_ss(top4, _mm_movehdup_ps(top4)));
        __m256 any = _mm256_cmp_ps(_mm256_set1_ps(largest), _mm256_set1_ps(LQ_Q8_LEAST), _CMP_GE_OQ);
        __m256 inverse = _mm256_set1_ps(127.0f / largest);
        __m256i q0 = _mm256_packs_epi32(round_to_int(v[0], inverse, any), round_to_int(v[1], inverse, any));
        __m256i q1 = _mm256_packs_epi32(round_to_int(v[2], inverse, any), round_to_int(v[3], inverse, any));
        q0 = _mm256_permute4x64_epi64(q0, 0xd8);
        q1 = _mm256_permute4x64_epi64(q1, 0xd8);
        __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi16(q0, q1), 0xd8);
        _mm256_storeu_si256((__m256i *)(row.q + b * LQ_Q8_BLOCK), q);
        row.d[b] = largest >= LQ_Q8_LEAST ? largest * (1.0f / 127.0f) : 0.0f;
        /* sums of q0 and of q1, 16 values each: pairs, then a tree */
        __m256i s = _mm256_hadd_epi16(q0, q1);
        __m128i s8 = _mm_hadd_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        s8 = _mm_madd_epi16(s8, _mm_set1_epi16(1)); /* q0, q1, q0, q1 */
        s8 = _mm_add_epi32(s8, _mm_shuffle_epi32(s8, 0x4e));
        row.sums[2 * b] = (int16_t)_mm_cvtsi128_si32(s8);
        row.sums[2 * b + 1] = (int16_t)_mm_extract_epi32(s8, 1);
    }
}

void lq_kernels_init_avx2_dot(lq_kernels *kernels) {
    kernels->quantize_q8 = quantize_q8;
    kernels->dot_f32 = dot_f32;
    kernels->dot_f16_f32 = dot_f16_f32;
    kernels->dot_bf16_f32 = dot_bf16_f32;
    lq_kernels_init_avx2_dot_signed(kernels);
    lq_kernels_init_avx2_dot_grid(kernels);
    set_products(kernels);
}
