/* attn_many_float.h - attention over cells with many queries side by side, in float; included after attn_many.h. A cell
 * is a row of floats, one number for all lanes. */
#ifndef LQ_CPU_ATTN_MANY_FLOAT_H
#define LQ_CPU_ATTN_MANY_FLOAT_H

/* Computes n_items items for n_vectors vectors of queries: out[item][query] = out[item][query] * decay[query] + scale *
 * the sum over streams of x[item * item_stride + stream * stream_stride] w[stream][query]; decay NULL: out is only
 * written. */
LQ_INLINE void float_tile(float *out, uint32_t n_items, uint32_t n_vectors, const float *decay, const float *w,
                          const float *x, size_t item_stride, size_t stream_stride, size_t n_streams, float scale) {
    vfloat sum[MANY_ITEMS][MANY_VECTORS];
    LQ_UNROLL
    for (uint32_t i = 0; i < n_items; i++) {
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vf_set1(0.0f);
    }
    for (size_t s = 0; s < n_streams; s++) {
        vfloat weights[MANY_VECTORS];
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) weights[v] = vf_load(w + s * LQ_MANY_QUERIES + V_LANES * v);
        LQ_UNROLL
        for (uint32_t i = 0; i < n_items; i++) {
            vfloat number = vf_set1(x[i * item_stride + s * stream_stride]);
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vf_fma(number, weights[v], sum[i][v]);
        }
    }
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++) {
        vfloat keep = decay != NULL ? vf_load(decay + V_LANES * v) : vf_set1(0.0f), unit = vf_set1(scale);
        LQ_UNROLL
        for (uint32_t i = 0; i < n_items; i++) {
            float *at = out + (size_t)i * LQ_MANY_QUERIES + V_LANES * v;
            vf_store(at, decay != NULL ? vf_fma(vf_load(at), keep, sum[i][v]) : vf_mul(sum[i][v], unit));
        }
    }
}

static void float_items(float *out, size_t n_items, size_t n_q, const float *decay, const float *w, const float *x,
                        size_t item_stride, size_t stream_stride, size_t n_streams, float scale) {
    size_t n_lanes = (n_q + V_LANES - 1) / V_LANES * V_LANES;
    for (size_t lane = 0; lane < n_lanes;) {
        bool wide = lane + V_LANES * MANY_VECTORS <= n_lanes;
        const float *keep = decay != NULL ? decay + lane : NULL;
        size_t i = 0;
        for (; wide && i + MANY_ITEMS <= n_items; i += MANY_ITEMS)
            float_tile(out + i * LQ_MANY_QUERIES + lane, MANY_ITEMS, MANY_VECTORS, keep, w + lane, x + i * item_stride,
                       item_stride, stream_stride, n_streams, scale);
        for (; wide && i < n_items; i++)
            float_tile(out + i * LQ_MANY_QUERIES + lane, 1, MANY_VECTORS, keep, w + lane, x + i * item_stride,
                       item_stride, stream_stride, n_streams, scale);
        for (; i + MANY_ITEMS <= n_items; i += MANY_ITEMS)
            float_tile(out + i * LQ_MANY_QUERIES + lane, MANY_ITEMS, 1, keep, w + lane, x + i * item_stride,
                       item_stride, stream_stride, n_streams, scale);
        for (; i < n_items; i++)
            float_tile(out + i * LQ_MANY_QUERIES + lane, 1, 1, keep, w + lane, x + i * item_stride, item_stride,
                       stream_stride, n_streams, scale);
        lane += wide ? V_LANES * MANY_VECTORS : V_LANES;
    }
}

static void scores_many(float *scores, const float *q, size_t n_q, const float *k, size_t n, size_t head_dim,
                        float scale) {
    float_items(scores, n, n_q, NULL, q, k, head_dim, 1, head_dim, scale);
}

static void values_many(float *acc, const float *decay, const float *p, size_t n_q, const float *v, size_t n,
                        size_t head_dim) {
    float_items(acc, head_dim, n_q, decay, p, v, 1, head_dim, n, 1.0f);
}

static void init_many_cells(lq_kernels *kernels) {
    kernels->queries_many = NULL;
    kernels->scores_many = scores_many;
    kernels->values_many = values_many;
}

#endif
