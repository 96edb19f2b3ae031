/* attn_tile.h - attention over blocks of 64 f16 cells with many queries (prompts), included after attn_page.h. A block
 * is widened once into a tile of floats in the L1 cache, keys turned so that tokens lie side by side; what remains are
 * products of the weights of a few rows with vectors of the tile, without a sum across lanes.
 *
 * The including file defines vf_from_halves(p) and vf_transpose(VF rows[VN]), and TILE_ROWS and TILE_VECTORS, which
 * size the register tile. */
#ifndef LQ_CPU_ATTN_TILE_H
#define LQ_CPU_ATTN_TILE_H

#define TILE_STREAMS 64

/* out[r][item] = out[r][item] * keep[r] + scale * sum_s weights[r][s] tile[s][item] for 64 items; keep NULL: out is
 * only written if `first`, else added to. */
LQ_INLINE void tile_rows(float *out, size_t out_stride, uint32_t n_rows, bool first, const float *keep,
                         const float *weights, size_t stride, const float *tile, uint32_t n_streams, float scale) {
    for (uint32_t item = 0; item < ITEMS; item += VN * TILE_VECTORS) {
        VF sum[TILE_ROWS][TILE_VECTORS];
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) sum[r][v] = vf_set1(0.0f);
        }
        for (uint32_t s = 0; s < n_streams; s++) {
            VF x[TILE_VECTORS];
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) x[v] = vf_load(tile + s * ITEMS + item + VN * v);
            LQ_UNROLL
            for (uint32_t r = 0; r < n_rows; r++) {
                VF weight = vf_set1(weights[r * stride + s]);
                LQ_UNROLL
                for (uint32_t v = 0; v < TILE_VECTORS; v++) sum[r][v] = vf_fma(weight, x[v], sum[r][v]);
            }
        }
        LQ_UNROLL
        for (uint32_t r = 0; r < n_rows; r++) {
            LQ_UNROLL
            for (uint32_t v = 0; v < TILE_VECTORS; v++) {
                float *at = out + r * out_stride + item + VN * v;
                VF before = first && keep == NULL ? vf_set1(0.0f) : vf_load(at);
                if (keep != NULL) before = vf_mul(before, vf_set1(keep[r]));
                vf_store(at, vf_fma(sum[r][v], vf_set1(scale), before));
            }
        }
    }
}

static void add_tile(float *out, size_t out_stride, size_t n_rows, bool first, const float *keep, const float *weights,
                     size_t stride, const float *tile, uint32_t n_streams, float scale) {
    size_t r = 0;
    for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS)
        tile_rows(out + r * out_stride, out_stride, TILE_ROWS, first, keep != NULL ? keep + r : NULL,
                  weights + r * stride, stride, tile, n_streams, scale);
    for (; r < n_rows; r++)
        tile_rows(out + r * out_stride, out_stride, 1, first, keep != NULL ? keep + r : NULL, weights + r * stride,
                  stride, tile, n_streams, scale);
}

static void block_scores_f16(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                             const uint16_t *k, size_t head_dim, float scale) {
    float tile[TILE_STREAMS * ITEMS]; /* [dimension][token] */
    for (size_t d0 = 0; d0 < head_dim; d0 += TILE_STREAMS) {
        size_t n = head_dim - d0 < TILE_STREAMS ? head_dim - d0 : TILE_STREAMS;
        for (size_t token = 0; token < ITEMS; token += VN) {
            size_t d = 0;
            for (; d + VN <= n; d += VN) {
                VF rows[VN];
                LQ_UNROLL
                for (size_t i = 0; i < VN; i++) rows[i] = vf_from_halves(k + (token + i) * head_dim + d0 + d);
                vf_transpose(rows);
                LQ_UNROLL
                for (size_t i = 0; i < VN; i++) vf_store(tile + (d + i) * ITEMS + token, rows[i]);
            }
            for (; d < n; d++)
                for (size_t i = 0; i < VN; i++)
                    tile[d * ITEMS + token + i] = lq_half_to_float(k[(token + i) * head_dim + d0 + d]);
        }
        add_tile(scores, s_stride, n_q, d0 == 0, NULL, q + d0, q_stride, tile, (uint32_t)n, scale);
    }
}

static void block_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                             size_t n_q, const uint16_t *v, size_t head_dim) {
    float tile[LQ_PAGE_TOKENS * ITEMS]; /* [token][dimension] */
    for (size_t d0 = 0; d0 < head_dim; d0 += ITEMS) {
        for (size_t token = 0; token < LQ_PAGE_TOKENS; token++)
            for (size_t d = 0; d < ITEMS; d += VN)
                vf_store(tile + token * ITEMS + d, vf_from_halves(v + token * head_dim + d0 + d));
        add_tile(acc + d0, acc_stride, n_q, false, decay, p, p_stride, tile, LQ_PAGE_TOKENS, 1.0f);
    }
}

static void init_tiles(lq_kernels *kernels) {
    kernels->block_scores_f16 = block_scores_f16;
    kernels->block_values_f16 = block_values_f16;
}

#endif
