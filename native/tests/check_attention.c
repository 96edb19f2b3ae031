/* check_attention.c - checks attention over packed pages and q8_0 cells, and their encoding, at every CPU level. Codes
 * must equal the scalar form's; sums may differ from double precision by 4e-6 of the sum of their terms' sizes (pages
 * also by what rounding weights to int8 may cost, kernels.h). Sentinels surround every output, and pages lie at the end
 * of their memory. `--bench [LEVEL]` times them beside attention over f16 cells. */
#define _POSIX_C_SOURCE 200809L
#include <float.h>

#include "backends/cpu/kernels/kernels.h"
#include "core/half.h"
#include "kernels_input.h"

#define BOUND 4e-6

static lq_kernels scalar;

/* ---- formats and pages */

static const lq_page_split splits[] = {
    {3, {{4, 3, 8}, {2, 3, 8}, {1, 1, 4}}},            /* logquant */
    {3, {{4, 1, 4}, {2, 1, 4}, {1, 1, 2}}},            /* logquant-small */
    {4, {{5, 1, 8}, {4, 1, 8}, {3, 1, 4}, {2, 1, 2}}}, /* logquant-hq */
    {1, {{1, 1, 1}}},
    {1, {{2, 1, 1}}},
    {1, {{3, 1, 1}}},
    {1, {{4, 1, 1}}},
    {1, {{5, 1, 1}}},
    {5, {{5, 1, 5}, {4, 1, 5}, {3, 1, 5}, {2, 1, 5}, {1, 1, 5}}},
};
#define N_SPLITS (sizeof splits / sizeof splits[0])

static lq_page_format make_format(size_t split, uint32_t head_dim, uint32_t v_bits, bool f16_scales) {
    lq_page_format f;
    lq_page_format_init(&f, head_dim, &splits[split], v_bits, !f16_scales, f16_scales);
    return f;
}

static lq_page_record new_page(const lq_page_format *f) {
    lq_page_record page = {exact(f->k_bytes), exact(f->v_bytes), exact(f->scale_bytes)};
    memset(page.scales, 0, f->scale_bytes);
    return page;
}

static void free_page(lq_page_record *page) { free(page->k), free(page->v), free(page->scales); }

/* Fills x with f16 numbers as a KV cache would hold them, of every shape; shape N_SHAPES has infinities and NaN. */
static void fill_tokens(float *x, size_t n, shape s) {
    fill(x, n, s == N_SHAPES ? MIXED : s);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = lq_float_to_half(fminf(fmaxf(s == HUGE_ONES ? x[i] * 1e-12f : x[i], -60000.0f), 60000.0f));
        if (s == N_SHAPES && i % 97 == 13) h = (uint16_t)(i % 2 ? 0x7c00 : 0xfe01);
        x[i] = lq_half_to_float(h);
    }
}

/* ---- encoding: the same bits at every level */

static void check_coding(const lq_kernels *k, const lq_page_format *f, shape s) {
    size_t n = (size_t)LQ_PAGE_TOKENS * f->head_dim;
    float *x = exact(n * 4);
    uint16_t *order = exact(f->head_dim * 2);
    lq_page_record wanted = new_page(f);
    guarded g = guarded_new((size_t)f->k_bytes + f->v_bytes + f->scale_bytes, 16);
    lq_page_record got = {g.data, g.data + f->k_bytes, g.data + f->k_bytes + f->v_bytes};
    fill_tokens(x, n, s);
    lq_page_learn_order(f, x, order);
    scalar.page_encode_keys(f, x, order, wanted);
    scalar.page_encode_values(f, x, wanted);
    k->page_encode_keys(f, x, order, got);
    k->page_encode_values(f, x, got);
    CHECK_MSG(guarded_intact(&g), "%s: coding wrote outside its page", k->level);
    CHECK_MSG(memcmp(got.k, wanted.k, f->k_bytes) == 0, "%s: key codes, dim %u shape %d", k->level, f->head_dim, s);
    CHECK_MSG(memcmp(got.v, wanted.v, f->v_bytes) == 0, "%s: value codes, dim %u shape %d", k->level, f->head_dim, s);
    CHECK_MSG(memcmp(got.scales, wanted.scales, f->scale_bytes) == 0, "%s: scales, dim %u shape %d", k->level,
              f->head_dim, s);
    guarded_free(&g);
    free_page(&wanted);
    free(order), free(x);
}

static void check_cells(const lq_kernels *k, lq_cell_format format, size_t head_dim, shape s) {
    size_t n_bytes = lq_cell_bytes(format, (uint32_t)head_dim);
    float *x = exact(head_dim * 4), *loaded = exact(head_dim * 4), *again = exact(head_dim * 4);
    uint8_t *wanted = exact(n_bytes);
    guarded g = guarded_new(n_bytes, 2), h = guarded_new(head_dim * 4, 4);
    fill_tokens(x, head_dim, s);
    scalar.cell_store_q(format, wanted, x, head_dim);
    k->cell_store_q(format, g.data, x, head_dim);
    CHECK_MSG(guarded_intact(&g) && memcmp(g.data, wanted, n_bytes) == 0, "%s: cell format %d, dim %zu shape %d",
              k->level, (int)format, head_dim, s);
    scalar.cell_load_q(format, loaded, wanted, head_dim);
    k->cell_load_q(format, again, wanted, head_dim);
    CHECK(memcmp(loaded, again, head_dim * 4) == 0 || s == N_SHAPES);
    float *rotated = (float *)(void *)h.data;
    memcpy(rotated, x, head_dim * 4);
    scalar.hadamard(x, head_dim);
    k->hadamard(rotated, head_dim);
    CHECK_MSG(guarded_intact(&h), "%s: hadamard wrote outside", k->level);
    CHECK_MSG(s == N_SHAPES || memcmp(rotated, x, head_dim * 4) == 0, "%s: hadamard, dim %zu shape %d", k->level,
              head_dim, s);
    k->axpy(rotated, x, 0.5f, head_dim);
    CHECK(guarded_intact(&h));
    for (size_t i = 0; s != N_SHAPES && i < head_dim; i++)
        CHECK(fabsf(rotated[i] - 1.5f * x[i]) <= fabsf(x[i]) * 1e-6f);
    guarded_free(&g), guarded_free(&h);
    free(wanted), free(again), free(loaded), free(x);
}

/* ---- sums against double precision */

/* One call of a kernel for scores and of one for values. kv: [n][dim] as stored. */
typedef struct call {
    const lq_kernels *kernels;
    const lq_page_format *format; /* NULL: cells */
    lq_page_record page;
    lq_cell_format cell_format;
    const uint8_t *cells;
    size_t dim, n, n_q;
    bool many;            /* queries side by side */
    bool alike;           /* all queries and probabilities: the largest sums that can be */
    const float *decoded; /* cells of those, [n][dim]; NULL: the page */
    /* of pages, as decoded: key steps by place, codes [place][token]; value steps [group][token], codes
     * [token][channel] */
    float step[LQ_PAGE_MAX_HEAD_DIM], v_step[LQ_PAGE_MAX_GROUPS * LQ_PAGE_TOKENS];
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_MAX_HEAD_DIM], v_codes[LQ_PAGE_TOKENS * LQ_PAGE_MAX_HEAD_DIM];
} call;

/* The index in a query of channel d of a page, in the page's order. */
static size_t lane_of(const call *c, size_t d) {
    if (c->format == NULL) return d;
    size_t t = 0;
    while (d >= c->format->tiers[t].first_channel + c->format->tiers[t].n_channels) t++;
    return d - c->format->tiers[t].first_channel + c->format->tiers[t].first_lane;
}

/* What rounding to int8 may add to the score of token j and row q: kernels.h. Scalar sums are not rounded. */
static double scores_slack(const call *c, const float *q, size_t j) {
    double slack = 0.0;
    if (c->decoded != NULL && c->kernels->queries_many != NULL) {
        const float *k = c->decoded + j * c->dim;
        for (size_t d0 = 0; d0 < c->dim; d0 += 64) {
            double q_norm = 0.0, k_norm = 0.0, q_sum = 0.0, k_sum = 0.0;
            for (size_t d = d0; d < c->dim && d < d0 + 64; d++) {
                q_norm += (double)q[d] * q[d], k_norm += (double)k[d] * k[d];
                q_sum += fabs(q[d]), k_sum += fabs(k[d]);
            }
            slack += 0.125 * (sqrt(q_norm) * k_sum + sqrt(k_norm) * q_sum) / (2 * LQ_INT16_NORM);
        }
        return slack * 1.001;
    }
    if (c->format == NULL || strcmp(c->kernels->level, "scalar") == 0) return 0.0;
    for (uint32_t t = 0; t < c->format->n_tiers; t++) {
        const lq_page_tier *tier = &c->format->tiers[t];
        double largest = 0.0, codes = 0.0, half = 0.5 * ((1u << tier->bits) - 1);
        for (size_t d = tier->first_channel; d < tier->first_channel + tier->n_channels; d++) {
            largest = fmax(largest, fabs(0.125 * q[lane_of(c, d)] * c->step[d]));
            codes += fabs(c->codes[d * LQ_PAGE_TOKENS + j] - half);
        }
        slack += largest / 254.0 * codes;
    }
    return slack * 1.0001;
}

/* page_scores_many and page_values_many on rows: in and out turned, with what a vector has beyond the queries. */
static void scores_many(const call *c, float *scores, size_t s_stride, const float *q, size_t q_stride) {
    size_t lanes = (c->n_q + 15) / 16 * 16;
    guarded g = guarded_new((size_t)LQ_PAGE_TOKENS * LQ_MANY_QUERIES * 4, 4);
    float *turned = exact(c->dim * LQ_MANY_QUERIES * 4), *out = (float *)(void *)g.data;
    memset(turned, 0, c->dim * LQ_MANY_QUERIES * 4);
    for (size_t d = 0; d < c->dim; d++)
        for (size_t i = 0; i < c->n_q; i++) turned[d * LQ_MANY_QUERIES + i] = q[i * q_stride + lane_of(c, d)];
    float *words = exact(LQ_MANY_QUERY_FLOATS(c->dim) * 4);
    if (c->decoded == NULL)
        c->kernels->page_scores_many(out, turned, c->n_q, c->format, c->page, NULL, 0.125f);
    else if (c->kernels->queries_many == NULL)
        c->kernels->scores_many(out, turned, c->n_q, c->decoded, c->n, c->dim, 0.125f);
    else {
        c->kernels->queries_many(words, turned, c->n_q, c->dim);
        c->kernels->scores_many(out, words, c->n_q, c->decoded, c->n, c->dim, 0.125f);
    }
    CHECK_MSG(guarded_intact(&g), "%s: scores of many written outside", c->kernels->level);
    for (size_t j = 0; j < c->n; j++) {
        for (size_t i = 0; i < c->n_q; i++) scores[i * s_stride + j] = out[j * LQ_MANY_QUERIES + i];
        for (size_t i = lanes; i < LQ_MANY_QUERIES; i++) CHECK(g.data[(j * LQ_MANY_QUERIES + i) * 4] == SENTINEL);
    }
    for (size_t i = c->n * LQ_MANY_QUERIES * 4; i < g.n_bytes; i++) CHECK(g.data[i] == SENTINEL);
    guarded_free(&g);
    free(words), free(turned);
}

static void values_many(const call *c, float *acc, size_t acc_stride, const float *decay, const float *p,
                        size_t p_stride) {
    size_t lanes = (c->n_q + 15) / 16 * 16;
    guarded g = guarded_new(c->dim * LQ_MANY_QUERIES * 4, 4);
    float *turned = exact((size_t)LQ_PAGE_TOKENS * LQ_MANY_QUERIES * 4), *out = (float *)(void *)g.data;
    float *keep = exact(lanes * 4);
    memset(keep, 0, lanes * 4);
    memcpy(keep, decay, c->n_q * 4);
    memset(turned, 0, (size_t)LQ_PAGE_TOKENS * LQ_MANY_QUERIES * 4);
    for (size_t i = 0; i < c->n_q; i++) {
        for (size_t j = 0; j < c->n; j++) turned[j * LQ_MANY_QUERIES + i] = p[i * p_stride + j];
        for (size_t d = 0; d < c->dim; d++) out[d * LQ_MANY_QUERIES + i] = acc[i * acc_stride + d];
    }
    if (c->decoded == NULL)
        c->kernels->page_values_many(out, keep, turned, c->n_q, c->format, c->page, &c->page);
    else
        c->kernels->values_many(out, keep, turned, c->n_q, c->decoded, c->n, c->dim);
    CHECK_MSG(guarded_intact(&g), "%s: values of many written outside", c->kernels->level);
    for (size_t d = 0; d < c->dim; d++) {
        for (size_t i = 0; i < c->n_q; i++) acc[i * acc_stride + d] = out[d * LQ_MANY_QUERIES + i];
        for (size_t i = lanes; i < LQ_MANY_QUERIES; i++) CHECK(g.data[(d * LQ_MANY_QUERIES + i) * 4] == SENTINEL);
    }
    guarded_free(&g);
    free(keep), free(turned);
}

static void check_scores(const call *c, const float *keys) {
    size_t lanes = c->format != NULL ? c->format->n_lanes : c->dim;
    size_t q_stride = lanes + 3, s_stride = c->n + 5, n_floats = (c->n_q - 1) * q_stride + lanes;
    float *q = exact(n_floats * 4), *plain = exact(n_floats * 4);
    guarded g = guarded_new(((c->n_q - 1) * s_stride + c->n) * 4, 4);
    float *scores = (float *)(void *)g.data;
    fill(plain, n_floats, PLAIN);
    for (size_t i = 0; c->alike && i < n_floats; i++) plain[i] = 0.37f;
    memcpy(q, plain, n_floats * 4);
    for (size_t i = 0; c->format != NULL && i < c->n_q; i++) {
        memset(q + i * q_stride, 0, lanes * 4);
        for (size_t d = 0; d < c->dim; d++) q[i * q_stride + lane_of(c, d)] = plain[i * q_stride + d];
    }
    if (c->many)
        scores_many(c, scores, s_stride, q, q_stride);
    else if (c->format != NULL)
        c->kernels->page_scores(scores, s_stride, q, q_stride, c->n_q, c->format, c->page, NULL, 0.125f);
    else
        c->kernels->attn_scores_q(scores, s_stride, q, q_stride, c->n_q, c->cell_format, c->cells, c->n, c->dim,
                                  0.125f);
    CHECK_MSG(guarded_intact(&g), "%s: scores written outside", c->kernels->level);
    for (size_t i = 0; i < c->n_q; i++) {
        for (size_t j = 0; j < c->n; j++) {
            double sum = 0.0, size = 0.0;
            for (size_t d = 0; d < c->dim; d++) {
                sum += 0.125 * q[i * q_stride + lane_of(c, d)] * keys[j * c->dim + d];
                size += fabs(0.125 * q[i * q_stride + lane_of(c, d)] * keys[j * c->dim + d]);
            }
            size = BOUND * size + scores_slack(c, q + i * q_stride, j) + 1e-36;
            CHECK_MSG(fabs(scores[i * s_stride + j] - sum) <= size, "%s: scores dim %zu n_q %zu: %g, %g",
                      c->kernels->level, c->dim, c->n_q, scores[i * s_stride + j], sum);
        }
        for (size_t j = c->n; i + 1 < c->n_q && j < s_stride; j++) CHECK(g.data[(i * s_stride + j) * 4] == SENTINEL);
    }
    guarded_free(&g);
    free(plain), free(q);
}

static double largest_of(const float *x, size_t n) {
    double largest = 1e-30;
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
    return largest;
}

/* What rounding may add to channel d of the values, for a row's weights. */
static double values_slack(const call *c, const float *p, size_t d) {
    double largest = 0.0, codes = 0.0;
    if (c->decoded != NULL && c->kernels->queries_many != NULL) {
        double norm = 0.0, p_sum = 0.0, v_sum = 0.0;
        for (size_t t = 0; t < c->n; t++) {
            double size = largest_of(c->decoded + t * c->dim, c->dim);
            norm += p[t] * size * p[t] * size, p_sum += fabs(p[t] * size);
            v_sum += fabs(c->decoded[t * c->dim + d]) / size;
        }
        return (sqrt(norm) / LQ_INT16_NORM * v_sum + p_sum / LQ_INT16_VALUE) / 2 * 1.001;
    }
    if (c->format == NULL || strcmp(c->kernels->level, "scalar") == 0) return 0.0;
    for (size_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        largest = fmax(largest, fabs((double)p[t] * c->v_step[d / LQ_PAGE_GROUP * LQ_PAGE_TOKENS + t]));
        codes += fabs(c->v_codes[t * c->dim + d] - 0.5 * ((1u << c->format->v_bits) - 1));
    }
    return largest / 254.0 * codes * 1.0001;
}

static void check_values(const call *c, const float *values) {
    size_t p_stride = c->n + 1, acc_stride = c->dim + 5;
    float *p = exact(((c->n_q - 1) * p_stride + c->n) * 4), *decay = exact(c->n_q * 4);
    guarded a = guarded_new(((c->n_q - 1) * acc_stride + c->dim) * 4, 4);
    float *acc = (float *)(void *)a.data, *before = exact(a.n_bytes);
    fill(p, (c->n_q - 1) * p_stride + c->n, PLAIN);
    for (size_t i = 0; c->alike && i < (c->n_q - 1) * p_stride + c->n; i++) p[i] = 0.37f;
    for (size_t i = 0; i < c->n_q; i++) {
        fill(acc + i * acc_stride, c->dim, PLAIN);
        decay[i] = 0.5f + 0.5f * uniform();
    }
    memcpy(before, acc, a.n_bytes);
    if (c->many)
        values_many(c, acc, acc_stride, decay, p, p_stride);
    else if (c->format != NULL)
        c->kernels->page_values(acc, acc_stride, decay, p, p_stride, c->n_q, c->format, c->page, &c->page);
    else
        c->kernels->attn_values_q(acc, acc_stride, decay, p, p_stride, c->n_q, c->cell_format, c->cells, c->n, c->dim);
    CHECK_MSG(guarded_intact(&a), "%s: values written outside", c->kernels->level);
    for (size_t i = 0; i < c->n_q; i++) {
        for (size_t d = 0; d < c->dim; d++) {
            double sum = (double)before[i * acc_stride + d] * decay[i], size = fabs(sum);
            for (size_t j = 0; j < c->n; j++) {
                sum += (double)p[i * p_stride + j] * values[j * c->dim + d];
                size += fabs((double)p[i * p_stride + j] * values[j * c->dim + d]);
            }
            size = BOUND * size + values_slack(c, p + i * p_stride, d) + 1e-36;
            CHECK_MSG(fabs(acc[i * acc_stride + d] - sum) <= size, "%s: values dim %zu n_q %zu: %g, %g",
                      c->kernels->level, c->dim, c->n_q, acc[i * acc_stride + d], sum);
        }
        if (i + 1 < c->n_q) CHECK(memcmp(acc + i * acc_stride + c->dim, before + i * acc_stride + c->dim, 20) == 0);
    }
    guarded_free(&a);
    free(before), free(decay), free(p);
}

/* Decodes the page's keys [token][index in page order] and values [token][channel] by docs/format.md, and fills the
 * call's steps and codes. */
static void decode(call *c, float *keys, float *values) {
    float base[LQ_PAGE_MAX_HEAD_DIM];
    const lq_page_format *f = c->format;
    lq_page_unpack_keys(f, c->page.k, c->codes);
    lq_page_key_scales(f, c->page.scales, base, c->step);
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++)
        for (uint32_t i = 0; i < f->head_dim; i++)
            keys[(size_t)t * f->head_dim + i] = base[i] + c->step[i] * (float)c->codes[i * LQ_PAGE_TOKENS + t];
    lq_page_unpack_values(f, c->page.v, c->v_codes);
    for (uint32_t g = 0; g < f->n_groups; g++) {
        float *step = c->v_step + g * LQ_PAGE_TOKENS;
        lq_page_value_scales(f, c->page.scales, g, base, step);
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++)
            for (uint32_t d = g * LQ_PAGE_GROUP; d < g * LQ_PAGE_GROUP + lq_page_group_len(f, g); d++)
                values[(size_t)t * f->head_dim + d] =
                    base[t] + step[t] * (float)c->v_codes[(size_t)t * f->head_dim + d];
    }
}

static void check_page(const lq_kernels *k, const lq_page_format *f, size_t n_q) {
    size_t n = (size_t)LQ_PAGE_TOKENS * f->head_dim;
    float *x = exact(n * 4), *keys = exact(n * 4), *values = exact(n * 4);
    uint16_t *order = exact(f->head_dim * 2);
    lq_page_record page = new_page(f);
    fill_tokens(x, n, PLAIN);
    lq_page_learn_order(f, x, order);
    scalar.page_encode_keys(f, x, order, page);
    scalar.page_encode_values(f, x, page);
    static call c;
    c = (call){.kernels = k, .format = f, .page = page, .dim = f->head_dim, .n = LQ_PAGE_TOKENS, .n_q = n_q};
    decode(&c, keys, values);
    check_scores(&c, keys);
    check_values(&c, values);
    c.many = true;
    if (k->page_scores_many != NULL) check_scores(&c, keys);
    if (k->page_values_many != NULL) check_values(&c, values);
    free_page(&page);
    free(order), free(values), free(keys), free(x);
}

static void check_q(const lq_kernels *k, lq_cell_format format, size_t dim, size_t n, size_t n_q) {
    size_t cell = lq_cell_bytes(format, (uint32_t)dim);
    float *x = exact(n * dim * 4);
    uint8_t *cells = exact(n * cell);
    fill_tokens(x, n * dim, PLAIN);
    for (size_t j = 0; j < n; j++) {
        scalar.cell_store_q(format, cells + j * cell, x + j * dim, dim);
        scalar.cell_load_q(format, x + j * dim, cells + j * cell, dim);
    }
    static call c;
    c = (call){.kernels = k, .cell_format = format, .cells = cells, .dim = dim, .n = n, .n_q = n_q};
    check_scores(&c, x);
    check_values(&c, x);
    free(cells), free(x);
}

/* Checks the kernels for decoded cells, with queries side by side. */
static void check_decoded(const lq_kernels *k, size_t dim, size_t n, size_t n_q) {
    float *x = exact(n * dim * 4);
    fill(x, n * dim, PLAIN);
    for (size_t i = 0; n > 8 && i < dim; i++) { /* nothing, all alike, next to nothing but one large number */
        x[3 * dim + i] = 0.0f, x[5 * dim + i] = -7.0f, x[6 * dim + i] = i == dim / 3 ? 3e4f : 1e-6f;
    }
    static call c;
    c = (call){.kernels = k, .decoded = x, .dim = dim, .n = n, .n_q = n_q, .many = true};
    check_scores(&c, x);
    check_values(&c, x);
    for (size_t i = 0; i < n * dim; i++) x[i] = 3.1f;
    c.alike = true;
    check_scores(&c, x);
    check_values(&c, x);
    free(x);
}

/* Checks an online softmax step over rows of scores of every size, some -infinity, after earlier ones: exponentials,
 * maximum, sum and decay against double precision. */
static void check_soften(const lq_kernels *k, size_t n, size_t n_rows) {
    size_t stride = n + 3;
    guarded g = guarded_new(((n_rows - 1) * stride + n) * 4, 4);
    float *scores = (float *)(void *)g.data, *before = exact(g.n_bytes);
    float *max = exact(n_rows * 4), *sum = exact(n_rows * 4), *decay = exact(n_rows * 4);
    for (int round = 0; round < 3; round++) {
        float old_max[64], old_sum[64];
        for (size_t r = 0; r < n_rows; r++) {
            fill(scores + r * stride, n, PLAIN);
            for (size_t i = 0; i < n; i++) {
                scores[r * stride + i] =
                    scores[r * stride + i] * (r % 3 == 2 ? 100.0f : 4.0f) + (r % 2 ? 50.0f : -50.0f);
                if (i != r % n && (i * 7 + r) % 5 == 0) scores[r * stride + i] = -INFINITY;
            }
            if (round == 0) max[r] = -FLT_MAX, sum[r] = 0.0f;
            old_max[r] = max[r], old_sum[r] = sum[r];
        }
        memcpy(before, scores, g.n_bytes);
        k->softmax_step(scores, stride, n_rows, n, max, sum, decay);
        CHECK_MSG(guarded_intact(&g), "%s: softmax_step wrote outside", k->level);
        for (size_t r = 0; r < n_rows; r++) {
            float top = old_max[r];
            double total = 0.0;
            for (size_t i = 0; i < n; i++) top = fmaxf(top, before[r * stride + i]);
            for (size_t i = 0; i < n; i++) {
                double wanted = exp((double)before[r * stride + i] - top), got = scores[r * stride + i];
                double far = top - (double)before[r * stride + i];
                CHECK_MSG(fabs(got - wanted) <= (3e-7 + 1.2e-7 * fmin(far, 100.0)) * wanted + 1e-30,
                          "%s: softmax_step n %zu: %g, %g", k->level, n, got, wanted);
                total += wanted;
            }
            double keep = exp((double)old_max[r] - top);
            CHECK(max[r] == top &&
                  fabs(decay[r] - keep) <= (3e-7 + 1.2e-7 * fmin((double)top - old_max[r], 100.0)) * keep + 1e-37);
            CHECK(fabs(sum[r] - (old_sum[r] * keep + total)) <= 1e-6 * (old_sum[r] * keep + total));
            if (r + 1 < n_rows) CHECK(memcmp(scores + r * stride + n, before + r * stride + n, 12) == 0);
        }
    }
    guarded_free(&g);
    free(before), free(max), free(sum), free(decay);
}

/* Checks softmax_step_many against softmax_step. */
static void check_soften_many(const lq_kernels *k, size_t n_q, size_t n) {
    guarded g = guarded_new((size_t)64 * LQ_MANY_QUERIES * 4, 4);
    float *turned = (float *)(void *)g.data, *rows = exact(LQ_MANY_QUERIES * n * 4), state[2][3][LQ_MANY_QUERIES];
    for (int round = 0; round < 3; round++) {
        fill(rows, n_q * n, PLAIN);
        for (size_t r = 0; r < n_q; r++) {
            if (round == 0)
                for (int i = 0; i < 2; i++) state[i][0][r] = -FLT_MAX, state[i][1][r] = 0.0f;
            for (size_t j = 0; j < n; j++) {
                rows[r * n + j] = rows[r * n + j] * (r % 3 == 2 ? 100.0f : 4.0f) + (r % 2 ? 50.0f : -50.0f);
                if ((j * 7 + r) % 5 == 0) rows[r * n + j] = -INFINITY;
                turned[j * LQ_MANY_QUERIES + r] = rows[r * n + j];
            }
        }
        k->softmax_step(rows, n, n_q, n, state[0][0], state[0][1], state[0][2]);
        k->softmax_step_many(turned, n_q, n, state[1][0], state[1][1], state[1][2]);
        CHECK_MSG(guarded_intact(&g), "%s: softmax_step_many wrote outside", k->level);
        for (size_t r = 0; r < n_q; r++) {
            CHECK(state[0][0][r] == state[1][0][r]);
            CHECK(fabsf(state[0][1][r] - state[1][1][r]) <= 2e-6f * state[0][1][r]);
            CHECK(fabsf(state[0][2][r] - state[1][2][r]) <= 1.3e-5f * state[0][2][r] + 2e-30f);
            for (size_t j = 0; j < n; j++) CHECK(rows[r * n + j] == turned[j * LQ_MANY_QUERIES + r]);
        }
        for (size_t j = 0; j < 64; j++)
            for (size_t r = j < n ? n_q : 0; r < LQ_MANY_QUERIES; r++)
                CHECK(g.data[(j * LQ_MANY_QUERIES + r) * 4] == SENTINEL);
    }
    guarded_free(&g);
    free(rows);
}

static void check_weigh(const lq_kernels *k, size_t n_q, size_t n) {
    guarded g = guarded_new(n * 4, 4);
    float *p = exact(n * LQ_MANY_QUERIES * 4), factor[LQ_MANY_QUERIES] = {0.0f};
    fill(p, n * LQ_MANY_QUERIES, PLAIN), fill(factor, n_q, PLAIN);
    k->weighted_sums_many((float *)(void *)g.data, p, factor, n_q, n);
    CHECK_MSG(guarded_intact(&g), "%s: weighted_sums_many wrote outside", k->level);
    for (size_t j = 0; j < n; j++) {
        double sum = 0.0, size = 0.0;
        for (size_t r = 0; r < n_q; r++) {
            sum += (double)p[j * LQ_MANY_QUERIES + r] * factor[r];
            size += fabs((double)p[j * LQ_MANY_QUERIES + r] * factor[r]);
        }
        CHECK(fabs(((float *)(void *)g.data)[j] - sum) <= BOUND * size);
    }
    guarded_free(&g);
    free(p);
}

static void check_level(const lq_kernels *k) {
    static const uint32_t dims[] = {8, 16, 24, 40, 64, 72, 80, 96, 112, 128, 192, 256, 512};
    static const size_t rows[] = {1, 2, 3, 4, 5, 6, 7, 9, 63};
    uint32_t n_dims = sizeof dims / sizeof dims[0];
    CHECK(k->page_scores && k->page_values && k->page_encode_keys && k->page_encode_values && k->cell_store_q);
    bool many = k->page_scores_many != NULL; /* all or none */
    CHECK((k->page_values_many != NULL) == many && (k->scores_many != NULL) == many &&
          (k->values_many != NULL) == many);
    CHECK((k->softmax_step_many != NULL) == many && (k->weighted_sums_many != NULL) == many &&
          (many || k->queries_many == NULL));
    CHECK(many == (strcmp(k->level, "scalar") != 0));
    CHECK(k->cell_load_q && k->hadamard && k->axpy && k->attn_scores_q && k->attn_values_q);
    for (size_t split = 0; split < N_SPLITS; split++) {
        for (uint32_t i = 0; i < n_dims; i++) {
            lq_page_format f = make_format(split, dims[i], 2 + (uint32_t)(split + i) % 3, split == 4);
            for (int s = PLAIN; s <= N_SHAPES; s++) check_coding(k, &f, (shape)s);
            check_page(k, &f, rows[(split + i) % 9]);
            if (dims[i] == 64 || dims[i] == 80)
                for (size_t r = 0; r < 9; r++) check_page(k, &f, rows[r]);
        }
    }
    for (uint32_t i = 0; i < n_dims; i++) {
        for (lq_cell_format format = LQ_CELL_Q8_0; format <= LQ_CELL_Q4_0; format++) {
            for (int s = PLAIN; s <= N_SHAPES; s++) check_cells(k, format, dims[i], (shape)s);
            for (size_t r = 0; r < 9; r += 2) check_q(k, format, dims[i], 1 + (r * 29 + i) % 64, rows[r]);
        }
    }
    for (uint32_t i = 0; i < n_dims && k->scores_many != NULL; i++)
        for (size_t r = 0; r < 9; r++) check_decoded(k, dims[i], 1 + (r * 37 + i * 5) % 64, rows[r]);
    for (size_t n_q = 16; n_q <= 64 && k->scores_many != NULL; n_q += 16) {
        check_decoded(k, 37, 63, n_q);
        check_decoded(k, 64, 64, n_q);
        check_soften_many(k, n_q, 61);
        check_weigh(k, n_q - 3, 61);
    }
    for (size_t n = 1; n <= 64; n++) check_soften(k, n, 1 + n * 5 % 9);
    for (size_t n = 128; n <= 256; n += 64) check_soften(k, n, n / 64);
    check_q(k, LQ_CELL_Q8_0, 36, 64, 3);
    check_q(k, LQ_CELL_Q4_0, 37, 64, 3);
}

/* ---- speed */

/* Prints nanoseconds for each block of 64 tokens: f16 cells, q8_0 cells, packed pages. */
static void bench_shape(const lq_kernels *k, const lq_page_format *f, size_t n_q) {
    enum { N_PAGES = 64 };
    size_t dim = f->head_dim, n = LQ_PAGE_TOKENS * dim, cell = lq_cell_bytes(LQ_CELL_Q8_0, (uint32_t)dim);
    float *x = exact(n * 4), *q = exact(n_q * f->n_lanes * 4), *s = exact(n_q * 64 * 4), *decay = exact(n_q * 4);
    uint16_t *order = exact(dim * 2), *f16 = exact(N_PAGES * n * 2);
    uint8_t *q8 = exact(N_PAGES * 64 * cell);
    lq_page_record pages[N_PAGES];
    float *turned_q = exact(LQ_MANY_QUERY_FLOATS(dim) * 4), *turned_s = exact((size_t)64 * LQ_MANY_QUERIES * 4);
    float *turned_decay = exact((size_t)LQ_MANY_QUERIES * 4), *max = exact((size_t)LQ_MANY_QUERIES * 8);
    float *decoded = exact(n * 4);
    double seconds[13];
    fill(x, n, PLAIN), fill(q, n_q * f->n_lanes, PLAIN), fill(s, n_q * 64, PLAIN);
    fill(turned_q, dim * LQ_MANY_QUERIES, PLAIN), fill(turned_s, (size_t)64 * LQ_MANY_QUERIES, PLAIN);
    for (size_t i = 0; i < n_q; i++) decay[i] = 0.5f;
    for (size_t i = 0; i < LQ_MANY_QUERIES; i++) turned_decay[i] = 0.5f;
    lq_page_learn_order(f, x, order);
    for (size_t i = 0; i < N_PAGES; i++) {
        pages[i] = new_page(f);
        k->page_encode_keys(f, x, order, pages[i]);
        k->page_encode_values(f, x, pages[i]);
        k->f32_to_f16(f16 + i * n, x, n);
        for (size_t t = 0; t < 64; t++) k->cell_store_q(LQ_CELL_Q8_0, q8 + (i * 64 + t) * cell, x + t * dim, dim);
    }
    for (int what = 0; what < 13; what++) {
        seconds[what] = 1e9;
        for (size_t i = 0; i < 2 * LQ_MANY_QUERIES; i++) max[i] = i < LQ_MANY_QUERIES ? -FLT_MAX : 0.0f;
        if (what > 7 && k->page_scores_many == NULL) continue;
        for (int attempt = 0; attempt < 15; attempt++) {
            double start = now();
            for (size_t i = 0; i < N_PAGES; i++) {
                switch (what) {
                case 0:
                    k->attn_scores_f16(s, 64, q, dim, n_q, f16 + i * n, 64, dim, 0.0f);
                    break;
                case 1:
                    k->attn_values_f16(q, dim, decay, s, 64, n_q, f16 + i * n, 64, dim);
                    break;
                case 2:
                    k->attn_scores_q(s, 64, q, dim, n_q, LQ_CELL_Q8_0, q8 + i * 64 * cell, 64, dim, 0.0f);
                    break;
                case 3:
                    k->attn_values_q(q, dim, decay, s, 64, n_q, LQ_CELL_Q8_0, q8 + i * 64 * cell, 64, dim);
                    break;
                case 4:
                    k->page_scores(s, 64, q, f->n_lanes, n_q, f, pages[i], NULL, 0.0f);
                    break;
                case 5:
                    k->page_values(q, dim, decay, s, 64, n_q, f, pages[i], NULL);
                    break;
                case 6:
                    k->page_encode_keys(f, x, order, pages[i]);
                    k->page_encode_values(f, x, pages[i]);
                    break;
                case 7:
                    k->softmax_step(s, 64, n_q, 64, max, max + LQ_MANY_QUERIES, decay);
                    break;
                case 8:
                    k->page_scores_many(turned_s, turned_q, n_q, f, pages[i], NULL, 0.0f);
                    break;
                case 9:
                    k->page_values_many(turned_q, turned_decay, turned_s, n_q, f, pages[i], NULL);
                    break;
                case 11:
                    k->f16_to_f32(decoded, f16 + i * n, n);
                    k->scores_many(turned_s, turned_q, n_q, decoded, 64, dim, 0.0f);
                    break;
                case 12:
                    k->f16_to_f32(decoded, f16 + i * n, n);
                    k->values_many(turned_q, turned_decay, turned_s, n_q, decoded, 64, dim);
                    break;
                default:
                    k->softmax_step_many(turned_s, n_q, 64, max, max + LQ_MANY_QUERIES, turned_decay);
                }
            }
            double elapsed = (now() - start) / N_PAGES;
            if (elapsed < seconds[what]) seconds[what] = elapsed;
        }
    }
    printf("%-11s dim %3zu n_q %2zu  ns per 64 tokens, scores + values: f16 %.0f + %.0f, q8_0 %.0f + %.0f, page %.0f + "
           "%.0f, softmax %.0f; side by side: f16 %.0f + %.0f, page %.0f + %.0f, softmax %.0f; coding %.0f\n",
           k->level, dim, n_q, 1e9 * seconds[0], 1e9 * seconds[1], 1e9 * seconds[2], 1e9 * seconds[3], 1e9 * seconds[4],
           1e9 * seconds[5], 1e9 * seconds[7], 1e9 * seconds[11], 1e9 * seconds[12], 1e9 * seconds[8], 1e9 * seconds[9],
           1e9 * seconds[10], 1e9 * seconds[6]);
    free(max), free(turned_decay), free(turned_s), free(turned_q), free(decoded);
    for (size_t i = 0; i < N_PAGES; i++) free_page(&pages[i]);
    free(q8), free(f16), free(order), free(decay), free(s), free(q), free(x);
}

int main(int argc, char **argv) {
    bool benchmark = argc > 1 && strcmp(argv[1], "--bench") == 0;
    size_t n_levels;
    const lq_cpu_level_desc *levels = lq_cpu_level_table(&n_levels);
    if (lq_kernels_select(&scalar, "scalar") != LQ_OK) return 2;
    for (size_t i = 0; i < n_levels; i++) {
        lq_kernels k;
        if (!levels[i].supported() || lq_kernels_select(&k, levels[i].name) != LQ_OK) continue;
        if (!benchmark) {
            check_level(&k);
        } else if (argc <= 2 || strcmp(argv[2], levels[i].name) == 0) {
            lq_page_format small = make_format(0, 64, 2, false), large = make_format(0, 256, 2, false);
            bench_shape(&k, &small, 3), bench_shape(&k, &large, 4), bench_shape(&k, &small, 9);
            bench_shape(&k, &small, 63), bench_shape(&k, &large, 64);
        }
    }
    return benchmark ? 0 : check_report("check_attention");
}
