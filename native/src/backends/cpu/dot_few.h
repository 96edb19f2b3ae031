/* dot_few.h - products of packed weights with one or two activation rows, in the order of strip_tile.h: the same bits
 * as with many. Four weight rows are taken side by side; whole sums of a group's products are turned so that a vector
 * has [phase][weight row] and are added up as floats there.
 *
 * A kernel file has x86's vector type for acc_type and provides, for one chunk of `chunk_blocks` blocks, of which the
 * last may hold fewer (n_blocks):
 *   name_inputs name_load_x(const lq_q8_row *x, size_t all_cols, size_t first_col, size_t n_blocks)
 *   void name_add(acc_type acc[2], const uint8_t *const blocks[4], size_t n_blocks, const name_inputs in[2], size_t
 * n_x)
 *   __m128 acc_fold(acc_type acc)      the sum of the phases of each row
 * LQ_ADD_ROWS defines name_add where a chunk of four rows is little enough to be unpacked at once, from
 *   name_weights name_load_w(const uint8_t *blocks, size_t n_blocks)
 *   acc_type name_step(acc_type acc, const name_weights w[4], const name_inputs *x) */
#ifndef LQ_CPU_DOT_FEW_H
#define LQ_CPU_DOT_FEW_H

#include <immintrin.h>

#include "backends/cpu/matmul_tile.h"

/* Asks for what the four rows' chunks of n_bytes will be followed by: for row r where there are streams, else its share
 * of the lines from `ahead` on. */
LQ_INLINE void ask_for_row(const uint8_t *const rows[4], size_t r, size_t offset, size_t n_bytes, bool streams,
                           uintptr_t ahead) {
    size_t n_lines = (4 * n_bytes + 63) / 64, first = streams ? 0 : r * n_lines / 4;
    size_t end = streams ? (n_bytes + 48) / 64 : (r + 1) * n_lines / 4;
    uintptr_t from = streams ? (uintptr_t)rows[r] + offset + LQ_STREAM_PREFETCH_BYTES : ahead;
    LQ_UNROLL for (size_t i = first; i < end; i++) __builtin_prefetch((const void *)(from + 64 * i), 0, 2);
}

#define LQ_ADD_ROWS(name, acc_type)                                                                                    \
    LQ_INLINE void name##_add(acc_type acc[2], const uint8_t *const blocks[4], size_t n_blocks,                        \
                              const name##_inputs in[2], size_t n_x) {                                                 \
        name##_weights w[4];                                                                                           \
        LQ_UNROLL for (size_t r = 0; r < 4; r++) w[r] = name##_load_w(blocks[r], n_blocks);                            \
        LQ_UNROLL for (size_t t = 0; t < n_x; t++) acc[t] = name##_step(acc[t], w, &in[t]);                            \
    }

/* Defines lq_matmul_q8_fn `name` of the type NAME. */
#define LQ_DEFINE_FEW(name, NAME, chunk_blocks, acc_type, acc_zero, acc_fold)                                          \
    LQ_INLINE void name##_chunk(acc_type acc[2], const uint8_t *const rows[4], size_t n_blocks, bool streams,          \
                                uintptr_t ahead, const lq_q8_row *x, size_t n_x, size_t all_cols, size_t first_col) {  \
        size_t offset = first_col / LQ_##NAME##_LEN * sizeof(lq_block_##name);                                         \
        const uint8_t *blocks[4];                                                                                      \
        name##_inputs in[2];                                                                                           \
        LQ_UNROLL for (size_t r = 0; r < 4; r++) {                                                                     \
            ask_for_row(rows, r, offset, n_blocks * sizeof(lq_block_##name), streams, ahead + 4 * offset);             \
            blocks[r] = rows[r] + offset;                                                                              \
        }                                                                                                              \
        LQ_UNROLL for (size_t t = 0; t < n_x; t++) in[t] = name##_load_x(&x[t], all_cols, first_col, n_blocks);        \
        name##_add(acc, blocks, n_blocks, in, n_x);                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    LQ_INLINE void name##_four(float *y, size_t y_stride, size_t row_stride, size_t n_real_rows,                       \
                               const uint8_t *const rows[4], size_t row_bytes, bool streams, const lq_q8_row *x,       \
                               size_t n_x, size_t n_cols) {                                                            \
        enum { COLS = (chunk_blocks) * LQ_##NAME##_LEN };                                                              \
        __m128 sums[2] = {_mm_setzero_ps(), _mm_setzero_ps()};                                                         \
        uintptr_t ahead = (uintptr_t)rows[0] + (uintptr_t)(4 * row_bytes) + LQ_PREFETCH_BYTES;                         \
        size_t strip = lq_strip_cols(n_cols, LQ_##NAME##_LEN);                                                         \
        for (size_t first = 0; first < n_cols; first += strip) {                                                       \
            size_t c = first, end = n_cols - first < strip ? n_cols : first + strip;                                   \
            acc_type acc[2] = {acc_zero(), acc_zero()};                                                                \
            for (; c + COLS <= end; c += COLS)                                                                         \
                name##_chunk(acc, rows, (chunk_blocks), streams, ahead, x, n_x, n_cols, c);                            \
            if (c < end) name##_chunk(acc, rows, (end - c) / LQ_##NAME##_LEN, streams, ahead, x, n_x, n_cols, c);      \
            LQ_UNROLL for (size_t t = 0; t < n_x; t++) sums[t] = _mm_add_ps(sums[t], acc_fold(acc[t]));                \
        }                                                                                                              \
        LQ_UNROLL for (size_t t = 0; t < n_x; t++) {                                                                   \
            float out[4];                                                                                              \
            _mm_storeu_ps(out, sums[t]);                                                                               \
            for (size_t r = 0; r < n_real_rows; r++) y[t * y_stride + r * row_stride] = out[r];                        \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    LQ_INLINE void name##_rows(float *y, size_t y_stride, const uint8_t *w, size_t row_bytes, size_t n_rows,           \
                               size_t n_cols, const lq_q8_row *x, size_t n_x) {                                        \
        size_t part = lq_stream_rows(n_rows, 4, row_bytes);                                                            \
        const uint8_t *rows[4];                                                                                        \
        for (size_t r = 0; r < part; r++) {                                                                            \
            for (size_t i = 0; i < 4; i++) rows[i] = w + (r + i * part) * row_bytes;                                   \
            name##_four(y + r, y_stride, part, 4, rows, row_bytes, true, x, n_x, n_cols);                              \
        }                                                                                                              \
        for (size_t r = part * 4; r < n_rows; r += 4) {                                                                \
            size_t n_real = lq_tile_rows(rows, 4, w, row_bytes, r, n_rows);                                            \
            name##_four(y + r, y_stride, 1, n_real, rows, row_bytes, false, x, n_x, n_cols);                           \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void name##_one(float *y, const uint8_t *w, size_t row_bytes, size_t n_rows, size_t n_cols,                 \
                           const lq_q8_row *x) {                                                                       \
        name##_rows(y, 0, w, row_bytes, n_rows, n_cols, x, 1);                                                         \
    }                                                                                                                  \
                                                                                                                       \
    static void name##_two(float *y, size_t y_stride, const uint8_t *w, size_t row_bytes, size_t n_rows,               \
                           size_t n_cols, const lq_q8_row *x) {                                                        \
        name##_rows(y, y_stride, w, row_bytes, n_rows, n_cols, x, 2);                                                  \
    }                                                                                                                  \
                                                                                                                       \
    static void name(float *y, size_t y_stride, const void *w, size_t row_bytes, size_t n_rows, size_t n_cols,         \
                     const void *x_q8, size_t n_x) {                                                                   \
        for (size_t t = 0; t < n_x; t += 2) {                                                                          \
            lq_q8_row x[2];                                                                                            \
            size_t n = n_x - t < 2 ? 1 : 2;                                                                            \
            for (size_t i = 0; i < n; i++) x[i] = lq_q8_row_at((void *)(uintptr_t)x_q8, n_cols, t + i);                \
            if (n == 1)                                                                                                \
                name##_one(y + t * y_stride, w, row_bytes, n_rows, n_cols, x);                                         \
            else                                                                                                       \
                name##_two(y + t * y_stride, y_stride, w, row_bytes, n_rows, n_cols, x);                               \
        }                                                                                                              \
    }

#endif
