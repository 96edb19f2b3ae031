/* attend_prompt.cuh - attention of many query rows on tensor cores. A block of threads has 64 rows of one KV head, a
 * warp 16 of them. The keys and values of a tile lie in shared memory as F16; packed pages are decoded there and never
 * to global memory. Products are of F16, sums and the online softmax are of floats. Queries are F16 with one scale per
 * row, probabilities are F16.
 *
 * A thread has registers for the results of 128 channels. For a larger head two warps have the same rows, each with one
 * part of the channels: they add up their scores, and the values replace the keys in shared memory.
 *
 * Fragments of mma are those of fmt_plain.cuh: with g = lane / 4, t = lane % 4 a lane has rows g and g + 8 of a warp.
 * Products with the keys give it the scores of tokens 2 t and 2 t + 1 of every eight: just where the products with the
 * values need the probabilities as their left operand. */
#ifndef LQ_CUDA_ATTEND_PROMPT_CUH
#define LQ_CUDA_ATTEND_PROMPT_CUH

#include "backends/cuda/attend_tile.cuh"
#include "backends/cuda/fmt_plain.cuh"
#include "backends/cuda/scale.cuh"

#define PROMPT_GROUPS 4        /* of 16 rows each, in a block */
#define GAP 4                  /* words of padding: the lanes of a fragment then read different banks */
#define TILE_STEPS (TILE / 16) /* mma steps of 16 tokens */

/* A head's channels are divided into PARTS, one per warp; a part has at most 16 * STEPS channels. */
template <int STEPS, int PARTS> struct prompt_tile {
    static constexpr int THREADS = PROMPT_GROUPS * PARTS * LQ_WARP, DIM = 16 * STEPS * PARTS;
    static constexpr int K_STRIDE = DIM / 2 + GAP, K_WORDS = TILE * K_STRIDE;
    static constexpr int V_STRIDE = TILE / 2 + GAP, V_WORDS = DIM * V_STRIDE;
    static constexpr int LARGER = K_WORDS > V_WORDS ? K_WORDS : V_WORDS;
    uint32_t words[PARTS == 1 ? K_WORDS + V_WORDS : LARGER]; /* keys and values; with 2 parts, values replace keys */
    float middle[DIM], step[DIM];                            /* of a page's keys, in page order */
    float v_middle[(DIM + 63) / 64][TILE], v_step[(DIM + 63) / 64][TILE];

    /* Each word holds two halves: k(token) two neighbouring channels, v(channel) two neighbouring tokens. */
    __device__ __forceinline__ uint32_t *k(uint32_t token) { return words + token * K_STRIDE; }
    __device__ __forceinline__ uint32_t *v(uint32_t channel) {
        return words + (PARTS == 1 ? K_WORDS : 0) + channel * V_STRIDE;
    }
    /* part(): the part of the channels that the warp has; n_steps(): steps of 16 channels from its first one on. */
    static __device__ __forceinline__ uint32_t part() {
        return PARTS == 1 ? 0 : threadIdx.x / (PROMPT_GROUPS * LQ_WARP);
    }
    static __device__ __forceinline__ uint32_t n_steps(uint32_t head_dim) { return head_dim / 16 - part() * STEPS; }
};

/* A lane's share of its two rows, g and g + 8. */
template <int STEPS> struct prompt_rows {
    uint32_t q[STEPS][4];
    float out[2 * STEPS][4];
    float p[TILE / 8][4]; /* scores of a tile, then exp(score - max) */
    float unit[2], max[2], sum[2];
};

LQ_DEVICE uint32_t pair_of(float low, float high) { return float_to_half(low) | (uint32_t)float_to_half(high) << 16; }

/* ---- a tile into shared memory */

LQ_DEVICE uint32_t cell_pair(lq_cell_format format, const uint8_t *cell, uint32_t pair) {
    if (format == LQ_CELL_F16) return ((const uint32_t *)(const void *)cell)[pair];
    return pair_of(cell_value(format, cell, 2 * pair), cell_value(format, cell, 2 * pair + 1));
}

/* Loads n cells and zeros for the rest of the tile: a NaN there would survive the product with probability 0. */
template <class T>
LQ_DEVICE void load_cell_keys(T *s, const lq_attn_run &run, const uint8_t *k, uint32_t n, uint32_t head_dim) {
    uint32_t n_pairs = head_dim / 2;
    size_t bytes = cell_bytes(run.format, head_dim);
    for (uint32_t i = threadIdx.x; i < TILE * n_pairs; i += T::THREADS) {
        uint32_t token = i / n_pairs, pair = i % n_pairs;
        s->k(token)[pair] = token < n ? cell_pair(run.format, k + token * bytes, pair) : 0;
    }
}

template <class T>
LQ_DEVICE void load_cell_values(T *s, const lq_attn_run &run, const uint8_t *v, uint32_t n, uint32_t head_dim) {
    uint32_t n_pairs = head_dim / 2;
    size_t bytes = cell_bytes(run.format, head_dim);
    for (uint32_t i = threadIdx.x; i < TILE / 2 * n_pairs; i += T::THREADS) {
        uint32_t token = i / n_pairs * 2, pair = i % n_pairs;
        uint32_t a = token < n ? cell_pair(run.format, v + token * bytes, pair) : 0;
        uint32_t b = token + 1 < n ? cell_pair(run.format, v + (token + 1) * bytes, pair) : 0;
        s->v(2 * pair)[token / 2] = (a & 0xffffu) | b << 16;
        s->v(2 * pair + 1)[token / 2] = a >> 16 | (b & 0xffff0000u);
    }
}

template <class T> LQ_DEVICE void load_page_scales(T *s, const lq_page_format &f, const lq_page_record &page) {
    for (uint32_t i = threadIdx.x; i < f.head_dim; i += T::THREADS)
        page_key_scale(f, page.scales, page_tier(f, i), i, &s->middle[i], &s->step[i]);
    for (uint32_t i = threadIdx.x; i < f.n_groups * TILE; i += T::THREADS)
        page_value_scale(f, page.scales, i / TILE, i % TILE, &s->v_middle[i / TILE][i % TILE],
                         &s->v_step[i / TILE][i % TILE]);
}

template <class T>
LQ_DEVICE void load_page_keys(T *s, const lq_page_format &f, const lq_page_record &page, const uint16_t *order) {
    uint32_t token = threadIdx.x % TILE;
    uint16_t *keys = (uint16_t *)(void *)s->k(token);
    for (uint32_t tier = 0; tier < f.n_tiers; tier++) {
        const lq_page_tier &t = f.tiers[tier];
        const uint32_t *words = (const uint32_t *)(const void *)(page.k + t.offset);
        float half_top = 0.5f * (float)((1u << t.bits) - 1);
        field at = find_field(LQ_PAGE_TOKENS, t.bits, token);
        for (uint32_t i = threadIdx.x / TILE; i < t.n_channels / 4; i += T::THREADS / TILE) {
            uint32_t codes = (uint32_t)field_codes(at, words + i * 8 * t.bits);
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                uint32_t index = t.first_channel + 4 * i + k;
                float code = (float)(codes >> 8 * k & 255) - half_top;
                keys[order[index]] = float_to_half(s->middle[index] + s->step[index] * code);
            }
        }
    }
}

template <class T> LQ_DEVICE void load_page_values(T *s, const lq_page_format &f, const lq_page_record &page) {
    float half_top = 0.5f * (float)((1u << f.v_bits) - 1);
    for (uint32_t channel = threadIdx.x; channel < f.head_dim; channel += T::THREADS) {
        uint32_t g = channel / LQ_PAGE_GROUP, n = page_group_len(f, g);
        const uint32_t *words = (const uint32_t *)(const void *)(page.v + page_group_offset(f, g));
        field at = find_field(n, f.v_bits, channel % LQ_PAGE_GROUP);
        uint32_t *values = s->v(channel);
        for (uint32_t i = 0; i < TILE / 4; i++) {
            uint32_t codes = (uint32_t)field_codes(at, words + i * (n * f.v_bits / 8));
            float x[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; k++)
                x[k] = s->v_middle[g][4 * i + k] + s->v_step[g][4 * i + k] * ((float)(codes >> 8 * k & 255) - half_top);
            values[2 * i] = pair_of(x[0], x[1]);
            values[2 * i + 1] = pair_of(x[2], x[3]);
        }
    }
}

/* ---- rows: four lanes share each */

LQ_DEVICE float quad_max(float x) {
    for (int mask = 1; mask < 4; mask *= 2) {
        float other = __shfl_xor_sync(LQ_ALL_LANES, x, mask);
        x = other > x ? other : x;
    }
    return x;
}

LQ_DEVICE float quad_sum(float x) {
    for (int mask = 1; mask < 4; mask *= 2) x += __shfl_xor_sync(LQ_ALL_LANES, x, mask);
    return x;
}

/* Index in the block of the lane's row i, i = 0 or 1. */
LQ_DEVICE uint32_t row_in_block(uint32_t i) {
    return threadIdx.x / LQ_WARP % PROMPT_GROUPS * 16 + threadIdx.x % LQ_WARP / 4 + 8 * i;
}

/* The same, but the last existing row for an index beyond it. */
LQ_DEVICE uint32_t lane_row(const position &at, uint32_t i) {
    return row_in_block(i) < at.n_rows ? row_in_block(i) : at.n_rows - 1;
}

template <int STEPS, int PARTS>
LQ_DEVICE void load_rows(const attend_all &all, const lq_attention &a, const position &at, prompt_rows<STEPS> *rows) {
    typedef prompt_tile<STEPS, PARTS> tile;
    uint32_t t = threadIdx.x % 4, n_steps = tile::n_steps(a.head_dim);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t row = at.row0 + lane_row(at, i);
        size_t token = row / all.group, head = (size_t)at.kv_head * all.group + row % all.group;
        const float *q = a.q + (token * a.n_heads + head) * a.head_dim + 2 * t;
        float most = 0.0f, scale;
        for (uint32_t c = 0; c < a.head_dim / 8; c++)
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) most = fabsf(q[8 * c + k]) > most ? fabsf(q[8 * c + k]) : most;
        most = quad_max(most);
        fit_halves(most, &scale, &rows->unit[i]);
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (uint32_t side = 0; side < 2; side++) {
                const float *two = q + 16 * (STEPS * tile::part() + step) + 8 * side;
                rows->q[step][i + 2 * side] = (uint32_t)step < n_steps ? pair_of(two[0] * scale, two[1] * scale) : 0;
            }
        rows->max[i] = -FLT_MAX;
        rows->sum[i] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) rows->out[n][i] = 0.0f;
}

/* Multiplies the warp's part of the channels with a tile's keys. */
template <int STEPS, int PARTS>
LQ_DEVICE void score_tile(prompt_tile<STEPS, PARTS> *s, const lq_attention &a, prompt_rows<STEPS> *rows) {
    uint32_t g = threadIdx.x % LQ_WARP / 4, t = threadIdx.x % 4, n_steps = s->n_steps(a.head_dim);
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        const uint32_t *key = s->k(8 * n + g) + 8 * STEPS * s->part() + t;
        float *c = rows->p[n];
#pragma unroll
        for (int i = 0; i < 4; i++) c[i] = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if ((uint32_t)step >= n_steps) break;
            uint32_t b[2] = {key[8 * step], key[8 * step + 4]};
            fmt_f16::mma(c, rows->q[step], b);
        }
    }
}

/* Adds the other part's scores. They pass through the keys' memory, which the values may overwrite afterwards. */
template <int STEPS> LQ_DEVICE void add_parts(prompt_tile<STEPS, 1> *, prompt_rows<STEPS> *) {}
template <int STEPS> LQ_DEVICE void add_parts(prompt_tile<STEPS, 2> *s, prompt_rows<STEPS> *rows) {
    enum { N = TILE / 2 }; /* scores of a lane */
    uint32_t warp = threadIdx.x / LQ_WARP, other = (warp + PROMPT_GROUPS) % (2 * PROMPT_GROUPS);
    float *scores = (float *)(void *)s->words + threadIdx.x % LQ_WARP;
    static_assert(2 * PROMPT_GROUPS * N * LQ_WARP <= sizeof s->words / sizeof s->words[0], "room for the scores");
    __syncthreads(); /* all warps are done with the keys */
#pragma unroll
    for (int i = 0; i < N; i++) scores[(warp * N + i) * LQ_WARP] = rows->p[i / 4][i % 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) rows->p[i / 4][i % 4] += scores[(other * N + i) * LQ_WARP];
    __syncthreads();
}

template <int STEPS> LQ_DEVICE void scale_scores(const lq_attention &a, prompt_rows<STEPS> *rows) {
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) {
        float *score = &rows->p[i / 4][i % 4];
        *score *= rows->unit[i % 4 / 2] * a.scale;
        if (a.softcap > 0.0f) *score = a.softcap * tanhf(*score / a.softcap);
    }
}

/* Online softmax step of row i. Bit t of seen: the row sees token t. A larger maximum scales down the earlier sums. */
template <int STEPS> LQ_DEVICE void softmax_tile(prompt_rows<STEPS> *rows, uint32_t i, uint64_t seen) {
    uint32_t t = threadIdx.x % 4;
    float top = rows->max[i], before = top, total = 0.0f;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            float *p = &rows->p[n][2 * i + k];
            if ((seen >> (8 * n + 2 * t + k) & 1) == 0) *p = -INFINITY;
            top = *p > top ? *p : top;
        }
    top = quad_max(top);
    float decay = before == top ? 1.0f : expf(before - top);
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) total += rows->p[n][2 * i + k] = expf(rows->p[n][2 * i + k] - top);
    rows->max[i] = top;
    rows->sum[i] = rows->sum[i] * decay + total; /* over this lane's tokens only */
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) rows->out[n][2 * i + k] *= decay;
}

template <int STEPS, int PARTS>
LQ_DEVICE void add_values(prompt_tile<STEPS, PARTS> *s, uint32_t head_dim, prompt_rows<STEPS> *rows) {
    uint32_t g = threadIdx.x % LQ_WARP / 4, t = threadIdx.x % 4, n_steps = s->n_steps(head_dim);
#pragma unroll
    for (int step = 0; step < TILE_STEPS; step++) {
        const float *low = rows->p[2 * step], *high = rows->p[2 * step + 1];
        uint32_t a[4] = {pair_of(low[0], low[1]), pair_of(low[2], low[3]), pair_of(high[0], high[1]),
                         pair_of(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            if ((uint32_t)n >= 2 * n_steps) break;
            const uint32_t *value = s->v(16 * STEPS * s->part() + 8 * n + g) + 8 * step + t;
            uint32_t b[2] = {value[0], value[4]};
            fmt_f16::mma(rows->out[n], a, b);
        }
    }
}

#endif
