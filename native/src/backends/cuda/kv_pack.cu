/* kv_pack.cu - codes pages as formats/kv_page_body.h does, one thread per channel (keys) or token (values), with the
 * same float32 operations in the same order, so that every bit agrees. Compiled without contraction. */
#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/cells.cuh"
#include "backends/cuda/page.cuh"

#define MAX_DIM LQ_PAGE_MAX_HEAD_DIM

/* Nearest integer, ties to even, for |x| < 2^22. */
LQ_DEVICE float page_round(float x) { return rintf(x); }

/* Comparisons are written so that a NaN becomes lo. */
LQ_DEVICE float page_clamp(float x, float lo, float hi) {
    x = x >= lo ? x : lo;
    return x <= hi ? x : hi;
}

LQ_DEVICE float page_factor(float half_levels, float s) { return s > 0.0f ? half_levels / s : 0.0f; }

LQ_DEVICE float code_of(float x, float m, float r, float half_levels, float top) {
    return page_round(page_clamp((x - m) * r + half_levels, 0.0f, top));
}

/* The head's cell of token t of page number `page` of this call. */
LQ_DEVICE const uint16_t *token_cell(const lq_kv_pack &args, uint32_t head_dim, uint32_t page, uint32_t head, bool keys,
                                     uint32_t t) {
    uint32_t cell = page * LQ_PAGE_TOKENS + t, source = 0;
    while (cell >= args.sources[source].n_cells) cell -= args.sources[source++].n_cells;
    const lq_attn_run &run = args.sources[source];
    return (const uint16_t *)(const void *)((keys ? run.k : run.v) + head * run.head_bytes +
                                            (size_t)cell * 2 * head_dim);
}

/* ---- the order of channels: one block per head, one thread per channel */

static __global__ void learn_orders(lq_kv_pack args, lq_kv_pages pages, lq_page_format f) {
    __shared__ float range[MAX_DIM];
    uint32_t head = blockIdx.x, d = threadIdx.x;
    uint16_t *order = pages.order + (size_t)head * f.head_dim;
    if (d < f.head_dim) {
        float lo = 0.0f, hi = 0.0f;
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
            float x = half_to_float(token_cell(args, f.head_dim, 0, head, true, t)[d]);
            lo = t == 0 || x < lo ? x : lo;
            hi = t == 0 || x > hi ? x : hi;
        }
        range[d] = hi - lo >= 0.0f ? hi - lo : -1.0f; /* NaNs come last, so that the order is total */
    }
    __syncthreads();
    if (d >= f.head_dim) return;
    uint32_t index = d;
    if (f.n_tiers > 1) {
        index = 0;
        for (uint32_t o = 0; o < f.head_dim; o++) index += range[o] > range[d] || (range[o] == range[d] && o < d);
    }
    order[index] = (uint16_t)d;
}

/* ---- keys: one block per page and head, one thread per channel, in page order */

/* Finds a channel's (s, m) from its range, then refines it by two rounds of least squares if the format says so. */
LQ_DEVICE void fit_channel(const lq_page_format &f, const uint16_t *const *cells, uint32_t channel, uint32_t bits,
                           float *s_out, float *m_out) {
    float top = (float)((1u << bits) - 1), half_levels = top * 0.5f, lo = 0.0f, hi = 0.0f;
    for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
        float x = half_to_float(cells[t][channel]);
        lo = t == 0 || x < lo ? x : lo;
        hi = t == 0 || x > hi ? x : hi;
    }
    float s = (hi - lo) * 0.5f, m = (lo + hi) * 0.5f + 0.0f, mid = m;
    for (int round = 0; f.least_squares && round < 2; round++) {
        float r = page_factor(half_levels, s), sum_y = 0.0f, sum_u = 0.0f, sum_yu = 0.0f, sum_uu = 0.0f;
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
            float x = half_to_float(cells[t][channel]), y = x - mid;
            float u = 2.0f * code_of(x, m, r, half_levels, top) - top;
            sum_y += y;
            sum_u += u;
            sum_yu += y * u;
            sum_uu += u * u;
        }
        float spread = 64.0f * sum_uu - sum_u * sum_u;
        float slope = spread > 0.0f ? (64.0f * sum_yu - sum_y * sum_u) / spread : 0.0f, fitted = slope * top;
        if (!(fitted > 0.0f)) continue;
        m = mid + (sum_y - slope * sum_u) * 0.015625f;
        s = fitted;
    }
    *s_out = s;
    *m_out = m;
}

LQ_DEVICE void put_half(uint8_t *at, uint16_t bits) {
    at[0] = (uint8_t)(bits & 255u);
    at[1] = (uint8_t)(bits >> 8);
}

/* Rounds (s, m) of one member of a super-block to their stored form. all_s, all_m: the n pairs of the super-block.
 * first: also writes the super-block's own pair. */
LQ_DEVICE void round_scales(const float *all_s, const float *all_m, uint32_t n, bool first, float *s, float *m,
                            uint8_t *s_code, uint8_t *m_code, uint8_t *super) {
    float top_s = 0.0f, top_m = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        float size = all_m[i] < 0.0f ? -all_m[i] : all_m[i];
        top_s = all_s[i] > top_s ? all_s[i] : top_s;
        top_m = size > top_m ? size : top_m;
    }
    uint16_t half_s = float_to_half(top_s / 63.0f), half_m = float_to_half(top_m / 31.0f);
    float unit_s = half_to_float(half_s), unit_m = half_to_float(half_m);
    if (first) {
        put_half(super, half_s);
        put_half(super + 2, half_m);
    }
    float cs = unit_s > 0.0f ? page_round(page_clamp(*s / unit_s, 1.0f, 63.0f)) : 1.0f;
    float cm = unit_m > 0.0f ? page_round(page_clamp(*m / unit_m, -31.0f, 31.0f)) : 0.0f;
    *s_code = (uint8_t)cs;
    *m_code = (uint8_t)(cm + 32.0f);
    *s = cs * unit_s;
    *m = cm * unit_m;
}

/* Stores (s, m) as halves and changes them to the stored values. */
LQ_DEVICE void round_halves(float *s, float *m, uint8_t *s_at, uint8_t *m_at) {
    uint16_t half_s = float_to_half(*s), half_m = float_to_half(*m);
    put_half(s_at, half_s);
    put_half(m_at, half_m);
    *s = half_to_float(half_s);
    *m = half_to_float(half_m);
}

/* Packs n numbers of 6 bits (docs/format.md, packed sixes), by all threads of the block. */
LQ_DEVICE void put_sixes(uint8_t *dst, const uint8_t *src, uint32_t n) {
    for (uint32_t i = threadIdx.x; i < n / 2; i += blockDim.x)
        dst[i] = (uint8_t)((src[i] & 15u) | (src[i + n / 2] & 15u) << 4);
    for (uint32_t i = threadIdx.x; i < n / 4; i += blockDim.x)
        dst[n / 2 + i] = (uint8_t)(src[i] >> 4 | (src[i + n / 4] >> 4) << 2 | (src[i + n / 2] >> 4) << 4 |
                                   (src[i + 3 * (n / 4)] >> 4) << 6);
}

/* Builds word number `word` of the planes of four streams: item i of stream j is at src[i * item_stride + j *
 * stream_stride]. */
LQ_DEVICE uint32_t plane_word(const uint8_t *src, uint32_t item_stride, uint32_t stream_stride, uint32_t n,
                              uint32_t bits, uint32_t word) {
    uint32_t low = plane_bits(bits), lanes = n * low / 8, shift = 0, width = low;
    if (word >= lanes) { /* the second plane, of one bit */
        word -= lanes;
        shift = low;
        width = 1;
        lanes = n / 8;
    }
    uint32_t out = 0;
    for (uint32_t j = 0; j < 4; j++)
        for (uint32_t i = 0; i < 8 / width; i++)
            out |= (src[(lanes * i + word) * item_stride + j * stream_stride] >> shift & ((1u << width) - 1))
                   << (8 * j + width * i);
    return out;
}

static __global__ void pack_keys(lq_kv_pack args, lq_kv_pages pages, lq_page_format f) {
    __shared__ const uint16_t *cells[LQ_PAGE_TOKENS];
    __shared__ float all_s[MAX_DIM], all_m[MAX_DIM];
    __shared__ uint8_t s_codes[MAX_DIM], m_codes[MAX_DIM];
    LQ_SHARED(uint8_t, codes); /* [head_dim in page order][64] */
    uint32_t head = blockIdx.x, page = args.first_page + blockIdx.y, index = threadIdx.x;
    lq_page_record record =
        page_record(f, pages.frames[page % pages.n_slots] + pages.block_offset, args.n_kv_heads, head);
    bool is = index < f.head_dim;
    uint32_t channel = 0, tier = 0;
    float s = 0.0f, m = 0.0f;
    for (uint32_t t = threadIdx.x; t < LQ_PAGE_TOKENS; t += blockDim.x)
        cells[t] = token_cell(args, f.head_dim, blockIdx.y, head, true, t);
    __syncthreads();
    if (is) {
        channel = pages.order[(size_t)head * f.head_dim + index];
        tier = page_tier(f, index);
        fit_channel(f, cells, channel, f.tiers[tier].bits, &s, &m);
        all_s[index] = s;
        all_m[index] = m;
    }
    __syncthreads();
    if (is) {
        uint32_t first = f.tiers[tier].first_channel, bits = f.tiers[tier].bits;
        if (f.f16_scales)
            round_halves(&s, &m, record.scales + 2 * (size_t)index, record.scales + 2 * ((size_t)f.head_dim + index));
        else
            round_scales(all_s + first, all_m + first, f.tiers[tier].n_channels, index == first, &s, &m,
                         &s_codes[index], &m_codes[index], record.scales + 4 * tier);
        float top = (float)((1u << bits) - 1), half_levels = top * 0.5f, r = page_factor(half_levels, s);
        for (uint32_t t = 0; t < LQ_PAGE_TOKENS; t++) {
            float code = code_of(half_to_float(cells[t][channel]), m, r, half_levels, top);
            codes[index * LQ_PAGE_TOKENS + t] = s > 0.0f ? (uint8_t)code : 0;
        }
    }
    __syncthreads();
    if (!f.f16_scales) {
        uint8_t *at = record.scales + 4 * (f.n_tiers + f.n_groups);
        put_sixes(at, s_codes, f.head_dim);
        put_sixes(at + f.head_dim / 4 * 3, m_codes, f.head_dim);
    }
    for (uint32_t i = 0; i < f.n_tiers; i++) {
        uint32_t words = 8 * f.tiers[i].bits; /* words of four channels */
        uint32_t *out = (uint32_t *)(void *)(record.k + f.tiers[i].offset);
        for (uint32_t w = threadIdx.x; w < f.tiers[i].n_channels / 4 * words; w += blockDim.x) {
            const uint8_t *four = codes + (f.tiers[i].first_channel + w / words * 4) * LQ_PAGE_TOKENS;
            out[w] = plane_word(four, 1, LQ_PAGE_TOKENS, LQ_PAGE_TOKENS, f.tiers[i].bits, w % words);
        }
    }
}

/* ---- values: one block per page, head and group of channels, one thread per token */

static __global__ void pack_values(lq_kv_pack args, lq_kv_pages pages, lq_page_format f) {
    __shared__ float all_s[LQ_PAGE_TOKENS], all_m[LQ_PAGE_TOKENS];
    __shared__ uint8_t s_codes[LQ_PAGE_TOKENS], m_codes[LQ_PAGE_TOKENS], codes[LQ_PAGE_TOKENS * LQ_PAGE_GROUP];
    uint32_t head = blockIdx.x, page = args.first_page + blockIdx.y, g = blockIdx.z, t = threadIdx.x;
    uint32_t n = page_group_len(f, g), words = n * f.v_bits / 8;
    lq_page_record record =
        page_record(f, pages.frames[page % pages.n_slots] + pages.block_offset, args.n_kv_heads, head);
    const uint16_t *cell = token_cell(args, f.head_dim, blockIdx.y, head, false, t) + g * LQ_PAGE_GROUP;
    float lo = half_to_float(cell[0]), hi = lo;
    for (uint32_t i = 1; i < n; i++) {
        float x = half_to_float(cell[i]);
        lo = x < lo ? x : lo;
        hi = x > hi ? x : hi;
    }
    float s = (hi - lo) * 0.5f, m = (lo + hi) * 0.5f + 0.0f; /* never -0 */
    all_s[t] = s;
    all_m[t] = m;
    __syncthreads();
    if (f.f16_scales) {
        uint8_t *at = record.scales + 4 * (size_t)f.head_dim + (size_t)g * 4 * LQ_PAGE_TOKENS;
        round_halves(&s, &m, at + 2 * t, at + 2 * (LQ_PAGE_TOKENS + t));
    } else {
        round_scales(all_s, all_m, LQ_PAGE_TOKENS, t == 0, &s, &m, &s_codes[t], &m_codes[t],
                     record.scales + 4 * (f.n_tiers + g));
    }
    float top = (float)((1u << f.v_bits) - 1), half_levels = top * 0.5f, r = page_factor(half_levels, s);
    for (uint32_t i = 0; i < n; i++) {
        float code = code_of(half_to_float(cell[i]), m, r, half_levels, top);
        codes[t * n + i] = s > 0.0f ? (uint8_t)code : 0;
    }
    __syncthreads();
    if (!f.f16_scales) {
        uint8_t *at = record.scales + 4 * (f.n_tiers + f.n_groups) + f.head_dim / 2 * 3 + g * 96;
        put_sixes(at, s_codes, LQ_PAGE_TOKENS);
        put_sixes(at + 48, m_codes, LQ_PAGE_TOKENS);
    }
    uint32_t *out = (uint32_t *)(void *)(record.v + page_group_offset(f, g));
    for (uint32_t w = threadIdx.x; w < LQ_PAGE_TOKENS / 4 * words; w += blockDim.x)
        out[w] = plane_word(codes + w / words * 4 * n, 1, n, n, f.v_bits, w % words);
}

void lq_cuda_kv_pack(lq_backend *backend, const lq_kv_pack *args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    const lq_page_format &f = *args->pages->format;
    uint32_t n_threads = lq_divide_up(f.head_dim, LQ_WARP) * LQ_WARP;
    if (args->n_pages == 0) return;
    if (args->learn_order)
        LQ_LAUNCH(learn_orders, args->n_kv_heads, n_threads, 0, cuda->stream, *args, *args->pages, f);
    LQ_LAUNCH(pack_keys, dim3(args->n_kv_heads, args->n_pages), n_threads, f.head_dim * LQ_PAGE_TOKENS, cuda->stream,
              *args, *args->pages, f);
    LQ_LAUNCH(pack_values, dim3(args->n_kv_heads, args->n_pages, f.n_groups), LQ_PAGE_TOKENS, 0, cuda->stream, *args,
              *args->pages, f);
    lq_cuda_check(cuda, "kv_pack");
}
