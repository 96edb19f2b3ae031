/* strip_float.h - products in float of decoded weights with many activation rows, included after strip_tile.h: the same
 * strips, of floats. Serves all types that have no integer products, F16 and BF16 among them. */
#ifndef LQ_CPU_STRIP_FLOAT_H
#define LQ_CPU_STRIP_FLOAT_H

/* Columns decoded at once: a multiple of every block length. */
#define LQ_FLOAT_COLS 256

typedef struct float_strip {
    vfloat w[LQ_FLOAT_COLS]; /* [column], lane r: of row r */
} float_strip;

/* Decodes n_cols columns of V_LANES rows, n_bytes of each, and transposes them. */
LQ_INLINE void decode_strip(float_strip *s, lq_dequantize_fn decode, const strip_rows *rows, size_t n_cols,
                            size_t n_bytes) {
    float decoded[V_LANES][LQ_FLOAT_COLS];
    const uint8_t *floats[V_LANES];
    for (size_t r = 0; r < V_LANES; r++) {
        prefetch_rows(rows, r * n_bytes, n_bytes);
        decode(decoded[r], rows->at[r], n_cols);
        floats[r] = (const uint8_t *)decoded[r];
    }
    for (size_t c = 0; c < n_cols; c += 4) { /* the last vectors may belong to no column */
        vint four[4];
        transpose_dwords(four, floats, c * sizeof(float));
        LQ_UNROLL
        for (size_t i = 0; i < 4; i++) s->w[c + i] = vf_as_float(four[i]);
    }
}

LQ_INLINE void float_tile(float *y, size_t y_stride, size_t n_rows, const float_strip *s, const float *x,
                          size_t x_stride, size_t n_x, bool first, size_t n_cols) {
    tile_output out;
    set_output(&out, y, y_stride, n_rows);
    vfloat sums[LQ_STRIP_VECTORS][LQ_MOST_X];
    load_sums(sums, &out, n_x, first);
    for (size_t c = 0; c < n_cols; c++) {
        LQ_UNROLL
        for (size_t t = 0; t < n_x; t++) {
            vfloat value = vf_set1(x[t * x_stride + c]);
            LQ_UNROLL
            for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) sums[v][t] = vf_fma(s[v].w[c], value, sums[v][t]);
        }
    }
    store_sums(&out, sums, n_x);
}

static void float_tile_of(float *y, size_t y_stride, size_t n_rows, const float_strip *s, const float *x,
                          size_t x_stride, size_t n_x, bool first, size_t n_cols) {
    LQ_UNROLL
    for (size_t n = 1; n <= LQ_FLOAT_X; n++)
        if (n == n_x) float_tile(y, y_stride, n_rows, s, x, x_stride, n, first, n_cols);
}

static void many_f32(float *y, size_t y_stride, const lq_format *format, lq_dequantize_fn decode, const void *w,
                     size_t row_bytes, size_t n_rows, size_t n_cols, const float *x, size_t n_x) {
    float_strip s[LQ_STRIP_VECTORS];
    const uint8_t *ahead = (const uint8_t *)w + LQ_STRIP_ROWS * row_bytes;
    for (size_t r = 0; r < n_rows; r += LQ_STRIP_ROWS) {
        size_t n_real = n_rows - r < LQ_STRIP_ROWS ? n_rows - r : LQ_STRIP_ROWS;
        for (size_t c = 0; c < n_cols; c += LQ_FLOAT_COLS) {
            size_t cols = n_cols - c < LQ_FLOAT_COLS ? n_cols - c : LQ_FLOAT_COLS;
            size_t n_bytes = cols / format->block_len * format->block_bytes;
            for (size_t v = 0; v < LQ_STRIP_VECTORS; v++) {
                strip_rows rows =
                    strip_at(w, row_bytes, r + v * V_LANES, n_rows, c / format->block_len * format->block_bytes, ahead);
                decode_strip(&s[v], decode, &rows, cols, n_bytes);
                ahead += V_LANES * n_bytes;
            }
            for (size_t t = 0, n; t < n_x; t += n) {
                n = strip_next_x(n_x - t, LQ_FLOAT_X);
                float_tile_of(y + t * y_stride + r, y_stride, n_real, s, x + t * n_cols + c, n_cols, n, c == 0, cols);
            }
        }
    }
}

#endif
