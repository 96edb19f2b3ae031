/* attn_cells.h - attention over quantized cells, and their coding, written once for any vector width. Cells are decoded
 * to floats, a few at a time. The including file has chosen the width. */
#ifndef LQ_CPU_ATTN_CELLS_H
#define LQ_CPU_ATTN_CELLS_H

#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/cell_q.h"
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"
#include "core/half.h"
#include "formats/bytes.h"
#include "formats/kv_page_body.h" /* page_round(), page_clamp() */

static void cell_load_q8(float *dst, const uint8_t *src, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK, i = 0;
        float d = lq_read_half(src);
        const int8_t *q = (const int8_t *)(src + 2);
        for (; i + V_LANES <= n; i += V_LANES) vf_store(dst + at + i, vf_mul(vf_from_int8(q + i), vf_set1(d)));
        for (; i < n; i++) dst[at + i] = d * (float)q[i];
        src += 2 + n;
    }
}

static void cell_store_q8(uint8_t *dst, const float *x, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK, i = 0;
        vfloat top = vf_set1(0.0f);
        for (; i + V_LANES <= n; i += V_LANES)
            top = vf_max(vf_abs(vf_load(x + at + i)), top); /* the second survives a NaN */
        float largest = vf_largest(top);
        for (; i < n; i++) largest = fabsf(x[at + i]) > largest ? fabsf(x[at + i]) : largest;
        uint16_t half = lq_float_to_half(largest / 127.0f);
        float d = lq_half_to_float(half);
        *dst++ = (uint8_t)(half & 255u);
        *dst++ = (uint8_t)(half >> 8);
        for (i = 0; i < n; i++) {
            float q = page_round(page_clamp(d > 0.0f ? x[at + i] / d : 0.0f, -127.0f, 127.0f));
            dst[i] = (uint8_t)(int8_t)(int)q;
        }
        dst += n;
    }
}

#define Q_CELLS 16 /* values decoded at once */
#define Q_KEYS 4   /* keys of a tile */
#define Q_ROWS 3

/* Computes the scores of n_rows queries with n_cells of four decoded cells. */
LQ_INLINE void dots_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_rows,
                         const float *cells, size_t n_cells, size_t head_dim, float scale) {
    vfloat sum[Q_ROWS][Q_KEYS];
    float rest[Q_ROWS][Q_KEYS] = {{0.0f}}, out[Q_KEYS];
    size_t d = 0;
    LQ_UNROLL
    for (size_t i = 0; i < n_rows; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < Q_KEYS; j++) sum[i][j] = vf_set1(0.0f);
    }
    for (; d + V_LANES <= head_dim; d += V_LANES) {
        LQ_UNROLL
        for (size_t j = 0; j < Q_KEYS; j++) {
            vfloat key = vf_load(cells + j * head_dim + d);
            LQ_UNROLL
            for (size_t i = 0; i < n_rows; i++) sum[i][j] = vf_fma(vf_load(q + i * q_stride + d), key, sum[i][j]);
        }
    }
    for (; d < head_dim; d++)
        for (size_t i = 0; i < n_rows; i++)
            for (size_t j = 0; j < Q_KEYS; j++) rest[i][j] += q[i * q_stride + d] * cells[j * head_dim + d];
    LQ_UNROLL
    for (size_t i = 0; i < n_rows; i++) {
        vf_sums_of_4(out, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
        for (size_t j = 0; j < n_cells; j++) scores[i * s_stride + j] = scale * (out[j] + rest[i][j]);
    }
}

static void attn_scores_q(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                          lq_cell_format format, const uint8_t *k, size_t n_k, size_t head_dim, float scale) {
    float cells[Q_KEYS * LQ_PAGE_MAX_HEAD_DIM];
    for (size_t j = 0; j < n_k; j += Q_KEYS) {
        size_t n = n_k - j < Q_KEYS ? n_k - j : Q_KEYS, i = 0;
        for (size_t c = 0; c < Q_KEYS; c++) { /* the last cell stands in for missing ones */
            lq_prefetch(k, LQ_STREAM_AHEAD, lq_cell_bytes(format, (uint32_t)head_dim));
            cell_load_q(format, cells + c * head_dim, k, head_dim);
            if (c + 1 < n) k += lq_cell_bytes(format, (uint32_t)head_dim);
        }
        k += lq_cell_bytes(format, (uint32_t)head_dim);
        for (; i + Q_ROWS <= n_q; i += Q_ROWS)
            dots_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, Q_ROWS, cells, n, head_dim,
                      scale);
        for (; i < n_q; i++)
            dots_tile(scores + i * s_stride + j, s_stride, q + i * q_stride, q_stride, 1, cells, n, head_dim, scale);
    }
}

/* Adds n_cells values to n_vectors vectors of channels of one row, from channel d on. */
LQ_INLINE void add_cells_at(float *acc, const float *decay, const float *p, const float *cells, size_t n_cells,
                            size_t head_dim, size_t d, size_t n_vectors) {
    vfloat sum[4];
    LQ_UNROLL
    for (size_t v = 0; v < n_vectors; v++) {
        sum[v] = vf_load(acc + d + V_LANES * v);
        if (decay != NULL) sum[v] = vf_mul(sum[v], vf_set1(*decay));
    }
    for (size_t j = 0; j < n_cells; j++) {
        vfloat weight = vf_set1(p[j]);
        LQ_UNROLL
        for (size_t v = 0; v < n_vectors; v++)
            sum[v] = vf_fma(weight, vf_load(cells + j * head_dim + d + V_LANES * v), sum[v]);
    }
    LQ_UNROLL
    for (size_t v = 0; v < n_vectors; v++) vf_store(acc + d + V_LANES * v, sum[v]);
}

LQ_INLINE void add_cells(float *acc, const float *decay, const float *p, const float *cells, size_t n_cells,
                         size_t head_dim) {
    size_t d = 0;
    for (; d + 4 * V_LANES <= head_dim; d += 4 * V_LANES) add_cells_at(acc, decay, p, cells, n_cells, head_dim, d, 4);
    for (; d + V_LANES <= head_dim; d += V_LANES) add_cells_at(acc, decay, p, cells, n_cells, head_dim, d, 1);
    for (; d < head_dim; d++) {
        float sum = decay != NULL ? acc[d] * *decay : acc[d];
        for (size_t j = 0; j < n_cells; j++) sum += p[j] * cells[j * head_dim + d];
        acc[d] = sum;
    }
}

static void attn_values_q(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                          size_t n_q, lq_cell_format format, const uint8_t *v, size_t n_k, size_t head_dim) {
    float cells[Q_CELLS * LQ_PAGE_MAX_HEAD_DIM];
    for (size_t j = 0; j < n_k; j += Q_CELLS) {
        size_t n = n_k - j < Q_CELLS ? n_k - j : Q_CELLS;
        lq_prefetch(v, LQ_STREAM_AHEAD, n * lq_cell_bytes(format, (uint32_t)head_dim));
        for (size_t i = 0; i < n; i++, v += lq_cell_bytes(format, (uint32_t)head_dim))
            cell_load_q(format, cells + i * head_dim, v, head_dim);
        for (size_t i = 0; i < n_q; i++)
            add_cells(acc + i * acc_stride, j == 0 ? decay + i : NULL, p + i * p_stride + j, cells, n, head_dim);
    }
}

static void init_cells(lq_kernels *kernels) {
    kernels->attn_scores_q = attn_scores_q;
    kernels->attn_values_q = attn_values_q;
    kernels->cell_store_q = cell_store_q;
    kernels->cell_load_q = cell_load_q;
}

#endif
