/* dot_i8mm.c - integer products of several activation rows with the matrix extension (i8mm). One instruction multiplies
 * two weight rows with two activation rows of eight bytes. A single activation row gains nothing from it, nor do types
 * with groups of 16, whose sums are converted twice as often: these run as at level dotprod.
 *
 * The four sums of an instruction are complete, so a lane here is an output, and the lanes of dot_neon.h are four
 * accumulators here. The steps and their order are the same, and so are the bits. */
#include "backends/cpu/kernels/arm/dot_neon.h"

LQ_NEON_TYPES_OF_32(LQ_NEON_MATMUL)

/* Weight rows that are multiplied with the same woven activations before the next ones are woven. */
#define PAIR_ROWS 32
/* Columns woven at once: 7 KiB, which stay in the L1 cache. */
#define WOVEN_COLUMNS 1024
#define N_PAIRS (LQ_TILE_X / 2)

/* 128 columns of four activation rows, by pairs of rows. */
typedef struct woven_128 {
    int8x16_t q[N_PAIRS][16];       /* eight bytes of the first row, the same eight of the second */
    float32x4_t d[N_PAIRS][4];      /* scale of each group: first, first, second, second */
    float32x4_t scaled[N_PAIRS][4]; /* d times the sum of q */
    int32x4_t offset[N_PAIRS][4];   /* added to the products: minus the offset of the codes times the activations */
} woven_128;

LQ_INLINE int8x16_t lower_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

LQ_INLINE int8x16_t upper_halves(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* Gives lane g of a twice, then of b twice. */
LQ_INLINE void spread_groups(float32x4_t out[4], float32x4_t a, float32x4_t b) {
    out[0] = vcombine_f32(vdup_laneq_f32(a, 0), vdup_laneq_f32(b, 0));
    out[1] = vcombine_f32(vdup_laneq_f32(a, 1), vdup_laneq_f32(b, 1));
    out[2] = vcombine_f32(vdup_laneq_f32(a, 2), vdup_laneq_f32(b, 2));
    out[3] = vcombine_f32(vdup_laneq_f32(a, 3), vdup_laneq_f32(b, 3));
}

static void weave_128(woven_128 *out, const lq_q8_row x[LQ_TILE_X], size_t first_col, size_t n_groups, int offset) {
    for (size_t p = 0; p < N_PAIRS; p++) {
        inputs_128 a = load_inputs_128(&x[2 * p], first_col, n_groups);
        inputs_128 b = load_inputs_128(&x[2 * p + 1], first_col, n_groups);
        int32x4_t a_sums = vmulq_n_s32(a.sums, -offset), b_sums = vmulq_n_s32(b.sums, -offset);
        float32x4_t offsets[4];
        spread_groups(out->d[p], a.d, b.d);
        spread_groups(out->scaled[p], a.scaled, b.scaled);
        spread_groups(offsets, vreinterpretq_f32_s32(a_sums), vreinterpretq_f32_s32(b_sums));
        for (size_t g = 0; g < 4; g++) out->offset[p][g] = vreinterpretq_s32_f32(offsets[g]);
        for (size_t i = 0; i < 8; i++) {
            int8x16_t first = vld1q_s8(a.q + 16 * i), second = vld1q_s8(b.q + 16 * i);
            out->q[p][2 * i] = lower_halves(first, second);
            out->q[p][2 * i + 1] = upper_halves(first, second);
        }
    }
}

/* Scales of two rows by group: first, second, first, second. */
LQ_INLINE void pair_groups(float32x4_t out[4], float32x4_t a, float32x4_t b) {
    float64x2_t low = vreinterpretq_f64_f32(vzip1q_f32(a, b)), high = vreinterpretq_f64_f32(vzip2q_f32(a, b));
    out[0] = vreinterpretq_f32_f64(vdupq_laneq_f64(low, 0));
    out[1] = vreinterpretq_f32_f64(vdupq_laneq_f64(low, 1));
    out[2] = vreinterpretq_f32_f64(vdupq_laneq_f64(high, 0));
    out[3] = vreinterpretq_f32_f64(vdupq_laneq_f64(high, 1));
}

/* Lanes of acc: first activation row with both weight rows, then the second. */
LQ_INLINE void step_pairs(float32x4_t acc[N_PAIRS][4], const weights_128 *a, const weights_128 *b, const woven_128 *x,
                          bool has_min) {
    float32x4_t d[4], m[4];
    pair_groups(d, a->d, b->d);
    pair_groups(m, a->m, b->m);
    LQ_UNROLL
    for (int g = 0; g < 4; g++) {
        int8x16_t w[4];
        LQ_UNROLL
        for (int i = 0; i < 2; i++) {
            w[2 * i] = lower_halves(a->q[2 * g + i], b->q[2 * g + i]);
            w[2 * i + 1] = upper_halves(a->q[2 * g + i], b->q[2 * g + i]);
        }
        LQ_UNROLL
        for (int p = 0; p < N_PAIRS; p++) {
            int32x4_t total = x->offset[p][g];
            LQ_UNROLL
            for (int i = 0; i < 4; i++) total = vmmlaq_s32(total, x->q[p][4 * g + i], w[i]);
            if (has_min) acc[p][g] = vfmaq_f32(acc[p][g], m[g], x->scaled[p][g]);
            acc[p][g] = vfmaq_f32(acc[p][g], vcvtq_f32_s32(total), vmulq_f32(d[g], x->d[p][g]));
        }
    }
}

/* Adds the products of n_rows weight rows, from column first_col on, with n_cols woven columns. */
typedef void (*columns_fn)(float32x4_t (*acc)[N_PAIRS][4], const uint8_t *w, size_t row_bytes, size_t n_rows,
                           size_t first_col, size_t n_cols, const woven_128 *x);

#define LQ_DEFINE_COLUMNS(name, NAME, chunk_blocks)                                                                    \
    static void name##_columns(float32x4_t(*acc)[N_PAIRS][4], const uint8_t *w, size_t row_bytes, size_t n_rows,       \
                               size_t first_col, size_t n_cols, const woven_128 *x) {                                  \
        w += first_col / LQ_##NAME##_LEN * sizeof(lq_block_##name);                                                    \
        size_t n_blocks = n_cols / LQ_##NAME##_LEN;                                                                    \
        for (size_t r = 0; r < n_rows; r += 2, acc++) {                                                                \
            const uint8_t *a = w + r * row_bytes, *b = r + 1 < n_rows ? a + row_bytes : a;                             \
            const woven_128 *columns = x;                                                                              \
            float32x4_t sum[N_PAIRS][4];                                                                               \
            memcpy(sum, acc, sizeof sum);                                                                              \
            for (size_t i = 0; i < n_blocks; i += (chunk_blocks)) {                                                    \
                size_t n = n_blocks - i < (chunk_blocks) ? n_blocks - i : (chunk_blocks);                              \
                LQ_UNROLL                                                                                              \
                for (int p = 0; p < name##_parts; p++, columns++) {                                                    \
                    weights_128 wa = name##_part(a, n, p), wb = name##_part(b, n, p);                                  \
                    step_pairs(sum, &wa, &wb, columns, name##_has_min);                                                \
                }                                                                                                      \
                a += n * sizeof(lq_block_##name);                                                                      \
                b += n * sizeof(lq_block_##name);                                                                      \
            }                                                                                                          \
            memcpy(acc, sum, sizeof sum);                                                                              \
        }                                                                                                              \
    }

/* Computes y for up to PAIR_ROWS weight rows and LQ_TILE_X activation rows. */
static void multiply_rows(columns_fn columns, int offset, float *y, size_t y_stride, const uint8_t *w, size_t row_bytes,
                          size_t n_rows, size_t n_cols, const lq_q8_row x[LQ_TILE_X], size_t n_x) {
    woven_128 woven[WOVEN_COLUMNS / 128];
    float32x4_t acc[PAIR_ROWS / 2][N_PAIRS][4];
    memset(acc, 0, sizeof acc);
    for (size_t c = 0; c < n_cols; c += WOVEN_COLUMNS) {
        size_t n = n_cols - c < WOVEN_COLUMNS ? n_cols - c : WOVEN_COLUMNS;
        for (size_t i = 0; i < n; i += 128)
            weave_128(&woven[i / 128], x, c + i, n - i < 128 ? (n - i) / 32 : 4, offset);
        columns(acc, w, row_bytes, n_rows, c, n, woven);
    }
    for (size_t r = 0; r < n_rows; r++)
        for (size_t t = 0; t < n_x; t++) {
            const float32x4_t *sum = acc[r / 2][t / 2];
            float lanes[4];
            vst1q_f32(lanes, vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
            y[t * y_stride + r] = lanes[t % 2 * 2 + r % 2];
        }
}

static void multiply(columns_fn columns, int offset, float *y, size_t y_stride, const uint8_t *w, size_t row_bytes,
                     size_t n_rows, size_t n_cols, const void *x_q8, size_t n_x) {
    for (size_t r = 0; r < n_rows; r += PAIR_ROWS) {
        size_t n = n_rows - r < PAIR_ROWS ? n_rows - r : PAIR_ROWS;
        for (size_t t = 0; t < n_x; t += LQ_TILE_X) {
            size_t n_real_x = n_x - t < LQ_TILE_X ? n_x - t : LQ_TILE_X;
            lq_q8_row x[LQ_TILE_X];
            for (size_t i = 0; i < LQ_TILE_X; i++)
                x[i] = lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols, t + (i < n_real_x ? i : n_real_x - 1));
            multiply_rows(columns, offset, y + t * y_stride + r, y_stride, w + r * row_bytes, row_bytes, n, n_cols, x,
                          n_real_x);
        }
    }
}

#define LQ_DEFINE_PAIRS(name, NAME, chunk_blocks)                                                                      \
    LQ_DEFINE_COLUMNS(name, NAME, chunk_blocks)                                                                        \
    static void name##_pairs(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows, size_t n_cols, \
                             const void *x_q8, size_t n_x) {                                                           \
        if (n_x == 1)                                                                                                  \
            name(y, y_stride, w, row_bytes, n_rows, n_cols, x_q8, n_x);                                                \
        else                                                                                                           \
            multiply(name##_columns, name##_offset, y, y_stride, w, row_bytes, n_rows, n_cols, x_q8, n_x);             \
    }
LQ_NEON_TYPES_OF_32(LQ_DEFINE_PAIRS)

#define LQ_PAIRS_ENTRY(name, NAME, chunk_blocks) kernels->matmul_q8[LQ_TYPE_##NAME] = name##_pairs;

void lq_kernels_init_i8mm_dot(lq_kernels *kernels) { LQ_NEON_TYPES_OF_32(LQ_PAIRS_ENTRY) }
