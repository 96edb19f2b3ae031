/* attn_many_int16.h - attn_many_float.h with numbers of 16 bits. One instruction multiplies two pairs of them in a lane
 * and adds up 32 bits, which gives twice the products of float. Sums of up to 64 products must fit into 32 bits: by
 * Cauchy and Schwarz they are at most the product of two norms. So the channels of a query or a cell, and the
 * probabilities of a query, are scaled to a norm of LQ_INT16_NORM, and no bit stays free. Values are scaled token by
 * token to LQ_INT16_VALUE, and the probabilities are multiplied with the inverse factors: so a token with large values
 * costs the others no precision.
 *
 * Included after attn_many.h. */
#ifndef LQ_CPU_ATTN_MANY_INT16_H
#define LQ_CPU_ATTN_MANY_INT16_H

#define CHUNK 64     /* streams that are added up in 32 bits */
#define LEAST 1e-30f /* the least squared norm and largest value, so that zeros stay zeros */

/* Up to CHUNK streams of MANY queries, pairs of them side by side. */
typedef struct many_int16 {
    int16_t x[CHUNK / 2][LQ_MANY_QUERIES][2];
    float unit[LQ_MANY_QUERIES];
} many_int16;

LQ_INLINE vint int16_pair(vfloat low, vfloat high) {
    return vi_or(vi_and(vi_from_float(low), vi_set1(0xffff)), vi_sll(vi_from_float(high), 16));
}

/* Rounds n vectors of queries from `lane` on. Stream s is multiplied with times[s]; NULL: with 1. */
LQ_INLINE void round_lanes(many_int16 *w, const float *x, size_t lane, uint32_t n, size_t n_streams,
                           const float *times) {
    vfloat even[MANY_VECTORS], odd[MANY_VECTORS], factor[MANY_VECTORS]; /* sums of squares */
    LQ_UNROLL
    for (uint32_t v = 0; v < n; v++) even[v] = odd[v] = vf_set1(0.5f * LEAST);
    x += lane;
    for (size_t s = 0; s < n_streams; s += 2) {
        vfloat first = vf_set1(times != NULL ? times[s] : 1.0f);
        vfloat second = vf_set1(s + 1 == n_streams ? 0.0f : times != NULL ? times[s + 1] : 1.0f);
        LQ_UNROLL
        for (uint32_t v = 0; v < n; v++) {
            vfloat low = vf_mul(vf_load(x + s * LQ_MANY_QUERIES + V_LANES * v), first);
            even[v] = vf_fma(low, low, even[v]);
            if (s + 1 == n_streams) continue;
            vfloat high = vf_mul(vf_load(x + (s + 1) * LQ_MANY_QUERIES + V_LANES * v), second);
            odd[v] = vf_fma(high, high, odd[v]);
        }
    }
    LQ_UNROLL
    for (uint32_t v = 0; v < n; v++) {
        vfloat norm = vf_sqrt(vf_add(even[v], odd[v]));
        factor[v] = vf_div(vf_set1(LQ_INT16_NORM), norm);
        vf_store(w->unit + lane + V_LANES * v, vf_mul(norm, vf_set1(1.0f / LQ_INT16_NORM)));
    }
    for (size_t s = 0; s < n_streams; s += 2) {
        vfloat first = vf_set1(times != NULL ? times[s] : 1.0f);
        vfloat second = vf_set1(s + 1 == n_streams ? 0.0f : times != NULL ? times[s + 1] : 1.0f);
        LQ_UNROLL
        for (uint32_t v = 0; v < n; v++) {
            vfloat low = vf_mul(vf_load(x + s * LQ_MANY_QUERIES + V_LANES * v), first), high = vf_set1(0.0f);
            if (s + 1 < n_streams) high = vf_mul(vf_load(x + (s + 1) * LQ_MANY_QUERIES + V_LANES * v), second);
            vi_store(w->x[s / 2][lane + V_LANES * v], int16_pair(vf_mul(low, factor[v]), vf_mul(high, factor[v])));
        }
    }
}

LQ_INLINE void round_queries(many_int16 *w, const float *x, size_t n_q, size_t n_streams, const float *times) {
    size_t n_lanes = (n_q + V_LANES - 1) / V_LANES * V_LANES, lane = 0;
    for (; lane + V_LANES * MANY_VECTORS <= n_lanes; lane += V_LANES * MANY_VECTORS)
        round_lanes(w, x, lane, MANY_VECTORS, n_streams, times);
    for (; lane < n_lanes; lane += V_LANES) round_lanes(w, x, lane, 1, n_streams, times);
}

/* The items that queries are multiplied with. A pair of streams of an item is 32 bits; the next pair is pair_bytes
 * further. */
typedef struct int16_items {
    const uint8_t *numbers;
    size_t item_bytes;
    size_t pair_bytes;
    size_t n_pairs;
    const float *unit; /* of each item; NULL: 1 */
} int16_items;

/* Computes items first to first + n_items - 1 for n_vectors vectors of queries. Adds to out[item][query], or, if
 * `fresh`, writes it. If decay is given, out is multiplied with it first. */
LQ_INLINE void int16_tile(float *out, uint32_t n_items, size_t lane, uint32_t n_vectors, bool fresh, const float *decay,
                          const many_int16 *w, const int16_items *x, size_t first, float scale) {
    const uint8_t *at = x->numbers + first * x->item_bytes;
    vint sum[MANY_ITEMS][MANY_VECTORS];
    LQ_UNROLL
    for (uint32_t i = 0; i < n_items; i++) {
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vi_set1(0);
    }
    for (size_t s = 0; s < x->n_pairs; s++, at += x->pair_bytes) {
        vint weights[MANY_VECTORS];
        LQ_UNROLL
        for (uint32_t v = 0; v < n_vectors; v++) weights[v] = vi_load(w->x[s][lane + V_LANES * v]);
        LQ_UNROLL
        for (uint32_t i = 0; i < n_items; i++) {
            int pair;
            memcpy(&pair, at + i * x->item_bytes, 4);
            vint numbers = vi_set1(pair);
            LQ_UNROLL
            for (uint32_t v = 0; v < n_vectors; v++) sum[i][v] = vi_add_dot_int16(sum[i][v], numbers, weights[v]);
        }
    }
    LQ_UNROLL
    for (uint32_t v = 0; v < n_vectors; v++) {
        vfloat unit = vf_mul(vf_load(w->unit + lane + V_LANES * v), vf_set1(scale));
        vfloat keep = decay != NULL ? vf_load(decay + lane + V_LANES * v) : vf_set1(0.0f);
        LQ_UNROLL
        for (uint32_t i = 0; i < n_items; i++) {
            float *to = out + (first + i) * LQ_MANY_QUERIES + lane + V_LANES * v;
            vfloat item = vf_from_int(sum[i][v]);
            if (x->unit != NULL) item = vf_mul(item, vf_set1(x->unit[first + i]));
            vfloat before = fresh ? vf_set1(0.0f) : vf_load(to);
            if (decay != NULL) before = vf_mul(before, keep);
            vf_store(to, vf_fma(item, unit, before));
        }
    }
}

LQ_INLINE void int16_products(float *out, size_t n_items, size_t n_q, bool fresh, const float *decay,
                              const many_int16 *w, const int16_items *x, float scale) {
    size_t n_lanes = (n_q + V_LANES - 1) / V_LANES * V_LANES;
    for (size_t lane = 0; lane < n_lanes;) {
        bool wide = lane + V_LANES * MANY_VECTORS <= n_lanes;
        size_t i = 0;
        for (; wide && i + MANY_ITEMS <= n_items; i += MANY_ITEMS)
            int16_tile(out, MANY_ITEMS, lane, MANY_VECTORS, fresh, decay, w, x, i, scale);
        for (; wide && i < n_items; i++) int16_tile(out, 1, lane, MANY_VECTORS, fresh, decay, w, x, i, scale);
        for (; i + MANY_ITEMS <= n_items; i += MANY_ITEMS)
            int16_tile(out, MANY_ITEMS, lane, 1, fresh, decay, w, x, i, scale);
        for (; i < n_items; i++) int16_tile(out, 1, lane, 1, fresh, decay, w, x, i, scale);
        lane += wide ? V_LANES * MANY_VECTORS : V_LANES;
    }
}

static void queries_many(float *dst, const float *q, size_t n_q, size_t head_dim) {
    many_int16 *w = (many_int16 *)(void *)dst;
    for (size_t d = 0; d < head_dim; d += CHUNK, w++)
        round_queries(w, q + d * LQ_MANY_QUERIES, n_q, head_dim - d < CHUNK ? head_dim - d : CHUNK, NULL);
}

/* Rounds four rows of CHUNK floats; each gets a unit. */
LQ_INLINE void round_rows(int16_t *dst, float *unit, const float *const rows[4]) {
    vfloat squares[4];
    LQ_UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        squares[r] = vf_set1(LEAST / V_LANES);
        LQ_UNROLL
        for (size_t d = 0; d < CHUNK; d += V_LANES)
            squares[r] = vf_fma(vf_load(rows[r] + d), vf_load(rows[r] + d), squares[r]);
    }
    vf_sums_of_4(unit, squares[0], squares[1], squares[2], squares[3]);
    LQ_UNROLL
    for (uint32_t r = 0; r < 4; r++) {
        float norm = sqrtf(unit[r]);
        vfloat factor = vf_set1(LQ_INT16_NORM / norm);
        LQ_UNROLL
        for (size_t d = 0; d < CHUNK; d += V_LANES)
            vi_store_int16(dst + r * CHUNK + d, vi_from_float(vf_mul(vf_load(rows[r] + d), factor)));
        unit[r] = norm * (1.0f / LQ_INT16_NORM);
    }
}

static void scores_many(float *scores, const float *q, size_t n_q, const float *k, size_t n, size_t head_dim,
                        float scale) {
    const many_int16 *w = (const many_int16 *)(const void *)q;
    int16_t numbers[LQ_PAGE_TOKENS * CHUNK];
    float unit[LQ_PAGE_TOKENS], padded[4][CHUNK];
    for (size_t d = 0; d < head_dim; d += CHUNK, w++) {
        size_t m = head_dim - d < CHUNK ? head_dim - d : CHUNK;
        const int16_items items = {(const uint8_t *)numbers, 2 * CHUNK, 4, (m + 1) / 2, unit};
        for (size_t j = 0; j < n; j += 4) {
            const float *rows[4];
            for (size_t r = 0; r < 4; r++) { /* the last row stands in for missing ones */
                rows[r] = k + (j + r < n ? j + r : n - 1) * head_dim + d;
                if (m == CHUNK) continue;
                memset(padded[r], 0, sizeof padded[r]);
                rows[r] = memcpy(padded[r], rows[r], m * sizeof(float));
            }
            round_rows(numbers + j * CHUNK, unit + j, rows);
        }
        int16_products(scores, n, n_q, d == 0, NULL, w, &items, scale);
    }
}

/* size[j] = the largest |v| of token j. */
static void largest_of_tokens(float *size, const float *v, size_t n, size_t head_dim) {
    for (size_t j = 0; j < n; j += 4) {
        vfloat top[4];
        float largest[4];
        LQ_UNROLL
        for (size_t r = 0; r < 4; r++) {
            const float *row = v + (j + r < n ? j + r : n - 1) * head_dim;
            top[r] = vf_set1(LEAST);
            for (size_t d = 0; d + V_LANES <= head_dim; d += V_LANES) top[r] = vf_max(top[r], vf_abs(vf_load(row + d)));
        }
        vf_largest_of_4(largest, top[0], top[1], top[2], top[3]);
        for (size_t r = 0; r < 4 && j + r < n; r++) {
            for (size_t d = head_dim / V_LANES * V_LANES; d < head_dim; d++) {
                float x = fabsf(v[(j + r) * head_dim + d]);
                if (x > largest[r]) largest[r] = x;
            }
            size[j + r] = largest[r];
        }
    }
}

/* Rounds n vectors of values of two tokens; the pairs lie side by side. */
LQ_INLINE void round_values(uint8_t *numbers, const float *first, float first_factor, const float *second,
                            float second_factor, size_t n) {
    for (size_t d = 0; d < V_LANES * n; d += V_LANES) {
        vfloat low = vf_mul(vf_load(first + d), vf_set1(first_factor));
        vfloat high = vf_mul(vf_load(second + d), vf_set1(second_factor));
        vi_store(numbers + 4 * d, int16_pair(low, high));
    }
}

static void values_many(float *acc, const float *decay, const float *p, size_t n_q, const float *v, size_t n,
                        size_t head_dim) {
    uint8_t numbers[LQ_PAGE_TOKENS / 2][4 * CHUNK];
    float size[LQ_PAGE_TOKENS], padded[2][CHUNK];
    many_int16 w;
    largest_of_tokens(size, v, n, head_dim);
    round_queries(&w, p, n_q, n, size);
    for (size_t d = 0; d < head_dim; d += CHUNK, acc += CHUNK * LQ_MANY_QUERIES) {
        size_t m = head_dim - d < CHUNK ? head_dim - d : CHUNK;
        const int16_items items = {numbers[0], 4, sizeof numbers[0], (n + 1) / 2, NULL};
        for (size_t j = 0; j < n; j += 2) {
            size_t k = j + 1 < n ? j + 1 : j; /* if the last token is taken twice, its second p is 0 */
            const float *first = v + j * head_dim + d, *second = v + k * head_dim + d;
            if (m < CHUNK) {
                memset(padded, 0, sizeof padded);
                first = memcpy(padded[0], first, m * sizeof(float));
                second = memcpy(padded[1], second, m * sizeof(float));
            }
            round_values(numbers[j / 2], first, LQ_INT16_VALUE / size[j], second, LQ_INT16_VALUE / size[k],
                         CHUNK / V_LANES);
        }
        int16_products(acc, m, n_q, false, decay, &w, &items, 1.0f / LQ_INT16_VALUE);
    }
}

static void init_many_cells(lq_kernels *kernels) {
    kernels->queries_many = queries_many;
    kernels->scores_many = scores_many;
    kernels->values_many = values_many;
}

#endif
