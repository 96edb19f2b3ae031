/* kernels.h - the CPU's table of inner loops. scalar.c and scalar_attn.c fill every entry that must not be NULL. Then
 * each level of x86/ or arm/ that the processor runs overwrites the entries that it improves. The scalar form is the
 * specification.
 *
 * Integer products quantize activations to int8, 32 values with one scale (lq_q8_row); weights stay packed. The product
 * with these int8 activations is exact up to float rounding. So the error against the float form comes from rounding
 * the activations: |error| <= sum_b |w|_1,b * d_b / 2, with d_b = max|x_b| / 127 for block b. check_kernels checks this
 * bound. */
#ifndef LQ_CPU_KERNELS_H
#define LQ_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "formats/formats.h"
#include "formats/kv_cell.h"
#include "formats/kv_page.h"

#define LQ_Q8_BLOCK 32
#define LQ_Q8_LEAST 0x1p-119f /* the smallest max|x| for which 127 / max|x| is finite */

/* One quantized activation row: x[32 b + i] ~ d[b] * q[32 b + i], with q in -127..127, d[b] = max|x| / 127 over the
 * block (0 if max|x| is below LQ_Q8_LEAST), q = x * (127 / max|x|) rounded to nearest even. sums[j] is the sum of q
 * over the 16 values from 16 j on. Products with many rows also need d_sums (sum_up_q8): d times the sums of 32 values,
 * then d times the sums of 16. Rows are 64-byte aligned; n is a multiple of 32. */
typedef struct lq_q8_row {
    int8_t *q;     /* [n] */
    float *d;      /* [n / 32] */
    int16_t *sums; /* [n / 16] */
    float *d_sums; /* [n / 32 + n / 16] */
} lq_q8_row;

/* Bytes of one row of lq_q8_row_at(): q, d, sums, d_sums, each padded to 64 bytes. */
static inline size_t lq_q8_row_bytes(size_t n) {
    size_t q = (n + 63) & ~(size_t)63;
    size_t d = (n / 32 * 4 + 63) & ~(size_t)63;
    size_t s = (n / 16 * 2 + 63) & ~(size_t)63;
    size_t d_sums = (n / 32 * 12 + 63) & ~(size_t)63;
    return q + d + s + d_sums;
}

/* The i-th row in a 64-byte aligned buffer of consecutive rows. */
static inline lq_q8_row lq_q8_row_at(void *base, size_t n, size_t i) {
    uint8_t *p = (uint8_t *)base + i * lq_q8_row_bytes(n);
    size_t q = (n + 63) & ~(size_t)63;
    size_t d = (n / 32 * 4 + 63) & ~(size_t)63;
    size_t s = (n / 16 * 2 + 63) & ~(size_t)63;
    lq_q8_row row = {(int8_t *)p, (float *)(void *)(p + q), (int16_t *)(void *)(p + q + d),
                     (float *)(void *)(p + q + d + s)};
    return row;
}

/* y[t * y_stride + r] = sum_c W[r][c] x[t][c] for n_rows packed weight rows, row_bytes apart and of any alignment, and
 * n_x >= 1 activation rows of n_cols values, which are consecutive rows of lq_q8_row_at(). n_cols is a multiple of the
 * format's block length and of 32. n_x == 1 is decoding and must be the fastest. */
typedef void (*lq_matmul_q8_fn)(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows,
                                size_t n_cols, const void *x_q8, size_t n_x);

/* Dot products of 64 bytes in one round of int8_peak. There are enough sums that no instruction waits for another. */
#define LQ_PEAK_DOTS 12

/* From this many activation rows on, unpacking weights once for all of them pays. */
#define LQ_MANY_X 3

/* How many queries lie side by side in the kernels for many queries. */
#define LQ_MANY_QUERIES 64
#define LQ_MANY_QUERY_FLOATS(head_dim) (((size_t)(head_dim) + 63) / 64 * 64 * LQ_MANY_QUERIES)
/* Numbers of 16 bits are scaled so that a query, a cell or probabilities have the norm LQ_INT16_NORM, and the largest
 * value of a token is LQ_INT16_VALUE. Then sums of 64 products are less than 2^31: the norm of the values of 64 tokens
 * is at most 8 LQ_INT16_VALUE. */
#define LQ_INT16_NORM 32767.0f
#define LQ_INT16_VALUE 8191.0f

typedef struct lq_kernels {
    const char *level; /* name of the best level that wrote into this table */

    /* ---- dense products */
    /* NULL: this type has no integer product, and rows are decoded to float. */
    lq_matmul_q8_fn matmul_q8[LQ_TYPE_COUNT];
    /* Faster from LQ_MANY_X activation rows on, and rounds in another order. May be NULL. */
    lq_matmul_q8_fn matmul_many[LQ_TYPE_COUNT];
    /* The product in float with x [n_x][n_cols]; `decode` decodes the weights. May be NULL. */
    void (*matmul_many_f32)(float *y, size_t y_stride, const lq_format *format, lq_dequantize_fn decode, const void *w,
                            size_t row_bytes, size_t n_rows, size_t n_cols, const float *x, size_t n_x);
    void (*quantize_q8)(lq_q8_row row, const float *x, size_t n); /* n a multiple of 32 */
    void (*sum_up_q8)(lq_q8_row row, size_t n);                   /* d_sums from d and sums */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    float (*dot_f16_f32)(const uint16_t *a, const float *b, size_t n);  /* F16 weights */
    float (*dot_bf16_f32)(const uint16_t *a, const float *b, size_t n); /* BF16 weights */
    /* Faster forms of the format's dequantize. May be NULL. */
    lq_dequantize_fn dequantize[LQ_TYPE_COUNT];

    /* ---- elementwise */
    void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n); /* round to nearest even */
    void (*f16_to_f32)(float *dst, const uint16_t *src, size_t n);
    void (*rms_norm)(float *dst, const float *x, const float *weight, size_t n, float eps); /* dst may be x */
    void (*add)(float *dst, const float *x, size_t n);                                      /* dst += x */
    void (*mul_scalar)(float *dst, float a, size_t n);                                      /* dst *= a */
    void (*axpy)(float *dst, const float *x, float a, size_t n);                            /* dst += a x */
    void (*hadamard)(float *x, size_t head_dim);                                            /* bits of lq_hadamard() */
    void (*silu_mul)(float *gate, const float *up, size_t n);                               /* gate = silu(gate) * up */
    void (*gelu_tanh_mul)(float *gate, const float *up, size_t n); /* gate = gelu_tanh(gate) * up */
    void (*softcap)(float *x, float cap, size_t n); /* x = cap tanh(x / cap), within cap 2^-21; cap > 0 */

    /* ---- attention over at most 64 contiguous cells (formats/kv_cell.h) of one KV head
     * _q: the cells have a quantized format. attn_scores: scores[i * s_stride + j] = scale * sum_d q[i][d] k[j][d],
     * with q [n_q][head_dim], rows q_stride floats apart. attn_values: acc[i][d] = acc[i][d] * decay[i] + sum_j p[i *
     * p_stride + j] v[j][d], with rows of acc acc_stride floats apart. */
    void (*attn_scores_f16)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale);
    void (*attn_values_f16)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim);
    void (*attn_scores_q)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                          lq_cell_format format, const uint8_t *k, size_t n_k, size_t head_dim, float scale);
    void (*attn_values_q)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                          size_t n_q, lq_cell_format format, const uint8_t *v, size_t n_k, size_t head_dim);

    /* ---- attention over the 64 tokens of one packed page of one KV head: the same sums with the decoded page
     * q: [n_q][n_lanes], channels in page order, each tier from its first_lane on, zeros between tiers. p of masked
     * tokens must be 0. next: the page to prefetch meanwhile, or NULL.
     * Integer forms fold the page's scales into q and p and round these to int8, with one scale for each row and tier
     * (of values: for each row and 64 channels). Let h be half of the largest code of a width. On top of float
     * rounding, |error of a score| <= sum over the tiers of largest / 254 * sum of the token's |code - h|, with largest
     * = scale * max |q step| of the row in the tier; |error of a value| <= largest / 254 * sum of the channel's |code -
     * h|, with largest = max p step. */
    void (*page_scores)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next, float scale);
    void (*page_values)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next);

    /* ---- attention with up to LQ_MANY_QUERIES queries side by side
     * scores, p: [token][LQ_MANY_QUERIES]; q: [channel][LQ_MANY_QUERIES], for pages in page order without gaps between
     * tiers; acc: [channel][LQ_MANY_QUERIES]; decay, max, sum: [LQ_MANY_QUERIES]. Kernels also compute the queries up
     * to the next multiple of 16, so their memory must hold numbers. A level has all of these kernels or none; only
     * queries_many may be NULL alone. */
    void (*page_scores_many)(float *scores, const float *q, size_t n_q, const lq_page_format *format,
                             lq_page_record page, const lq_page_record *next, float scale);
    void (*page_values_many)(float *acc, const float *decay, const float *p, size_t n_q, const lq_page_format *format,
                             lq_page_record page, const lq_page_record *next);
    /* Decoded cells: k, v [n][head_dim], n at most 64. Unless queries_many is NULL, numbers are rounded to 16 bits, and
     * scores_many takes the output of queries_many, LQ_MANY_QUERY_FLOATS(head_dim) floats, in place of q. On top of
     * float rounding, and within a thousandth: with the norms of each 64 channels, |error of a score| <= scale / (2
     * LQ_INT16_NORM) (norm of q sum |k| + norm of k sum |q|); with size = a token's largest |v| and norm = the norm of
     * p size, |error of a value| <= norm / (2 LQ_INT16_NORM) sum (|v| / size) + 1 / (2 LQ_INT16_VALUE) sum (p size). */
    void (*queries_many)(float *dst, const float *q, size_t n_q, size_t head_dim);
    void (*scores_many)(float *scores, const float *q, size_t n_q, const float *k, size_t n, size_t head_dim,
                        float scale);
    void (*values_many)(float *acc, const float *decay, const float *p, size_t n_q, const float *v, size_t n,
                        size_t head_dim);
    /* As softmax_step() below, but a decay below 1e-30 becomes 1e-30. */
    void (*softmax_step_many)(float *scores, size_t n_q, size_t n, float *max, float *sum, float *decay);
    /* out[token] = sum over queries of p[token][query] factor[query]. factor must be 0 for queries beyond n_q. */
    void (*weighted_sums_many)(float *out, const float *p, const float *factor, size_t n_q, size_t n);

    /* The online softmax step: takes n more scores of each row into max, sum [n_rows]. max becomes the maximum so far,
     * scores become exp(score - max), sum becomes the sum of all of them so far, and decay [n_rows] is the factor for
     * earlier results. The relative error of exp(score - max) is at most 3e-7 + 1.2e-7 (max - score); if score - max is
     * below -69, it is at most 1e-30. A score of each row, or its max, must be above -infinity. */
    void (*softmax_step)(float *scores, size_t stride, size_t n_rows, size_t n, float *max, float *sum, float *decay);

    /* ---- storing */
    void (*page_encode_keys)(const lq_page_format *format, const float *x, const uint16_t *order,
                             lq_page_record page); /* every level gives the bits of lq_page_encode_keys() */
    void (*page_encode_values)(const lq_page_format *format, const float *x, lq_page_record page);
    /* One q8_0 or q4_0 cell. Every level gives the same bits. */
    void (*cell_store_q)(lq_cell_format format, uint8_t *dst, const float *x, size_t head_dim);
    void (*cell_load_q)(lq_cell_format format, float *dst, const uint8_t *src, size_t head_dim);

    /* ---- the CPU's peak (measure_cpu.c): adds up the dot product of 64 bytes u (at most 63) and s, LQ_PEAK_DOTS
     * n_rounds times, wrapping at 32 bits. Each product is really computed. */
    uint32_t (*int8_peak)(const uint8_t *u, const int8_t *s, size_t n_rounds);
} lq_kernels;

/* Each of these fills in one family of kernels of one level. */
void lq_kernels_init_scalar(lq_kernels *kernels); /* calls the next one */
void lq_kernels_init_scalar_attn(lq_kernels *kernels);
#if defined(__x86_64__) || defined(_M_X64)
void lq_kernels_init_avx2_dot(lq_kernels *kernels); /* calls the next two */
void lq_kernels_init_avx2_dot_signed(lq_kernels *kernels);
void lq_kernels_init_avx2_dot_grid(lq_kernels *kernels);
void lq_kernels_init_avx2_ops(lq_kernels *kernels);
void lq_kernels_init_avx2_attn(lq_kernels *kernels);
void lq_kernels_init_avx2_attn_f16(lq_kernels *kernels);
void lq_kernels_init_avxvnni_dot(lq_kernels *kernels);
void lq_kernels_init_avxvnni_attn(lq_kernels *kernels);
void lq_kernels_init_avxvnni_strip(lq_kernels *kernels);
void lq_kernels_init_avxvnni_peak(lq_kernels *kernels);
void lq_kernels_init_avx512_dot(lq_kernels *kernels);
void lq_kernels_init_avx512_ops(lq_kernels *kernels);
void lq_kernels_init_avx512_attn(lq_kernels *kernels);
void lq_kernels_init_avx512_attn_f16(lq_kernels *kernels);
void lq_kernels_init_avx512vnni_dot(lq_kernels *kernels);
void lq_kernels_init_avx512vnni_attn(lq_kernels *kernels);
void lq_kernels_init_avx2_strip(lq_kernels *kernels);
void lq_kernels_init_avx2_peak(lq_kernels *kernels);
void lq_kernels_init_avx512_strip(lq_kernels *kernels);
void lq_kernels_init_avx512_peak(lq_kernels *kernels);
void lq_kernels_init_avx512vnni_strip(lq_kernels *kernels);
void lq_kernels_init_avx512vnni_peak(lq_kernels *kernels);
#endif
#if defined(__aarch64__)
void lq_kernels_init_neon_dot(lq_kernels *kernels); /* calls the next one */
void lq_kernels_init_neon_dot_grid(lq_kernels *kernels);
void lq_kernels_init_neon_ops(lq_kernels *kernels);
void lq_kernels_init_neon_attn(lq_kernels *kernels);
void lq_kernels_init_neon_attn_f16(lq_kernels *kernels);
void lq_kernels_init_dotprod_dot(lq_kernels *kernels);
void lq_kernels_init_dotprod_attn(lq_kernels *kernels);
void lq_kernels_init_i8mm_dot(lq_kernels *kernels);
#endif

/* ---- levels (levels.c; the tables are in x86/features.c and arm/features.c) */

typedef struct lq_cpu_level_desc {
    const char *name;
    const char *base;                  /* the level it builds on, which is earlier in the table; NULL: none */
    bool (*supported)(void);           /* do CPU and operating system run it, and its base? */
    void (*init)(lq_kernels *kernels); /* runs after the base's */
} lq_cpu_level_desc;

/* The levels this build has, worst ("scalar") first. */
const lq_cpu_level_desc *lq_cpu_level_table(size_t *n_levels);

/* Fills kernels for a level by name (NULL = LQ_CPU if set, else the best supported). Status as in lq_cpu_level(). */
lq_status lq_kernels_select(lq_kernels *kernels, const char *level);

#endif
