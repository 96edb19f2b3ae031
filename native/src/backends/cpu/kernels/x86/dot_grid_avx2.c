/* dot_grid_avx2.c - products with AVX2 of weights that are vectors of a codebook (the IQ types of fewer than four
 * bits), and of TQ2_0. A codebook entry holds the numbers of its levels (formats/iq_grids.h). The kernels spread these
 * to bytes, look up the levels, and apply the signs. */
#include "backends/cpu/kernels/x86/dot_signed_256.h"
#include "core/half.h"
#include "formats/bytes.h"
#include "formats/iq1_m.h"
#include "formats/iq1_s.h"
#include "formats/iq2_s.h"
#include "formats/iq2_xs.h"
#include "formats/iq2_xxs.h"
#include "formats/iq3_s.h"
#include "formats/iq3_xxs.h"
#include "formats/iq_grids.h"
#include "formats/tq2_0.h"

/* Packs four vectors of eight 32-bit numbers to 32 bytes. */
LQ_INLINE __m256i pack_bytes(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Spreads an entry's eight numbers of two bits. */
LQ_INLINE __m256i spread_2(uint16_t entry) {
    const __m256i shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(entry), shifts), _mm256_set1_epi32(3));
}

/* Spreads the four numbers of three bits of each of two entries. */
LQ_INLINE __m256i spread_3(uint16_t first, uint16_t second) {
    const __m256i shifts = _mm256_setr_epi32(0, 3, 6, 9, 0, 3, 6, 9);
    __m256i entries = _mm256_set_m128i(_mm_set1_epi32(second), _mm_set1_epi32(first));
    return _mm256_and_si256(_mm256_srlv_epi32(entries, shifts), _mm256_set1_epi32(7));
}

/* Gives the numbers of four entries of eight numbers. */
LQ_INLINE __m256i entries_2(const uint16_t *grid, unsigned a, unsigned b, unsigned c, unsigned d) {
    return pack_bytes(spread_2(grid[a]), spread_2(grid[b]), spread_2(grid[c]), spread_2(grid[d]));
}

LQ_INLINE __m256i levels_of(uint64_t table, __m256i numbers) {
    return _mm256_shuffle_epi8(_mm256_set1_epi64x((long long)table), numbers);
}

#define LQ_IQ2_LEVELS 0x002b1908u               /* 8, 25, 43 */
#define LQ_IQ3_XXS_LEVELS 0x3e342c241c140c04ull /* 4, 12 ... 52, 62 */
#define LQ_IQ3_S_LEVELS 0x0f0d0b0907050301ull   /* 1, 3 ... 15 */

/* Negates the bytes whose bit of `signs` is set. */
LQ_INLINE __m256i with_signs(__m256i v, uint32_t signs) {
    const __m256i bytes = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                           3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    __m256i picked = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)signs), bytes), bit);
    __m256i negative = _mm256_cmpeq_epi8(picked, bit);
    return _mm256_sub_epi8(_mm256_xor_si256(v, negative), negative);
}

/* Gives four times eight signs for four times seven bits. */
LQ_INLINE uint32_t all_signs(uint32_t bits) {
    return lq_iq_signs(bits) | lq_iq_signs(bits >> 7) << 8 | lq_iq_signs(bits >> 14) << 16 |
           lq_iq_signs(bits >> 21) << 24;
}

/* Unpacks 16 nibbles to bytes, the low one of a byte first. */
LQ_INLINE __m128i load_8_nibbles(const uint8_t *p) {
    __m128i v = _mm_loadl_epi64((const __m128i *)p);
    __m128i low = _mm_and_si128(v, _mm_set1_epi8(15)), high = _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
    return _mm_unpacklo_epi8(low, high);
}

/* Sets the scales of 16 groups from their codes: factor (offset + code). */
LQ_INLINE void set_scales_16(weights_256 *w, __m128i codes, float factor, float offset) {
    __m256i groups[2];
    spread_groups(codes, groups);
    for (int i = 0; i < 2; i++)
        w->d[i] =
            _mm256_mul_ps(_mm256_add_ps(_mm256_cvtepi32_ps(groups[i]), _mm256_set1_ps(offset)), _mm256_set1_ps(factor));
}

/* Sets the scales of 8 groups of 32 weights from their codes in 32-bit lanes. */
LQ_INLINE void set_scales_8(weights_256 *w, __m256i codes, float factor, float offset) {
    __m256 sum = _mm256_add_ps(_mm256_cvtepi32_ps(codes), _mm256_set1_ps(offset));
    w->d[0] = w->d[1] = _mm256_mul_ps(sum, _mm256_set1_ps(factor));
}

LQ_PLAIN_256(iq2_xxs)

LQ_INLINE iq2_xxs_weights iq2_xxs_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq2_xxs *b = (const lq_block_iq2_xxs *)blocks;
    weights_256 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs[j];
        __m256i numbers = entries_2(lq_iq2_xxs_grid, qs[0], qs[1], qs[2], qs[3]);
        w.q[j] = with_signs(levels_of(LQ_IQ2_LEVELS, numbers), all_signs(lq_read_u32(qs + 4)));
    }
    __m256i rest = _mm256_permutevar8x32_epi32(/* the upper halves of the eight 8-byte groups */
                                               _mm256_castps_si256(
                                                   _mm256_shuffle_ps(_mm256_castsi256_ps(load256(b->qs[0])),
                                                                     _mm256_castsi256_ps(load256(b->qs[4])), 0xdd)),
                                               _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7));
    set_scales_8(&w, _mm256_srli_epi32(rest, 28), 0.25f * load_half(b->d), 0.5f);
    return w;
}

LQ_PLAIN_256(iq2_xs)

LQ_INLINE iq2_xs_weights iq2_xs_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq2_xs *b = (const lq_block_iq2_xs *)blocks;
    weights_256 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        uint64_t qs;
        memcpy(&qs, b->qs[4 * j], 8);
        __m256i numbers = entries_2(lq_iq2_xs_grid, qs & 511, qs >> 16 & 511, qs >> 32 & 511, qs >> 48 & 511);
        uint32_t signs = lq_iq_signs(qs >> 9 & 127) | lq_iq_signs(qs >> 25 & 127) << 8 |
                         lq_iq_signs(qs >> 41 & 127) << 16 | lq_iq_signs((unsigned)(qs >> 57)) << 24;
        w.q[j] = with_signs(levels_of(LQ_IQ2_LEVELS, numbers), signs);
    }
    set_scales_16(&w, load_8_nibbles(b->scales), 0.25f * load_half(b->d), 0.5f);
    return w;
}

LQ_PLAIN_256(iq2_s)

LQ_INLINE iq2_s_weights iq2_s_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq2_s *b = (const lq_block_iq2_s *)blocks;
    weights_256 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs + 4 * j;
        unsigned high = b->qh[j];
        __m256i numbers = entries_2(lq_iq2_s_grid, qs[0] | (high & 3) << 8, qs[1] | (high >> 2 & 3) << 8,
                                    qs[2] | (high >> 4 & 3) << 8, qs[3] | (high >> 6) << 8);
        w.q[j] = with_signs(levels_of(LQ_IQ2_LEVELS, numbers), lq_read_u32(b->signs + 4 * j));
    }
    set_scales_16(&w, load_8_nibbles(b->scales), 0.25f * load_half(b->d), 0.5f);
    return w;
}

LQ_PLAIN_256(iq3_xxs)

LQ_INLINE iq3_xxs_weights iq3_xxs_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq3_xxs *b = (const lq_block_iq3_xxs *)blocks;
    weights_256 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs + 8 * j;
        const uint16_t *grid = lq_iq3_xxs_grid;
        __m256i numbers = pack_bytes(spread_3(grid[qs[0]], grid[qs[1]]), spread_3(grid[qs[2]], grid[qs[3]]),
                                     spread_3(grid[qs[4]], grid[qs[5]]), spread_3(grid[qs[6]], grid[qs[7]]));
        w.q[j] = with_signs(levels_of(LQ_IQ3_XXS_LEVELS, numbers), all_signs(lq_read_u32(b->rest[j])));
    }
    set_scales_8(&w, _mm256_srli_epi32(load256(b->rest), 28), 0.5f * load_half(b->d), 0.5f);
    return w;
}

LQ_PLAIN_256(iq3_s)

LQ_INLINE iq3_s_weights iq3_s_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq3_s *b = (const lq_block_iq3_s *)blocks;
    weights_256 w;
    (void)n_blocks;
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs + 8 * j;
        const uint16_t *grid = lq_iq3_s_grid;
        unsigned high = (unsigned)b->qh[j] << 8; /* bit i is the ninth bit of index i */
        __m256i numbers = pack_bytes(spread_3(grid[qs[0] | (high & 256)], grid[qs[1] | (high >> 1 & 256)]),
                                     spread_3(grid[qs[2] | (high >> 2 & 256)], grid[qs[3] | (high >> 3 & 256)]),
                                     spread_3(grid[qs[4] | (high >> 4 & 256)], grid[qs[5] | (high >> 5 & 256)]),
                                     spread_3(grid[qs[6] | (high >> 6 & 256)], grid[qs[7] | (high >> 7 & 256)]));
        w.q[j] = with_signs(levels_of(LQ_IQ3_S_LEVELS, numbers), lq_read_u32(b->signs + 4 * j));
    }
    __m256i nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32(load32(b->scales)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    set_scales_8(&w, _mm256_and_si256(nibbles, _mm256_set1_epi32(15)), 2.0f * load_half(b->d), 0.5f);
    return w;
}

/* IQ1: scale * (-1, 0 or 1, plus or minus an eighth) is an eighth of the scale times -9, -7, -1, 1, 7 or 9. */
LQ_INLINE __m256i eighths(__m256i numbers, __m256i minus) {
    __m256i v = _mm256_slli_epi16(_mm256_sub_epi8(numbers, _mm256_set1_epi8(1)),
                                  3);                      /* small numbers: no bit leaves its byte... */
    v = _mm256_and_si256(v, _mm256_set1_epi8((char)0xf8)); /* ...but bits of the lower byte arrive */
    return _mm256_add_epi8(v, _mm256_or_si256(minus, _mm256_set1_epi8(1)));
}

LQ_PLAIN_256(iq1_s)

LQ_INLINE iq1_s_weights iq1_s_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq1_s *b = (const lq_block_iq1_s *)blocks;
    weights_256 w;
    (void)n_blocks;
    __m256i high = _mm256_cvtepu16_epi32(load128(b->qh));
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs + 4 * j;
        unsigned h = b->qh[j][0] | (unsigned)b->qh[j][1] << 8;
        __m256i numbers = entries_2(lq_iq1_grid, qs[0] | (h & 7) << 8, qs[1] | (h >> 3 & 7) << 8,
                                    qs[2] | (h >> 6 & 7) << 8, qs[3] | (h >> 9 & 7) << 8);
        w.q[j] = eighths(numbers, _mm256_set1_epi8((char)-(int)(h >> 15)));
    }
    __m256i codes = _mm256_and_si256(_mm256_srli_epi32(high, 12), _mm256_set1_epi32(7));
    set_scales_8(&w, codes, 0.25f * load_half(b->d), 0.5f);
    return w;
}

/* Three bits of scale for each of four groups, from bit `at` of `packed`. */
#define LQ_IQ1_M_CODES(at)                                                                                             \
    (char)(packed >> (at) & 7), (char)(packed >> ((at) + 3) & 7), (char)(packed >> ((at) + 6) & 7),                    \
        (char)(packed >> ((at) + 9) & 7)

LQ_PLAIN_256(iq1_m)

LQ_INLINE iq1_m_weights iq1_m_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_iq1_m *b = (const lq_block_iq1_m *)blocks;
    weights_256 w;
    (void)n_blocks;
    uint64_t packed, half;
    memcpy(&packed, b->scales, 8);
    half = (packed >> 12 & 15) | (packed >> 24 & 0xf0) | (packed >> 36 & 0xf00) | (packed >> 48 & 0xf000);
    LQ_UNROLL
    for (int j = 0; j < 8; j++) {
        const uint8_t *qs = b->qs + 4 * j;
        unsigned h = b->qh[2 * j] | (unsigned)b->qh[2 * j + 1] << 8; /* a nibble for each vector */
        __m256i numbers = entries_2(lq_iq1_grid, qs[0] | (h & 7) << 8, qs[1] | (h >> 4 & 7) << 8,
                                    qs[2] | (h >> 8 & 7) << 8, qs[3] | (h >> 12 & 7) << 8);
        __m256i minus = _mm256_setr_epi64x(-(long long)(h >> 3 & 1), -(long long)(h >> 7 & 1),
                                           -(long long)(h >> 11 & 1), -(long long)(h >> 15));
        w.q[j] = eighths(numbers, minus);
    }
    __m128i codes = _mm_setr_epi8(LQ_IQ1_M_CODES(0), LQ_IQ1_M_CODES(16), LQ_IQ1_M_CODES(32), LQ_IQ1_M_CODES(48));
    set_scales_16(&w, codes, 0.25f * _cvtsh_ss((unsigned short)half), 0.5f);
    return w;
}

LQ_PLAIN_256(tq2_0)

LQ_INLINE tq2_0_weights tq2_0_load_w(const uint8_t *blocks, size_t n_blocks) {
    const lq_block_tq2_0 *b = (const lq_block_tq2_0 *)blocks;
    weights_256 w;
    (void)n_blocks;
    w.d[0] = w.d[1] = _mm256_set1_ps(load_half(b->d));
    LQ_UNROLL
    for (int i = 0; i < 8; i++)
        w.q[i] = _mm256_sub_epi8(two_bits(load256(b->qs + i / 4 * 32), i % 4), _mm256_set1_epi8(1));
    return w;
}

LQ_DEFINE_MATMUL(iq1_s, LQ_IQ1_S_LEN, sizeof(lq_block_iq1_s), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq1_m, LQ_IQ1_M_LEN, sizeof(lq_block_iq1_m), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq2_xxs, LQ_IQ2_XXS_LEN, sizeof(lq_block_iq2_xxs), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq2_xs, LQ_IQ2_XS_LEN, sizeof(lq_block_iq2_xs), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq2_s, LQ_IQ2_S_LEN, sizeof(lq_block_iq2_s), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq3_xxs, LQ_IQ3_XXS_LEN, sizeof(lq_block_iq3_xxs), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(iq3_s, LQ_IQ3_S_LEN, sizeof(lq_block_iq3_s), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)
LQ_DEFINE_MATMUL(tq2_0, LQ_TQ2_0_LEN, sizeof(lq_block_tq2_0), 1, __m256, _mm256_setzero_ps, vf_sums_of_4, 4, 1)

void lq_kernels_init_avx2_dot_grid(lq_kernels *kernels) {
    kernels->matmul_q8[LQ_TYPE_IQ1_S] = iq1_s;
    kernels->matmul_q8[LQ_TYPE_IQ1_M] = iq1_m;
    kernels->matmul_q8[LQ_TYPE_IQ2_XXS] = iq2_xxs;
    kernels->matmul_q8[LQ_TYPE_IQ2_XS] = iq2_xs;
    kernels->matmul_q8[LQ_TYPE_IQ2_S] = iq2_s;
    kernels->matmul_q8[LQ_TYPE_IQ3_XXS] = iq3_xxs;
    kernels->matmul_q8[LQ_TYPE_IQ3_S] = iq3_s;
    kernels->matmul_q8[LQ_TYPE_TQ2_0] = tq2_0;
}
