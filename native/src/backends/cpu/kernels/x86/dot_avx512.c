/* dot_avx512.c - products with AVX-512 (F, BW, VL, DQ): packed weights with int8 activations, and plain floats. */
#include "backends/cpu/kernels/x86/dot_512.h"

LQ_INLINE __m512 load_half(const uint16_t *p) { return _mm512_cvtph_ps(load256(p)); }

static float dot_f32(const float *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        acc[0] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, a + i), _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

static float dot_f16_f32(const uint16_t *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(load_half(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 halves = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, a + i));
        acc[0] = _mm512_fmadd_ps(halves, _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

LQ_INLINE __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n) {
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++)
            acc[j] = _mm512_fmadd_ps(widen(load256(a + i + 16 * j)), _mm512_loadu_ps(b + i + 16 * j), acc[j]);
    for (; i < n; i += 16) {
        __mmask16 lanes = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 values = widen(_mm256_maskz_loadu_epi16(lanes, a + i));
        acc[0] = _mm512_fmadd_ps(values, _mm512_maskz_loadu_ps(lanes, b + i), acc[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])));
}

/* Finds the largest magnitude of each of four blocks of 32 values, and puts it into the four lanes of a quarter. Passes
 * over NaNs. */
LQ_INLINE __m512 largest_of_four(const __m512 v[8]) {
    __m512 top[4];
    for (int i = 0; i < 4; i++) { /* of a NaN and a number, max takes the second operand */
        __m512 first = _mm512_max_ps(_mm512_abs_ps(v[2 * i]), _mm512_setzero_ps());
        top[i] = _mm512_max_ps(_mm512_abs_ps(v[2 * i + 1]), first);
    }
    for (int i = 0; i < 4; i += 2)
        top[i] = _mm512_max_ps(_mm512_shuffle_f32x4(top[i], top[i + 1], 0x44),
                               _mm512_shuffle_f32x4(top[i], top[i + 1], 0xee));
    __m512 all = _mm512_max_ps(_mm512_shuffle_f32x4(top[0], top[2], 0x88), _mm512_shuffle_f32x4(top[0], top[2], 0xdd));
    all = _mm512_max_ps(all, _mm512_permute_ps(all, 0x4e));
    return _mm512_max_ps(all, _mm512_permute_ps(all, 0xb1));
}

/* Multiplies 16 values with the scale and rounds them, within -127..127. This order of operands turns a NaN into -127,
 * as the scalar form does. */
LQ_INLINE __m512i round_to_int(__m512 v, __m512 scale) {
    v = _mm512_max_ps(_mm512_mul_ps(v, scale), _mm512_set1_ps(-127.0f));
    return _mm512_cvtps_epi32(_mm512_min_ps(v, _mm512_set1_ps(127.0f)));
}

/* Quantizes four blocks at a time, which share the work that a block needs once. */
static void quantize_q8(lq_q8_row row, const float *x, size_t n) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i each_fourth = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    for (size_t b = 0, n_blocks = n / LQ_Q8_BLOCK; b < n_blocks; b += 4, x += 4 * LQ_Q8_BLOCK) {
        size_t n_real = n_blocks - b < 4 ? n_blocks - b : 4;
        __m512 v[8];
        for (size_t i = 0; i < 8; i++) v[i] = _mm512_maskz_loadu_ps(i / 2 < n_real ? 0xffff : 0, x + 16 * i);
        __m512 largest = largest_of_four(v);
        __mmask16 any = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(LQ_Q8_LEAST), _CMP_GE_OQ);
        __m512 inverse = _mm512_maskz_div_ps(any, _mm512_set1_ps(127.0f), largest);
        __m512 d = _mm512_maskz_mul_ps(any, largest, _mm512_set1_ps(1.0f / 127.0f));
        _mm_mask_storeu_ps(row.d + b, (__mmask8)((1u << n_real) - 1),
                           _mm512_castps512_ps128(_mm512_permutexvar_ps(each_fourth, d)));
        const __m512 scales[4] = {
            _mm512_shuffle_f32x4(inverse, inverse, 0x00), _mm512_shuffle_f32x4(inverse, inverse, 0x55),
            _mm512_shuffle_f32x4(inverse, inverse, 0xaa), _mm512_shuffle_f32x4(inverse, inverse, 0xff)};
        __m512i sums[2];
        for (size_t half = 0; half < 2; half++) {
            const __m512 *from = v + 4 * half;
            __m512i first =
                _mm512_packs_epi32(round_to_int(from[0], scales[2 * half]), round_to_int(from[1], scales[2 * half]));
            __m512i second = _mm512_packs_epi32(round_to_int(from[2], scales[2 * half + 1]),
                                                round_to_int(from[3], scales[2 * half + 1]));
            /* if a block holds only zeros, NaNs and infinities, all become 0 */
            __mmask16 kept = (__mmask16)((any >> (8 * half) & 1 ? 0xff : 0) | (any >> (8 * half + 4) & 1 ? 0xff00 : 0));
            __m512i q = _mm512_maskz_permutexvar_epi32(kept, in_order, _mm512_packs_epi16(first, second));
            __mmask16 real = (__mmask16)((((uint64_t)1 << 8 * n_real) - 1) >> (16 * half)); /* a block is eight lanes */
            _mm512_mask_storeu_epi32(row.q + (b + 2 * half) * LQ_Q8_BLOCK, real, q);
            /* adds up 8 bytes with 128 added, then 16 */
            __m512i s = _mm512_sad_epu8(_mm512_xor_si512(q, _mm512_set1_epi8(-128)), _mm512_setzero_si512());
            sums[half] = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, 0x4e));
        }
        __m256i s = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm512_castsi512_si128(_mm512_permutexvar_epi32(each_fourth, sums[0]))),
            _mm512_castsi512_si128(_mm512_permutexvar_epi32(each_fourth, sums[1])), 1);
        s = _mm256_sub_epi32(s, _mm256_set1_epi32(16 * 128));
        _mm_mask_storeu_epi16(row.sums + 2 * b, (__mmask8)((1u << 2 * n_real) - 1), _mm256_cvtepi32_epi16(s));
    }
}

static void sum_up_q8(lq_q8_row row, size_t n) {
    const __m512i each_twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (size_t b = 0, n_blocks = n / LQ_Q8_BLOCK; b < n_blocks; b += 8) {
        size_t left = n_blocks - b;
        __mmask8 blocks = (__mmask8)(left >= 8 ? 0xff : (1u << left) - 1);
        __mmask16 halves = (__mmask16)(left >= 8 ? 0xffff : (1u << 2 * left) - 1);
        __m256i sums = _mm256_maskz_loadu_epi16(halves, row.sums + 2 * b);
        __m256 d = _mm256_maskz_loadu_ps(blocks, row.d + b),
               of_32 = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
        __m512 d2 = _mm512_permutexvar_ps(each_twice, _mm512_castps256_ps512(d));
        _mm256_mask_storeu_ps(row.d_sums + b, blocks, _mm256_mul_ps(d, of_32));
        _mm512_mask_storeu_ps(row.d_sums + n_blocks + 2 * b, halves,
                              _mm512_mul_ps(d2, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(sums))));
    }
}

void lq_kernels_init_avx512_dot(lq_kernels *kernels) {
    kernels->quantize_q8 = quantize_q8;
    kernels->sum_up_q8 = sum_up_q8;
    kernels->dot_f32 = dot_f32;
    kernels->dot_f16_f32 = dot_f16_f32;
    kernels->dot_bf16_f32 = dot_bf16_f32;
    set_products(kernels);
}
