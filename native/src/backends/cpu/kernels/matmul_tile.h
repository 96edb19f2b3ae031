/* matmul_tile.h - the loop nest of all integer products with few activation rows. A kernel file defines how one chunk
 * of a row is unpacked and multiplied; this file walks rows, chunks and activations.
 *
 * The same operations in the same order compute an output whatever n_x and n_rows are. */
#ifndef LQ_CPU_MATMUL_TILE_H
#define LQ_CPU_MATMUL_TILE_H

#include <stdbool.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

/* Activation rows of a tile if n_x > 2. */
#define LQ_TILE_X 4
/* Bytes of activations that are multiplied with all weight rows before the next ones. They stay in the L2 cache. */
#define LQ_PANEL_BYTES (192u * 1024)
/* How far ahead weights are prefetched, in bytes: as many as memory delivers within its latency. The hardware
 * prefetcher does not follow several short rows that are read side by side. */
#define LQ_PREFETCH_BYTES 4096u
/* With one or two activation rows, read the weights as several streams: a core that reads a single stream gets a
 * quarter less from memory. A stream of fewer bytes than this is too short: prefetching past its end costs more than it
 * saves. */
#define LQ_STREAM_BYTES 24576u
#define LQ_STREAM_PREFETCH_BYTES 2048u

/* Points rows[0..n) at the weight rows from `first` on. Beyond the last row they repeat it; those results are dropped.
 */
LQ_INLINE size_t lq_tile_rows(const uint8_t **rows, size_t n, const uint8_t *w, size_t row_bytes, size_t first,
                              size_t n_rows) {
    size_t n_real = n_rows - first < n ? n_rows - first : n;
    for (size_t i = 0; i < n; i++) rows[i] = w + (first + (i < n_real ? i : n_real - 1)) * row_bytes;
    return n_real;
}

/* The number of rows in each of n_streams streams; 0: rows are read one after another. */
LQ_INLINE size_t lq_stream_rows(size_t n_rows, size_t n_streams, size_t row_bytes) {
    size_t n = n_rows / n_streams;
    return n * row_bytes >= LQ_STREAM_BYTES ? n : 0;
}

/* Defines lq_matmul_q8_fn `name`. A kernel file provides, for one chunk of chunk_blocks blocks (block_len weights in
 * block_bytes bytes), of which the last chunk may hold fewer (n_blocks):
 *   name_weights name_load_w(const uint8_t *blocks, size_t n_blocks)
 *   name_inputs name_load_x(const lq_q8_row *x, size_t first_col, size_t n_blocks)
 *   acc_type name_step(acc_type acc, const name_weights *w, const name_inputs *x)
 * and acc_zero(), acc_sums(float sums[4], a, b, c, d) to add up the lanes of four accumulators, each in the same order.
 * rows_1 weight rows (a multiple of 4) are taken at once for one or two activation rows, rows_n for LQ_TILE_X. */
#define LQ_DEFINE_MATMUL(name, block_len, block_bytes, chunk_blocks, acc_type, acc_zero, acc_sums, rows_1, rows_n)     \
    LQ_INLINE void name##_tile(float *y, size_t y_stride, size_t row_stride, size_t n_real_rows,                       \
                               const uint8_t *const *rows, size_t n_rows, size_t row_bytes, bool streams,              \
                               const lq_q8_row *x, size_t n_real_x, size_t n_x, size_t n_cols) {                       \
        acc_type acc[rows_n * LQ_TILE_X > 2 * rows_1 ? rows_n * LQ_TILE_X : 2 * rows_1];                               \
        size_t n_blocks = n_cols / (block_len), full = n_blocks / (chunk_blocks) * (chunk_blocks);                     \
        LQ_UNROLL for (size_t i = 0; i < n_rows * n_x; i++) acc[i] = acc_zero();                                       \
        uintptr_t ahead = (uintptr_t)rows[0] + (uintptr_t)(n_rows * row_bytes) + LQ_PREFETCH_BYTES;                    \
        for (size_t b = 0; b < full; b += (chunk_blocks)) {                                                            \
            name##_inputs in[LQ_TILE_X];                                                                               \
            LQ_UNROLL for (size_t t = 0; t < n_x; t++) in[t] = name##_load_x(&x[t], b * (block_len), (chunk_blocks));  \
            LQ_UNROLL for (size_t r = 0; r < n_rows; r++) {                                                            \
                size_t bytes = (chunk_blocks) * (block_bytes), n_lines = (n_rows * bytes + 63) / 64;                   \
                size_t end = streams ? (bytes + 48) / 64 : (r + 1) * n_lines / n_rows; /* this row's share */          \
                uintptr_t from = streams ? (uintptr_t)rows[r] + b * (block_bytes) + LQ_STREAM_PREFETCH_BYTES : ahead;  \
                LQ_UNROLL for (size_t i = streams ? 0 : r * n_lines / n_rows; i < end; i++)                            \
                    __builtin_prefetch((const void *)(from + 64 * i), 0, 2);                                           \
                name##_weights w = name##_load_w(rows[r] + b * (block_bytes), (chunk_blocks));                         \
                LQ_UNROLL for (size_t t = 0; t < n_x; t++) acc[r * n_x + t] =                                          \
                    name##_step(acc[r * n_x + t], &w, &in[t]);                                                         \
            }                                                                                                          \
            ahead += n_rows * (chunk_blocks) * (block_bytes);                                                          \
        }                                                                                                              \
        if (full < n_blocks) {                                                                                         \
            for (size_t i = 0; !streams && i < n_rows * (n_blocks - full) * (block_bytes); i += 64)                    \
                __builtin_prefetch((const void *)(ahead + i), 0, 2);                                                   \
            name##_inputs in[LQ_TILE_X];                                                                               \
            LQ_UNROLL for (size_t t = 0; t < n_x; t++) in[t] =                                                         \
                name##_load_x(&x[t], full * (block_len), n_blocks - full);                                             \
            LQ_UNROLL for (size_t r = 0; r < n_rows; r++) {                                                            \
                name##_weights w = name##_load_w(rows[r] + full * (block_bytes), n_blocks - full);                     \
                LQ_UNROLL for (size_t t = 0; t < n_x; t++) acc[r * n_x + t] =                                          \
                    name##_step(acc[r * n_x + t], &w, &in[t]);                                                         \
            }                                                                                                          \
        }                                                                                                              \
        float sums[sizeof(acc) / sizeof(acc[0])]; /* [n_rows][n_x] */                                                  \
        LQ_UNROLL for (size_t i = 0; i < n_rows * n_x; i += 4)                                                         \
            acc_sums(sums + i, acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);                                            \
        for (size_t t = 0; t < n_real_x; t++)                                                                          \
            for (size_t r = 0; r < n_real_rows; r++) y[t * y_stride + r * row_stride] = sums[r * n_x + t];             \
    }                                                                                                                  \
                                                                                                                       \
    LQ_INLINE void name##_few(float *y, size_t y_stride, const uint8_t *w, size_t row_bytes, size_t n_rows,            \
                              size_t n_cols, const lq_q8_row *x, size_t n_x) {                                         \
        size_t part = lq_stream_rows(n_rows, (rows_1), row_bytes);                                                     \
        const uint8_t *rows[rows_1];                                                                                   \
        for (size_t r = 0; r < part; r++) {                                                                            \
            for (size_t i = 0; i < (rows_1); i++) rows[i] = w + (r + i * part) * row_bytes;                            \
            name##_tile(y + r, y_stride, part, (rows_1), rows, (rows_1), row_bytes, true, x, n_x, n_x, n_cols);        \
        }                                                                                                              \
        for (size_t r = part * (rows_1); r < n_rows; r += (rows_1)) {                                                  \
            size_t n_real = lq_tile_rows(rows, (rows_1), w, row_bytes, r, n_rows);                                     \
            name##_tile(y + r, y_stride, 1, n_real, rows, (rows_1), row_bytes, false, x, n_x, n_x, n_cols);            \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void name##_one(float *y, const uint8_t *w, size_t row_bytes, size_t n_rows, size_t n_cols,                 \
                           const lq_q8_row *x) {                                                                       \
        name##_few(y, 0, w, row_bytes, n_rows, n_cols, x, 1);                                                          \
    }                                                                                                                  \
                                                                                                                       \
    static void name##_two(float *y, size_t y_stride, const uint8_t *w, size_t row_bytes, size_t n_rows,               \
                           size_t n_cols, const lq_q8_row *x) {                                                        \
        name##_few(y, y_stride, w, row_bytes, n_rows, n_cols, x, 2);                                                   \
    }                                                                                                                  \
                                                                                                                       \
    static void name##_panel(float *y, size_t y_stride, const uint8_t *w, size_t row_bytes, size_t n_rows,             \
                             size_t n_cols, const void *x_q8, size_t first_x, size_t n_x) {                            \
        for (size_t r = 0; r < n_rows; r += (rows_n)) {                                                                \
            const uint8_t *rows[rows_n];                                                                               \
            size_t n_real = lq_tile_rows(rows, (rows_n), w, row_bytes, r, n_rows);                                     \
            for (size_t t = 0; t < n_x; t += LQ_TILE_X) {                                                              \
                size_t n_real_x = n_x - t < LQ_TILE_X ? n_x - t : LQ_TILE_X;                                           \
                lq_q8_row x[LQ_TILE_X];                                                                                \
                for (size_t i = 0; i < LQ_TILE_X; i++)                                                                 \
                    x[i] = lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols,                                               \
                                        first_x + t + (i < n_real_x ? i : n_real_x - 1));                              \
                name##_tile(y + t * y_stride + r, y_stride, 1, n_real, rows, (rows_n), row_bytes, false, x, n_real_x,  \
                            LQ_TILE_X, n_cols);                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void name(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows, size_t n_cols,         \
                     const void *x_q8, size_t n_x) {                                                                   \
        size_t panel = LQ_PANEL_BYTES / (lq_q8_row_bytes(n_cols) + 1) / LQ_TILE_X * LQ_TILE_X;                         \
        if (panel == 0) panel = LQ_TILE_X;                                                                             \
        for (size_t t = 0; t < n_x; t += panel) {                                                                      \
            size_t n = n_x - t < panel ? n_x - t : panel;                                                              \
            if (n == 1) {                                                                                              \
                lq_q8_row x = lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols, t);                                        \
                name##_one(y + t * y_stride, w, row_bytes, n_rows, n_cols, &x);                                        \
            } else if (n == 2) { /* a tile for more would do twice the work */                                         \
                lq_q8_row x[2] = {lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols, t),                                    \
                                  lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols, t + 1)};                               \
                name##_two(y + t * y_stride, y_stride, w, row_bytes, n_rows, n_cols, x);                               \
            } else {                                                                                                   \
                name##_panel(y + t * y_stride, y_stride, w, row_bytes, n_rows, n_cols, x_q8, t, n);                    \
            }                                                                                                          \
        }                                                                                                              \
    }

#endif
