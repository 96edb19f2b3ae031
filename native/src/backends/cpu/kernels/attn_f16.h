/* attn_f16.h - attention over f16 keys and values, written once in the vector vocabulary. The including file has chosen
 * a width and defines
 *   TILE_QUERIES    queries of a tile; four sums for each of them, its query and a key must fit into the registers
 *   TILE_VECTORS    vectors of channels of a tile of values, 2 or 4 */
#ifndef LQ_CPU_ATTN_F16_H
#define LQ_CPU_ATTN_F16_H

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/simd.h"

#define TILE_KEYS 4

/* Returns the queries of the next tile. If one too many is left for a tile, 3 and the rest are faster than all and 1.
 */
LQ_INLINE size_t next_queries(size_t n_left) {
    return n_left <= TILE_QUERIES ? n_left : n_left == TILE_QUERIES + 1 ? 3 : TILE_QUERIES;
}

/* Computes n_real scores of each of n_q queries. k points to four keys; the last ones may repeat. */
LQ_INLINE void scores_tile(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                           const uint16_t *const *k, size_t n_real, size_t head_dim, float scale) {
    vsum acc[TILE_QUERIES][TILE_KEYS];
    size_t d = 0;
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t j = 0; j < TILE_KEYS; j++) acc[i][j] = vs_zero();
    }
    for (; d + V_LANES <= head_dim; d += V_LANES) {
        vfloat query[TILE_QUERIES];
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) query[i] = vf_load(q + i * q_stride + d);
        LQ_UNROLL
        for (size_t j = 0; j < TILE_KEYS; j++) {
            vfloat key = vf_load_half(k[j] + d);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) acc[i][j] = vs_add_products(acc[i][j], query[i], key);
        }
    }
    if (d < head_dim) {
        LQ_UNROLL
        for (size_t j = 0; j < TILE_KEYS; j++) {
            vfloat key = vf_load_half_n(k[j] + d, head_dim - d);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++)
                acc[i][j] = vs_add_products(acc[i][j], vf_load_n(q + i * q_stride + d, head_dim - d), key);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        vs_store_4(scores + i * s_stride, acc[i][0], acc[i][1], acc[i][2], acc[i][3], scale, n_real);
    }
}

/* one_tile: n_q is a constant of at most TILE_QUERIES. */
LQ_INLINE void scores_rows(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q, bool one_tile,
                           const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    for (size_t j = 0; j < n_k; j += TILE_KEYS, scores += TILE_KEYS) {
        const uint16_t *keys[TILE_KEYS];
        size_t n_real = n_k - j < TILE_KEYS ? n_k - j : TILE_KEYS;
        for (size_t i = 0; i < TILE_KEYS; i++) keys[i] = k + (j + (i < n_real ? i : n_real - 1)) * head_dim;
        lq_prefetch(keys[0], LQ_STREAM_AHEAD, TILE_KEYS * head_dim * sizeof(uint16_t));
        if (one_tile) {
            scores_tile(scores, s_stride, q, q_stride, n_q, keys, n_real, head_dim, scale);
            continue;
        }
        for (size_t i = 0, n; i < n_q; i += n) {
            n = next_queries(n_q - i);
            LQ_UNROLL
            for (size_t c = 1; c <= TILE_QUERIES; c++)
                if (c == n)
                    scores_tile(scores + i * s_stride, s_stride, q + i * q_stride, q_stride, c, keys, n_real, head_dim,
                                scale);
        }
    }
}

static void attn_scores_f16(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    if (n_q > TILE_QUERIES) scores_rows(scores, s_stride, q, q_stride, n_q, false, k, n_k, head_dim, scale);
    LQ_UNROLL
    for (size_t c = 1; c <= TILE_QUERIES; c++)
        if (c == n_q) scores_rows(scores, s_stride, q, q_stride, c, true, k, n_k, head_dim, scale);
}

/* Adds all values to n_vectors vectors of channels of n_q queries; n_channels below V_LANES: to a part of one vector.
 */
LQ_INLINE void values_tile(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim, size_t n_vectors,
                           size_t n_channels) {
    vfloat sum[TILE_QUERIES][TILE_VECTORS];
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            const float *from = acc + i * acc_stride + V_LANES * d;
            sum[i][d] = n_channels < V_LANES ? vf_load_n(from, n_channels) : vf_load(from);
            sum[i][d] = vf_mul(sum[i][d], vf_set1(decay[i]));
        }
    }
    for (size_t j = 0; j < n_k; j++) {
        vfloat weight[TILE_QUERIES];
        lq_prefetch(v + j * head_dim, LQ_STREAM_AHEAD, n_vectors * V_LANES * sizeof(uint16_t));
        LQ_UNROLL
        for (size_t i = 0; i < n_q; i++) weight[i] = vf_set1(p[i * p_stride + j]);
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            const uint16_t *from = v + j * head_dim + V_LANES * d;
            vfloat value = n_channels < V_LANES ? vf_load_half_n(from, n_channels) : vf_load_half(from);
            LQ_UNROLL
            for (size_t i = 0; i < n_q; i++) sum[i][d] = vf_fma(weight[i], value, sum[i][d]);
        }
    }
    LQ_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        LQ_UNROLL
        for (size_t d = 0; d < n_vectors; d++) {
            float *to = acc + i * acc_stride + V_LANES * d;
            if (n_channels < V_LANES)
                vf_store_n(to, sum[i][d], n_channels);
            else
                vf_store(to, sum[i][d]);
        }
    }
}

LQ_INLINE void values_rows(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                           size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    size_t d = 0;
    for (; d + TILE_VECTORS * V_LANES <= head_dim; d += TILE_VECTORS * V_LANES)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, TILE_VECTORS, V_LANES);
    for (; TILE_VECTORS == 4 && d + 2 * V_LANES <= head_dim; d += 2 * V_LANES)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 2, V_LANES);
    for (; d + V_LANES <= head_dim; d += V_LANES)
        values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, V_LANES);
    if (d < head_dim) values_tile(acc + d, acc_stride, decay, p, p_stride, n_q, v + d, n_k, head_dim, 1, head_dim - d);
}

static void attn_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    for (size_t n; n_q > 0; acc += n * acc_stride, decay += n, p += n * p_stride, n_q -= n) {
        n = next_queries(n_q);
        LQ_UNROLL
        for (size_t i = 1; i <= TILE_QUERIES; i++)
            if (i == n) values_rows(acc, acc_stride, decay, p, p_stride, i, v, n_k, head_dim);
    }
}

static void init_attn_f16(lq_kernels *kernels) {
    kernels->attn_scores_f16 = attn_scores_f16;
    kernels->attn_values_f16 = attn_values_f16;
}

#endif
