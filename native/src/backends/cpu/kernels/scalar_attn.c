/* scalar_attn.c - attention over packed pages and quantized cells, and their coding, in plain C: the specification of
 * the faster forms. It folds the key scales into the query and the value scales into the probabilities, so that codes
 * stay small integers. */
#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/cell_q.h"
#include "backends/cpu/kernels/kernels.h"
#include "core/half.h"

static void cell_store_q8(uint8_t *dst, const float *x, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK;
        float largest = 0.0f;
        for (size_t i = 0; i < n; i++) largest = fabsf(x[at + i]) > largest ? fabsf(x[at + i]) : largest;
        uint16_t half = lq_float_to_half(largest / 127.0f);
        float d = lq_half_to_float(half);
        *dst++ = (uint8_t)(half & 255u);
        *dst++ = (uint8_t)(half >> 8);
        for (size_t i = 0; i < n; i++) {
            float q = d > 0.0f ? x[at + i] / d : 0.0f;
            q = q >= -127.0f ? q : -127.0f; /* also where q is no number */
            q = q <= 127.0f ? q : 127.0f;
            *dst++ = (uint8_t)(int8_t)((q + 12582912.0f) - 12582912.0f); /* nearest, ties to even */
        }
    }
}

static void cell_load_q8(float *dst, const uint8_t *src, size_t head_dim) {
    for (size_t at = 0; at < head_dim; at += LQ_CELL_BLOCK) {
        size_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK;
        float d = lq_half_to_float((uint16_t)(src[0] | src[1] << 8));
        src += 2;
        for (size_t i = 0; i < n; i++) dst[at + i] = d * (float)(int8_t)*src++;
    }
}

static void attn_scores_q(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                          lq_cell_format format, const uint8_t *k, size_t n_k, size_t head_dim, float scale) {
    float cell[LQ_PAGE_MAX_HEAD_DIM];
    for (size_t j = 0; j < n_k; j++, k += lq_cell_bytes(format, (uint32_t)head_dim)) {
        cell_load_q(format, cell, k, head_dim);
        for (size_t i = 0; i < n_q; i++) {
            float sum = 0.0f;
            for (size_t d = 0; d < head_dim; d++) sum += q[i * q_stride + d] * cell[d];
            scores[i * s_stride + j] = scale * sum;
        }
    }
}

static void attn_values_q(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                          size_t n_q, lq_cell_format format, const uint8_t *v, size_t n_k, size_t head_dim) {
    float cell[LQ_PAGE_MAX_HEAD_DIM];
    for (size_t i = 0; i < n_q; i++)
        for (size_t d = 0; d < head_dim; d++) acc[i * acc_stride + d] *= decay[i];
    for (size_t j = 0; j < n_k; j++, v += lq_cell_bytes(format, (uint32_t)head_dim)) {
        cell_load_q(format, cell, v, head_dim);
        for (size_t i = 0; i < n_q; i++)
            for (size_t d = 0; d < head_dim; d++) acc[i * acc_stride + d] += p[i * p_stride + j] * cell[d];
    }
}

static void page_scores(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next, float scale) {
    (void)next;
    float base[LQ_PAGE_MAX_HEAD_DIM], step[LQ_PAGE_MAX_HEAD_DIM];
    uint8_t codes[LQ_PAGE_MAX_HEAD_DIM * LQ_PAGE_TOKENS];
    lq_page_key_scales(format, page.scales, base, step);
    lq_page_unpack_keys(format, page.k, codes);
    for (size_t i = 0; i < n_q; i++) {
        float constant = 0.0f, sum[LQ_PAGE_TOKENS] = {0.0f};
        for (uint32_t d = 0, tier = 0; d < format->head_dim; d++) {
            if (d == format->tiers[tier].first_channel + format->tiers[tier].n_channels) tier++;
            float x = q[i * q_stride + format->tiers[tier].first_lane + d - format->tiers[tier].first_channel];
            float folded = x * step[d];
            constant += x * base[d];
            for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) sum[t] += folded * (float)codes[d * LQ_PAGE_TOKENS + t];
        }
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) scores[i * s_stride + t] = scale * (sum[t] + constant);
    }
}

static void page_values(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride, size_t n_q,
                        const lq_page_format *format, lq_page_record page, const lq_page_record *next) {
    (void)next;
    float base[LQ_PAGE_TOKENS], step[LQ_PAGE_TOKENS];
    uint8_t codes[LQ_PAGE_TOKENS * LQ_PAGE_MAX_HEAD_DIM];
    lq_page_unpack_values(format, page.v, codes);
    for (uint32_t g = 0; g < format->n_groups; g++) {
        uint32_t first = g * LQ_PAGE_GROUP, n = lq_page_group_len(format, g);
        lq_page_value_scales(format, page.scales, g, base, step);
        for (size_t i = 0; i < n_q; i++) {
            float constant = 0.0f, sum[LQ_PAGE_GROUP] = {0.0f};
            for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
                float folded = p[i * p_stride + t] * step[t];
                constant += p[i * p_stride + t] * base[t];
                for (uint32_t d = 0; d < n; d++) sum[d] += folded * (float)codes[t * format->head_dim + first + d];
            }
            float *row = acc + i * acc_stride + first;
            for (uint32_t d = 0; d < n; d++) row[d] = row[d] * decay[i] + (sum[d] + constant);
        }
    }
}

static void softmax_step(float *scores, size_t stride, size_t n_rows, size_t n, float *max, float *sum, float *decay) {
    for (size_t r = 0; r < n_rows; r++) {
        float *row = scores + r * stride, top = max[r], total = 0.0f;
        for (size_t i = 0; i < n; i++) top = row[i] > top ? row[i] : top;
        for (size_t i = 0; i < n; i++) total += row[i] = expf(row[i] - top);
        decay[r] = max[r] == top ? 1.0f : expf(max[r] - top);
        max[r] = top;
        sum[r] = sum[r] * decay[r] + total;
    }
}

void lq_kernels_init_scalar_attn(lq_kernels *kernels) {
    kernels->attn_scores_q = attn_scores_q;
    kernels->attn_values_q = attn_values_q;
    kernels->page_scores = page_scores;
    kernels->page_values = page_values;
    kernels->softmax_step = softmax_step;
    kernels->page_encode_keys = lq_page_encode_keys;
    kernels->page_encode_values = lq_page_encode_values;
    kernels->cell_store_q = cell_store_q;
    kernels->cell_load_q = cell_load_q;
}
