/* strip_tile.h - products of packed weights with many activation rows. A strip of weight rows is unpacked once, to
 * bytes whose columns lie as integer products need them, and then multiplied with all activations from the L1 cache.
 *
 * The including file has chosen a vector width (vec_256.h, vec_512.h), how sums are kept (strip_int16.h, strip_vnni.h)
 * and the size of a tile, which is what registers hold:
 *   LQ_STRIP_VECTORS, LQ_STRIP_X    vectors of weight rows, and activation rows
 * Of unsigned bytes u of a weight and signed bytes s, four columns of a row in each 32-bit lane, the sums are:
 *   LQ_SUM_STEPS(max)               how many steps one sum holds, of codes up to max
 *   sum_step(sum, u, s)             another step
 *   sum_total(sum)                  the sum in 32-bit lanes
 *   LQ_STRIP_SIGNED                 1: signed weights stay signed; 0: they are stored with 128 added, as any others
 *   sum_signed(sum, w, s)           another step of signed bytes w, in 32-bit lanes at once
 *
 * A weight is d * code + m, with one d and m for a group of 16 or 32 columns. The same operations in the same order
 * compute an output however many activation rows and weight rows there are. The products for few rows (matmul_tile.h)
 * add up columns in another order. */
#ifndef LQ_CPU_STRIP_TILE_H
#define LQ_CPU_STRIP_TILE_H

#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"
#include "backends/cpu/kernels/strip_unpack.h"

#define LQ_STRIP_ROWS (LQ_STRIP_VECTORS * V_LANES)
/* The most activation rows of any tile. */
#define LQ_MOST_X 8

/* ---- multiplying */

/* How codes of a type are added up. */
typedef struct strip_kind {
    size_t group;   /* columns of a scale, 16 or 32 */
    int max;        /* largest code */
    bool is_signed; /* there is no m */
} strip_kind;

LQ_INLINE vint strip_four(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return vi_set1(four);
}

/* sums[v][t] += the strips' n_cols columns from first_col on times activation row t. */
LQ_INLINE void strip_multiply(vfloat sums[LQ_STRIP_VECTORS][LQ_MOST_X], const strip *s, const lq_q8_row *x, size_t n_x,
                              size_t all_cols, size_t first_col, size_t n_cols, strip_kind kind) {
    const int8_t *q[LQ_STRIP_X];
    const float *d[LQ_STRIP_X], *d_sums[LQ_STRIP_X];
    LQ_UNROLL
    for (size_t t = 0; t < n_x; t++) {
        q[t] = x[t].q + first_col;
        d[t] = x[t].d + first_col / LQ_Q8_BLOCK;
        d_sums[t] = x[t].d_sums + (kind.group == 16 ? all_cols / 32 : 0) + first_col / kind.group;
    }
    const size_t n_steps = kind.group / 4, most = LQ_SUM_STEPS(kind.max), round = most < n_steps ? most : n_steps;
    for (size_t g = 0; g < n_cols / kind.group; g++) {
        vint total[LQ_STRIP_VECTORS][LQ_STRIP_X];
        LQ_UNROLL
        for (size_t first = 0; first < n_steps; first += round) {
            vint sum[LQ_STRIP_VECTORS][LQ_STRIP_X];
            LQ_UNROLL
            for (size_t step = first; step < first + round; step++) {
                size_t column = g * n_steps + step;
                LQ_UNROLL
                for (size_t t = 0; t < n_x; t++) {
                    vint four = strip_four(q[t] + 4 * column);
                    LQ_UNROLL
                    for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {
                        vint before = step == first ? vi_set1(0) : sum[v][t];
                        sum[v][t] = kind.is_signed ? sum_signed(before, s[v].codes[column], four)
                                                   : sum_step(before, s[v].codes[column], four);
                    }
                }
            }
            LQ_UNROLL
            for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
                size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
                vint part = kind.is_signed ? sum[v][t] : sum_total(sum[v][t]);
                total[v][t] = first == 0 ? part : vi_add(total[v][t], part);
            }
        }
        LQ_UNROLL
        for (size_t t = 0; t < n_x; t++) {
            vfloat scale = vf_set1(d[t][g * kind.group / LQ_Q8_BLOCK]), d_sum = vf_set1(d_sums[t][g]);
            LQ_UNROLL
            for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {
                sums[v][t] = vf_fma(vf_from_int(total[v][t]), vf_mul(s[v].d[g], scale), sums[v][t]);
                if (!kind.is_signed) sums[v][t] = vf_fma(s[v].m[g], d_sum, sums[v][t]);
            }
        }
    }
}

/* The output of a tile: n_rows floats of each activation row, y_stride floats apart. If they are fewer than
 * LQ_STRIP_ROWS, y has no room for a whole tile, and `edge` has. */
typedef struct tile_output {
    float *y;
    size_t y_stride;
    size_t n_rows;
    float edge[LQ_MOST_X][LQ_STRIP_ROWS];
} tile_output;

/* Does not clear the edge, which would cost as much as a tile's sums. */
LQ_INLINE void set_output(tile_output *out, float *y, size_t y_stride, size_t n_rows) {
    out->y = y;
    out->y_stride = y_stride;
    out->n_rows = n_rows;
}

LQ_INLINE bool is_whole(const tile_output *out) { return out->n_rows == LQ_STRIP_ROWS; }

/* Loads the sums so far; zeros for the first strip of columns. */
LQ_INLINE void load_sums(vfloat sums[LQ_STRIP_VECTORS][LQ_MOST_X], tile_output *out, size_t n_x, bool first) {
    const float *at = is_whole(out) ? out->y : out->edge[0];
    size_t stride = is_whole(out) ? out->y_stride : LQ_STRIP_ROWS;
    if (!is_whole(out) && !first)
        for (size_t t = 0; t < n_x; t++) memcpy(out->edge[t], out->y + t * out->y_stride, out->n_rows * sizeof(float));
    LQ_UNROLL
    for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
        size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
        sums[v][t] = first ? vf_set1(0.0f) : vf_load(at + t * stride + v * V_LANES);
    }
}

LQ_INLINE void store_sums(tile_output *out, vfloat sums[LQ_STRIP_VECTORS][LQ_MOST_X], size_t n_x) {
    float *at = is_whole(out) ? out->y : out->edge[0];
    size_t stride = is_whole(out) ? out->y_stride : LQ_STRIP_ROWS;
    LQ_UNROLL
    for (size_t i = 0; i < n_x * LQ_STRIP_VECTORS; i++) {
        size_t t = i / LQ_STRIP_VECTORS, v = i % LQ_STRIP_VECTORS;
        vf_store(at + t * stride + v * V_LANES, sums[v][t]);
    }
    if (!is_whole(out))
        for (size_t t = 0; t < n_x; t++) memcpy(out->y + t * out->y_stride, out->edge[t], out->n_rows * sizeof(float));
}

/* Adds the products of n_cols columns from first_col on to n_rows outputs of n_x activation rows. */
LQ_INLINE void strip_tile(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,
                          size_t all_cols, size_t first_col, size_t n_cols, strip_kind kind) {
    tile_output out;
    set_output(&out, y, y_stride, n_rows);
    vfloat sums[LQ_STRIP_VECTORS][LQ_MOST_X];
    load_sums(sums, &out, n_x, first_col == 0);
    strip_multiply(sums, s, x, n_x, all_cols, first_col, n_cols, kind);
    store_sums(&out, sums, n_x);
}

LQ_INLINE strip_rows strip_at(const uint8_t *w, size_t row_bytes, size_t first, size_t n_rows, size_t offset,
                              const uint8_t *ahead) {
    strip_rows rows = {.ahead = ahead};
    for (size_t i = 0; i < V_LANES; i++)
        rows.at[i] = w + (first + i < n_rows ? first + i : n_rows - 1) * row_bytes + offset;
    return rows;
}

/* Computes a tile of up to LQ_STRIP_X activation rows, for one kind of codes. */
typedef void (*strip_tile_fn)(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,
                              size_t all_cols, size_t first_col, size_t n_cols);

#define LQ_DEFINE_STRIP_TILE(name, ...)                                                                                \
    static void name(float *y, size_t y_stride, size_t n_rows, const strip *s, const lq_q8_row *x, size_t n_x,         \
                     size_t all_cols, size_t first_col, size_t n_cols) {                                               \
        const strip_kind kind = {__VA_ARGS__};                                                                         \
        LQ_UNROLL                                                                                                      \
        for (size_t n = 1; n <= LQ_STRIP_X; n++)                                                                       \
            if (n == n_x) strip_tile(y, y_stride, n_rows, s, x, n, all_cols, first_col, n_cols, kind);                 \
    }

LQ_DEFINE_STRIP_TILE(tile_31, 32, 31, false)
LQ_DEFINE_STRIP_TILE(tile_63, 16, 63, false)
LQ_DEFINE_STRIP_TILE(tile_signed, 32, 255, LQ_STRIP_SIGNED)

/* Returns the activation rows of the next tile. The last two tiles get equally many, because a tile of one row stalls
 * on the latency of its own sums. */
LQ_INLINE size_t strip_next_x(size_t left, size_t most) {
    return left >= 2 * most || left == most ? most : left > most ? (left + 1) / 2 : left;
}

/* Multiplies all activation rows with one strip. */
LQ_INLINE void strip_tiles(strip_tile_fn tile, float *y, size_t y_stride, size_t n_rows, const strip *s,
                           const void *x_q8, size_t n_x, size_t all_cols, size_t first_col, size_t n_cols) {
    for (size_t t = 0, n; t < n_x; t += n) {
        lq_q8_row x[LQ_STRIP_X];
        n = strip_next_x(n_x - t, LQ_STRIP_X);
        for (size_t i = 0; i < n; i++) x[i] = lq_q8_row_at((void *)(uintptr_t)x_q8, all_cols, t + i);
        tile(y + t * y_stride, y_stride, n_rows, s, x, n, all_cols, first_col, n_cols);
    }
}

/* Returns the columns of a strip, of n_cols columns in blocks of block_len. Strips are as equal as blocks allow: the
 * fixed work for each strip and tile weighs more in a narrow one. */
LQ_INLINE size_t strip_cols(size_t n_cols, size_t block_len) {
    size_t n_strips = (n_cols + LQ_STRIP_COLS - 1) / LQ_STRIP_COLS, n_blocks = n_cols / block_len;
    return (n_blocks + n_strips - 1) / n_strips * block_len;
}

/* Defines lq_matmul_q8_fn `id`_many. */
#define LQ_DEFINE_MANY(id, NAME, tile)                                                                                 \
    static void id##_many(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows, size_t n_cols,    \
                          const void *x_q8, size_t n_x) {                                                              \
        strip s[LQ_STRIP_VECTORS];                                                                                     \
        size_t cols = strip_cols(n_cols, LQ_##NAME##_LEN);                                                             \
        const uint8_t *ahead = (const uint8_t *)w + LQ_STRIP_ROWS * row_bytes;                                         \
        for (size_t r = 0; r < n_rows; r += LQ_STRIP_ROWS) {                                                           \
            size_t n_real = n_rows - r < LQ_STRIP_ROWS ? n_rows - r : LQ_STRIP_ROWS;                                   \
            for (size_t c = 0; c < n_cols; c += cols) {                                                                \
                size_t n = n_cols - c < cols ? n_cols - c : cols, n_blocks = n / LQ_##NAME##_LEN;                      \
                size_t offset = c / LQ_##NAME##_LEN * sizeof(lq_block_##id);                                           \
                for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {                                                        \
                    strip_rows rows = strip_at(w, row_bytes, r + v * V_LANES, n_rows, offset, ahead);                  \
                    id##_unpack(&s[v], &rows, n_blocks);                                                               \
                    ahead += V_LANES * n_blocks * sizeof(lq_block_##id);                                               \
                }                                                                                                      \
                strip_tiles(tile, y + r, y_stride, n_real, s, x_q8, n_x, n_cols, c, n);                                \
            }                                                                                                          \
        }                                                                                                              \
    }

#define LQ_MANY_ENTRY(id, NAME, tile) kernels->matmul_many[LQ_TYPE_##NAME] = id##_many;

#define LQ_STRIP_TYPES(X)                                                                                              \
    X(q4_0, Q4_0, tile_31)                                                                                             \
    X(q4_1, Q4_1, tile_31)                                                                                             \
    X(q5_0, Q5_0, tile_31)                                                                                             \
    X(q5_1, Q5_1, tile_31)                                                                                             \
    X(q8_0, Q8_0, tile_signed)                                                                                         \
    X(iq4_nl, IQ4_NL, tile_signed)                                                                                     \
    X(q4_k, Q4_K, tile_31)                                                                                             \
    X(q5_k, Q5_K, tile_31)                                                                                             \
    X(iq4_xs, IQ4_XS, tile_signed)                                                                                     \
    X(q2_k, Q2_K, tile_63)                                                                                             \
    X(q3_k, Q3_K, tile_63)                                                                                             \
    X(q6_k, Q6_K, tile_63)

LQ_STRIP_TYPES(LQ_DEFINE_MANY)

LQ_INLINE void set_many_products(lq_kernels *kernels) { LQ_STRIP_TYPES(LQ_MANY_ENTRY) }

#endif
