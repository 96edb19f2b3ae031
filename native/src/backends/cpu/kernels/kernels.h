/* kernels.h - the CPU's table of inner loops. scalar.c fills every entry that may not be NULL; each better level
 * overwrites what it improves (lq_kernels_init_avx2, ...), in order. The scalar form is the specification.
 *
 * Integer fast paths: activations are quantized per 32 values to int8 (lq_q8_row), weights stay packed. The product is
 * exact for those int8 activations up to float rounding, so the error against the float form is that of the
 * activations: |error| <= sum_b |w|_1,b * d_b / 2, with d_b = max|x_b| / 127 per block b (checked by check_kernels). */
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
#define LQ_Q8_LEAST 0x1p-119f /* from here on 127 / max|x| is finite */

/* One activation row, quantized: x[32 b + i] ~ d[b] * q[32 b + i], q in -127..127, d[b] = max|x| / 127 over the block
 * (0 if that is below LQ_Q8_LEAST), q = x * (127 / max|x|) rounded to nearest even. sums[j] = sum of q over the 16
 * values from 16 j on. Products of many rows also need d_sums: d times the sums of 32 values, then of 16 (sum_up_q8).
 * 64-byte aligned. n is a multiple of 32. */
typedef struct lq_q8_row {
    int8_t *q;     /* [n] */
    float *d;      /* [n / 32] */
    int16_t *sums; /* [n / 16] */
    float *d_sums; /* [n / 32 + n / 16] */
} lq_q8_row;

/* Bytes of one row as lq_q8_row_at() lays it out: q, d, sums, d_sums, each padded to 64 bytes. */
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

/* y[t * y_stride + r] = sum_c W[r][c] x[t][c] for n_rows packed weight rows (row_bytes apart, unaligned allowed) and
 * n_x activation rows of n_cols values (n_cols a multiple of the format's block length and of 32), x as consecutive
 * lq_q8_row_at() rows. n_x >= 1; n_x == 1 is the decode path and must be the fastest. */
typedef void (*lq_matmul_q8_fn)(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows,
                                size_t n_cols, const void *x_q8, size_t n_x);

/* Dot products of 64 bytes in one round of int8_peak: enough sums that no instruction waits for the one before. */
#define LQ_PEAK_DOTS 12

/* Activation rows from which on unpacking weights for them pays. */
#define LQ_MANY_X 3

/* Queries side by side in the kernels for many of them. */
#define LQ_MANY_QUERIES 64
#define LQ_MANY_QUERY_FLOATS(head_dim) (((size_t)(head_dim) + 63) / 64 * 64 * LQ_MANY_QUERIES)
/* What numbers of 16 bits are scaled to: the norm of a query, a cell or probabilities; the largest value of a token.
 * Sums of 64 products are less than 2^31: the norm of 64 tokens' values is at most 8 LQ_INT16_VALUE. */
#define LQ_INT16_NORM 32767.0f
#define LQ_INT16_VALUE 8191.0f

typedef struct lq_kernels {
    const char *level; /* name of the best level that wrote into this table */

    /* ---- dense products; matmul_q8[type] is NULL where there is no integer path: then rows are decoded to float */
    lq_matmul_q8_fn matmul_q8[LQ_TYPE_COUNT];
    /* The same for LQ_MANY_X activation rows and more, faster from there on, with other rounding; NULL: there is none.
     */
    lq_matmul_q8_fn matmul_many[LQ_TYPE_COUNT];
    /* The same in float, of weights that `decode` (of this format) decodes and x [n_x][n_cols]; NULL: there is none. */
    void (*matmul_many_f32)(float *y, size_t y_stride, const lq_format *format, lq_dequantize_fn decode, const void *w,
                            size_t row_bytes, size_t n_rows, size_t n_cols, const float *x, size_t n_x);
    void (*quantize_q8)(lq_q8_row row, const float *x, size_t n); /* n a multiple of 32 */
    void (*sum_up_q8)(lq_q8_row row, size_t n);                   /* d_sums from d and sums */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    float (*dot_f16_f32)(const uint16_t *a, const float *b, size_t n);  /* F16 weights */
    float (*dot_bf16_f32)(const uint16_t *a, const float *b, size_t n); /* BF16 weights */
    /* bulk decoding, faster forms of formats' dequantize; NULL falls back to it */
    lq_dequantize_fn dequantize[LQ_TYPE_COUNT];

    /* ---- elementwise */
    void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n); /* round to nearest even */
    void (*f16_to_f32)(float *dst, const uint16_t *src, size_t n);
    void (*rms_norm)(float *dst, const float *x, const float *weight, size_t n, float eps); /* dst may be x */
    void (*add)(float *dst, const float *x, size_t n);                                      /* dst += x */
    void (*mul_scalar)(float *dst, float a, size_t n);                                      /* dst *= a */
    void (*silu_mul)(float *gate, const float *up, size_t n);                               /* gate = silu(gate) * up */
    void (*gelu_tanh_mul)(float *gate, const float *up, size_t n); /* gate = gelu_tanh(gate) * up */
    void (*softcap)(float *x, float cap, size_t n); /* x = cap tanh(x / cap), within cap 2^-21; cap > 0 */

    /* ---- attention over a run of full-precision tokens of one KV head; cells as in formats/kv_cell.h, contiguous.
     * attn_scores: scores[i * s_stride + j] = scale * sum_d q[i][d] k[j][d]. q: [n_q][head_dim] f32, rows q_stride
     * floats apart. attn_values: acc[i][d] = acc[i][d] * decay[i] + sum_j p[i * p_stride + j] v[j][d], acc rows
     * acc_stride floats apart. n_k is at most 64; _q: cells of a quantized format. */
    void (*attn_scores_f16)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale);
    void (*attn_values_f16)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim);
    void (*attn_scores_q)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                          lq_cell_format format, const uint8_t *k, size_t n_k, size_t head_dim, float scale);
    void (*attn_values_q)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                          size_t n_q, lq_cell_format format, const uint8_t *v, size_t n_k, size_t head_dim);

    /* ---- attention over one packed page of one KV head, all 64 tokens; the same sums with the decoded page.
     * q: [n_q][n_lanes], channels in page order, each tier from its first_lane on, zeros between. p of tokens that are
     * masked must be 0. Integer forms fold the page's scales into q and p and round them to int8, with a scale for
     * each row and tier (each row and 64 channels of values). On top of float rounding, with h half a width's largest
     * code: |error of a score| <= sum over the tiers of largest / 254 * sum of the token's |code - h|, largest = scale
     * * max |q step| of the row in the tier; |error of a value| <= largest / 254 * sum of the channel's |code - h|,
     * largest = max p step.
     * next: the page whose memory is to be asked for meanwhile, or NULL. */
    void (*page_scores)(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next, float scale);
    void (*page_values)(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next);

    /* ---- the same for n_q queries, up to LQ_MANY_QUERIES, that lie side by side: scores and p
     * [token][LQ_MANY_QUERIES], q [channel][LQ_MANY_QUERIES] (of pages: in page order, without gaps between tiers),
     * acc [channel][LQ_MANY_QUERIES]; decay, max, sum [LQ_MANY_QUERIES]. Queries up to the next multiple of 16 are
     * computed, too, so they must be there. A level has all of them, queries_many or not, or none. */
    void (*page_scores_many)(float *scores, const float *q, size_t n_q, const lq_page_format *format,
                             lq_page_record page, const lq_page_record *next, float scale);
    void (*page_values_many)(float *acc, const float *decay, const float *p, size_t n_q, const lq_page_format *format,
                             lq_page_record page, const lq_page_record *next);
    /* Cells that have been decoded: k, v [n][head_dim], n at most 64. If there is queries_many, scores_many has not q
     * but what that makes of it, LQ_MANY_QUERY_FLOATS(head_dim). Then numbers have 16 bits. On top of float
     * rounding, and within a thousandth: with the norms of each 64 channels, |error of a score| <= scale / (2
     * LQ_INT16_NORM) (norm of q sum |k| + norm of k sum |q|); with size = a token's largest |v| and norm that of p
     * size, |error of a value| <= norm / (2 LQ_INT16_NORM) sum (|v| / size) + 1 / (2 LQ_INT16_VALUE) sum (p size). */
    void (*queries_many)(float *dst, const float *q, size_t n_q, size_t head_dim);
    void (*scores_many)(float *scores, const float *q, size_t n_q, const float *k, size_t n, size_t head_dim,
                        float scale);
    void (*values_many)(float *acc, const float *decay, const float *p, size_t n_q, const float *v, size_t n,
                        size_t head_dim);
    /* soften (below); a decay below 1e-30 is 1e-30. */
    void (*soften_many)(float *scores, size_t n_q, size_t n, float *max, float *sum, float *decay);
    /* out[token] = sum over queries of p[token][query] factor[query]; factor of those beyond n_q must be 0 */
    void (*weigh_many)(float *out, const float *p, const float *factor, size_t n_q, size_t n);

    /* Takes n scores of each row into its running softmax: max, sum, decay [n_rows]. max becomes the
     * largest so far, scores exp(score - max), off by at most 3e-7 + 1.2e-7 (max - score) of it (below -69: at most
     * 1e-30), decay what earlier results have to be multiplied by, sum the sum of all. Some score of a row, or its max,
     * is above -infinity. */
    void (*soften)(float *scores, size_t stride, size_t n_rows, size_t n, float *max, float *sum, float *decay);

    /* ---- storing */
    void (*page_encode_keys)(const lq_page_format *format, const float *x, const uint16_t *order,
                             lq_page_record page); /* every level gives the same bits: lq_page_encode_keys */
    void (*page_encode_values)(const lq_page_format *format, const float *x, lq_page_record page);
    /* one q8_0 or q4_0 cell; the same bits */
    void (*cell_store_q)(lq_cell_format format, uint8_t *dst, const float *x, size_t head_dim);
    void (*cell_load_q)(lq_cell_format format, float *dst, const uint8_t *src, size_t head_dim);
    void (*hadamard)(float *x, size_t head_dim);                 /* lq_hadamard; the same bits */
    void (*axpy)(float *dst, const float *x, float a, size_t n); /* dst += a x */

    /* ---- what the CPU can do at most (measure_cpu.c): the dot product of 64 bytes u (at most 63) and s, added up
     * LQ_PEAK_DOTS n_rounds times, wrapping at 32 bits, and really computed each time */
    uint32_t (*int8_peak)(const uint8_t *u, const int8_t *s, size_t n_rounds);
} lq_kernels;

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
    const char *base;                  /* the level it adds to, which is before it in the table; NULL: nothing */
    bool (*supported)(void);           /* CPU and OS, those of the base included */
    void (*init)(lq_kernels *kernels); /* applied after its base's */
} lq_cpu_level_desc;

/* The levels this build has, worst ("scalar") first. */
const lq_cpu_level_desc *lq_cpu_level_table(size_t *n_levels);

/* Fills kernels for a level by name (NULL = LQ_CPU if set, else the best supported). Status as in lq_cpu_level(). */
lq_status lq_kernels_select(lq_kernels *kernels, const char *level);

#endif
