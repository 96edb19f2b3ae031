/* attn_many.h - attention over packed pages with many queries (prompts), included after attn_page.h and softmax.h.
 * Queries lie side by side in the lanes of vectors, channels and tokens one below the other: [channel or
 * token][LQ_MANY_QUERIES]. So what belongs to a query (rounding it to int8 with a page's scales, its online softmax) is
 * the same operation in every lane and never a sum across lanes; what belongs to the page is one number for all lanes.
 */
#ifndef LQ_CPU_ATTN_MANY_H
#define LQ_CPU_ATTN_MANY_H

#define MANY LQ_MANY_QUERIES
#define MANY_ITEMS (V_REGISTERS / 4) /* items of a register tile; each takes MANY_VECTORS sums */
#define MANY_VECTORS 2

/* Rounded weights (`folded`) of up to MANY queries. The four streams of a four are the bytes of a lane. */
typedef struct many_folded {
    int8_t q[LQ_PAGE_MAX_HEAD_DIM / 4][MANY][4];
    float scale[LQ_PAGE_MAX_TIERS][MANY];
    float constant[MANY];
} many_folded;

/* Folds `streams` into n_vectors vectors of queries from `lane` on, as fold() does. */
LQ_INLINE void fold_vectors(many_folded *w, const float *x, uint32_t lane, uint32_t n_vectors, const affine *streams,
                            const lq_page_tier *tiers, uint32_t n_tiers, float scale) {
    vfloat constant[MANY_VECTORS];
    const vint ones = vi_set1(0x01010101);
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++) constant[v] = vf_set1(0.0f);
    x += lane;
    for (uint32_t t = 0; t < n_tiers; t++) {
        const float *middle = streams->middle + tiers[t].first_lane, *step = streams->step + tiers[t].first_lane;
        const float *at = x + (size_t)tiers[t].first_channel * MANY;
        vfloat top[MANY_VECTORS], factor[MANY_VECTORS];
        vint sum[MANY_VECTORS];
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) {
            top[v] = vf_set1(1e-30f); /* not 0, so that zeros stay zeros */
            sum[v] = vi_set1(0);
        }
        for (uint32_t i = 0; i < tiers[t].n_channels; i++) {
            vfloat m = vf_set1(middle[i]), s = vf_set1(step[i]);
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) {
                vfloat value = vf_load(at + i * MANY + V_LANES * v);
                constant[v] = vf_fma(value, m, constant[v]);
                top[v] = vf_max(top[v], vf_abs(vf_mul(value, s))); /* the second survives a NaN */
            }
        }
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) factor[v] = vf_div(vf_set1(127.0f), top[v]);
        for (uint32_t i = 0; i < tiers[t].n_channels; i += 4) {
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) {
                vint q[4];
                LQ_UNROLL
                for (uint32_t j = 0; j < 4; j++) {
                    vfloat value = vf_mul(vf_load(at + (i + j) * MANY + V_LANES * v), vf_set1(step[i + j]));
                    q[j] = vi_from_float(vf_mul(value, factor[v]));
                }
                q[0] = vi_pack_int8(q[0], q[1], q[2], q[3]);
                vi_store(w->q[(tiers[t].first_channel + i) / 4][lane + V_LANES * v], q[0]);
                sum[v] = vi_add_dot(sum[v], ones, q[0]);
            }
        }
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) {
            vfloat unit = vf_mul(top[v], vf_set1(1.0f / 127.0f));
            vfloat half = vf_mul(unit, vf_set1(-0.5f * (float)((1u << tiers[t].bits) - 1)));
            constant[v] = vf_fma(vf_from_int(sum[v]), half, constant[v]);
            vf_store(w->scale[t] + lane + V_LANES * v, vf_mul(unit, vf_set1(scale)));
        }
    }
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++)
        vf_store(w->constant + lane + V_LANES * v, vf_mul(constant[v], vf_set1(scale)));
}

/* Computes MANY_ITEMS items for n_vectors vectors of queries: out[item][query] = out[item][query] * decay[query] + the
 * weighted sum of the item's codes; decay NULL: out is only written. codes: bytes, from the first item on. */
LQ_INLINE void many_tile(float *out, uint32_t lane, uint32_t n_vectors, const float *decay, const many_folded *w,
                         const lq_page_tier *tiers, uint32_t n_tiers, const uint8_t *codes) {
    for (uint32_t t = 0; t < n_tiers; t++) {
        vint sum[MANY_ITEMS][MANY_VECTORS];
        LQ_UNROLL
        for (uint32_t i = 0; i < MANY_ITEMS; i++) {
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vi_set1(0);
        }
        uint32_t first = tiers[t].first_channel / 4, end = first + tiers[t].n_channels / 4;
        for (uint32_t f = first; f < end; f++) {
            vint q[MANY_VECTORS];
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) q[v] = vi_load(w->q[f][lane + V_LANES * v]);
            LQ_UNROLL
            for (uint32_t i = 0; i < MANY_ITEMS; i++) {
                int four;
                memcpy(&four, codes + f * FOUR_BYTES(8) + 4 * i, 4);
                vint c = vi_set1(four);
                LQ_UNROLL
                for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vi_add_dot(sum[i][v], c, q[v]);
            }
        }
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) {
            vfloat scale = vf_load(w->scale[t] + lane + V_LANES * v),
                   constant = vf_load(w->constant + lane + V_LANES * v);
            vfloat keep = decay != NULL ? vf_load(decay + lane + V_LANES * v) : constant;
            LQ_UNROLL
            for (uint32_t i = 0; i < MANY_ITEMS; i++) {
                float *at = out + (size_t)i * MANY + lane + V_LANES * v;
                vfloat before = t > 0 ? vf_load(at) : constant;
                if (t == 0 && decay != NULL) before = vf_fma(vf_load(at), keep, constant);
                vf_store(at, vf_fma(vf_from_int(sum[i][v]), scale, before));
            }
        }
    }
}

/* Computes n_items items, a multiple of MANY_ITEMS, for all queries. */
static void multiply_many(float *out, uint32_t n_items, size_t n_q, const float *decay, const float *x,
                          const affine *streams, const lq_page_tier *tiers, uint32_t n_tiers, const uint8_t *codes,
                          float scale) {
    many_folded w;
    uint32_t n_lanes = ((uint32_t)n_q + V_LANES - 1) / V_LANES * V_LANES, lane = 0;
    for (; lane + V_LANES * MANY_VECTORS <= n_lanes; lane += V_LANES * MANY_VECTORS) {
        fold_vectors(&w, x, lane, MANY_VECTORS, streams, tiers, n_tiers, scale);
        for (uint32_t i = 0; i < n_items; i += MANY_ITEMS)
            many_tile(out + (size_t)i * MANY, lane, MANY_VECTORS, decay, &w, tiers, n_tiers, codes + 4 * i);
    }
    for (; lane < n_lanes; lane += V_LANES) {
        fold_vectors(&w, x, lane, 1, streams, tiers, n_tiers, scale);
        for (uint32_t i = 0; i < n_items; i += MANY_ITEMS)
            many_tile(out + (size_t)i * MANY, lane, 1, decay, &w, tiers, n_tiers, codes + 4 * i);
    }
}

static void page_scores_many(float *scores, const float *q, size_t n_q, const lq_page_format *f, lq_page_record page,
                             const lq_page_record *next, float scale) {
    uint8_t codes[ITEMS * LQ_PAGE_MAX_HEAD_DIM];
    affine streams;
    if (next != NULL) lq_prefetch(next->scales, 0, f->scale_bytes + 63);
    key_affine(f, page.scales, &streams);
    unpack_keys(codes, f, page, next);
    multiply_many(scores, ITEMS, n_q, NULL, q, &streams, f->tiers, f->n_tiers, codes, scale);
}

static void page_values_many(float *acc, const float *decay, const float *p, size_t n_q, const lq_page_format *f,
                             lq_page_record page, const lq_page_record *next) {
    ptrdiff_t ahead = distance(page.v, next != NULL ? next->v : NULL);
    const lq_page_tier all = {.bits = f->v_bits, .n_channels = LQ_PAGE_TOKENS};
    uint8_t codes[ITEMS * LQ_PAGE_TOKENS];
    affine streams;
    for (uint32_t g = 0; g < f->n_groups; g++, acc += LQ_PAGE_GROUP * MANY) {
        uint32_t n = lq_page_group_len(f, g);
        value_affine(f, page.scales, g, &streams);
        if (n == LQ_PAGE_GROUP)
            unpack_fours(codes, page.v + lq_page_group_offset(f, g), LQ_PAGE_TOKENS / 4, f->v_bits, ahead);
        else
            unpack_tail(codes, f, page.v, g);
        multiply_many(acc, n, n_q, decay, p, &streams, &all, 1, codes, 1.0f);
    }
}

/* As softmax_rows(), for n_vectors vectors of rows and n tokens. */
LQ_INLINE void softmax_vectors(float *scores, uint32_t n_vectors, size_t n, float *max, float *sum, float *decay) {
    vfloat top[MANY_VECTORS], total[MANY_VECTORS];
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++) {
        top[v] = vf_load(max + V_LANES * v);
        total[v] = vf_set1(0.0f);
    }
    for (size_t i = 0; i < n; i++) {
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) top[v] = vf_max(top[v], vf_load(scores + i * MANY + V_LANES * v));
    }
    for (size_t i = 0; i < n; i++) {
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) {
            vfloat e = exp_below(vf_sub(vf_load(scores + i * MANY + V_LANES * v), top[v]));
            vf_store(scores + i * MANY + V_LANES * v, e);
            total[v] = vf_add(total[v], e);
        }
    }
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++) {
        vfloat keep = vf_min(exp_below(vf_sub(vf_load(max + V_LANES * v), top[v])),
                             vf_set1(1.0f)); /* exp_below(0) is a little more than 1 */
        vf_store(decay + V_LANES * v, keep);
        vf_store(max + V_LANES * v, top[v]);
        vf_store(sum + V_LANES * v, vf_fma(vf_load(sum + V_LANES * v), keep, total[v]));
    }
}

static void softmax_step_many(float *scores, size_t n_q, size_t n, float *max, float *sum, float *decay) {
    size_t lane = 0;
    for (; lane + V_LANES * (MANY_VECTORS - 1) < n_q; lane += V_LANES * MANY_VECTORS)
        softmax_vectors(scores + lane, MANY_VECTORS, n, max + lane, sum + lane, decay + lane);
    for (; lane < n_q; lane += V_LANES) softmax_vectors(scores + lane, 1, n, max + lane, sum + lane, decay + lane);
}

/* out[i] = sum over queries of p[i][query] factor[query]. */
static void weighted_sums_many(float *out, const float *p, const float *factor, size_t n_q, size_t n) {
    for (size_t i = 0; i < n; i += 4) {
        size_t m = n - i < 4 ? n - i : 4;
        float sums[4];
        vfloat sum[4];
        LQ_UNROLL
        for (size_t j = 0; j < 4; j++) sum[j] = vf_set1(0.0f);
        for (size_t lane = 0; lane < n_q; lane += V_LANES) {
            vfloat weight = vf_load(factor + lane);
            LQ_UNROLL
            for (size_t j = 0; j < 4; j++)
                if (j < m) sum[j] = vf_fma(vf_load(p + (i + j) * MANY + lane), weight, sum[j]);
        }
        vf_sums_of_4(sums, sum[0], sum[1], sum[2], sum[3]);
        memcpy(out + i, sums, m * sizeof *out);
    }
}

static void init_many(lq_kernels *kernels) {
    kernels->weighted_sums_many = weighted_sums_many;
    kernels->page_scores_many = page_scores_many;
    kernels->page_values_many = page_values_many;
    kernels->softmax_step_many = softmax_step_many;
}
#endif
