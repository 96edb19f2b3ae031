/* attend_tile.cuh - attention of a block's query rows over one tile of 64 tokens, a packed page or cells, in three
 * steps: scores, online softmax, values. See attention.cu. */
#ifndef LQ_CUDA_ATTEND_TILE_CUH
#define LQ_CUDA_ATTEND_TILE_CUH

#include "backends/cuda/attention.cuh"

#define MIN_THREADS 128

/* A block's workspace in shared memory. */
typedef struct workspace {
    float *q;         /* [ROWS][dim4] */
    float *scores;    /* [n_parts][ROWS][TILE]; the softmax leaves exp(score - max) in part 0 */
    float *max;       /* [ROWS] */
    float *sum;       /* [ROWS] */
    float *decay;     /* [ROWS] */
    float *middle;    /* [dim] of the page's keys, in page order (page.cuh) */
    float *step;      /* [dim] */
    int *q_codes;     /* [ROWS][dim / 4] folded queries, in page order */
    float *q_scale;   /* [ROWS][LQ_PAGE_MAX_TIERS] */
    float *q_const;   /* [ROWS] */
    int *p_codes;     /* [ROWS][n_groups][TILE / 4] folded probabilities */
    float *p_scale;   /* [ROWS][n_groups] */
    float *p_const;   /* [ROWS][n_groups] */
    uint32_t dim4;    /* head_dim rounded up to 4 */
    uint32_t n_parts; /* threads that share a token's channels */
} workspace;

static __host__ __device__ __forceinline__ uint32_t up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

static __host__ __device__ __forceinline__ uint32_t block_threads(uint32_t head_dim) {
    return head_dim <= MIN_THREADS ? MIN_THREADS : up(head_dim, TILE);
}

static __host__ __device__ __forceinline__ float *allocate_from(float *memory, uint32_t *at, uint32_t n_floats) {
    float *part = memory != NULL ? memory + *at : NULL;
    *at += n_floats;
    return part;
}

/* Allocates the workspace's arrays from memory, or only counts if memory is NULL. Returns the number of floats. */
static __host__ __device__ __forceinline__ uint32_t lay_out_workspace(float *memory, uint32_t rows, uint32_t head_dim,
                                                                      bool has_pages, workspace *w) {
    uint32_t at = 0, groups = (head_dim + LQ_PAGE_GROUP - 1) / LQ_PAGE_GROUP;
    w->dim4 = up(head_dim, 4);
    w->n_parts = block_threads(head_dim) / TILE;
    w->q = allocate_from(memory, &at, rows * w->dim4);
    w->scores = allocate_from(memory, &at, w->n_parts * rows * TILE);
    w->max = allocate_from(memory, &at, rows);
    w->sum = allocate_from(memory, &at, rows);
    w->decay = allocate_from(memory, &at, rows);
    if (!has_pages) return at;
    w->middle = allocate_from(memory, &at, head_dim);
    w->step = allocate_from(memory, &at, head_dim);
    w->q_codes = (int *)(void *)allocate_from(memory, &at, rows * head_dim / 4);
    w->q_scale = allocate_from(memory, &at, rows * LQ_PAGE_MAX_TIERS);
    w->q_const = allocate_from(memory, &at, rows);
    w->p_codes = (int *)(void *)allocate_from(memory, &at, rows * groups * TILE / 4);
    w->p_scale = allocate_from(memory, &at, rows * groups);
    w->p_const = allocate_from(memory, &at, rows * groups);
    return at;
}

/* The query rows that a block has: n_rows from row0 on, of one KV head. */
typedef struct position {
    uint32_t kv_head;
    uint32_t slot;
    uint32_t row0;
    uint32_t n_rows;
} position;

LQ_DEVICE int to_code(float x, float inverse) {
    float code = rintf(x * inverse);
    code = code >= -127.0f ? code : -127.0f; /* also for a NaN */
    return (int)(code <= 127.0f ? code : 127.0f);
}

template <int ROWS>
LQ_DEVICE void load_queries(const attend_all &all, const attend_one &one, const position &at, const workspace &w) {
    const lq_attention &a = one.a;
    for (uint32_t i = threadIdx.x; i < ROWS * w.dim4; i += blockDim.x) {
        uint32_t r = i / w.dim4, d = i % w.dim4, row = at.row0 + r;
        size_t token = row / all.group, head = (size_t)at.kv_head * all.group + row % all.group;
        w.q[i] = r < at.n_rows && d < a.head_dim ? a.q[(token * a.n_heads + head) * a.head_dim + d] : 0.0f;
    }
    for (uint32_t r = threadIdx.x; r < ROWS; r += blockDim.x) {
        w.max[r] = -FLT_MAX;
        w.sum[r] = 0.0f;
    }
}

/* ---- scores of a page */

/* Returns a KV head's record of the page and its mask. */
LQ_DEVICE lq_page_record find_page(const attend_one &one, uint32_t kv_head, uint32_t index, uint64_t *mask) {
    const lq_kv_pages &pages = one.pages;
    uint32_t slot = (pages.first_page + index) % pages.n_slots;
    *mask = pages.masks[(size_t)kv_head * pages.n_slots + slot];
    return page_record(one.format, pages.frames[slot] + pages.block_offset, one.a.n_kv_heads, kv_head);
}

/* Reads the page's key scales, then multiplies the queries with them and rounds to 8-bit codes, one warp per row. */
template <int ROWS>
LQ_DEVICE void fold_queries(const attend_one &one, const position &at, const workspace &w, const lq_page_record &page) {
    const lq_page_format &f = one.format;
    const uint16_t *order = one.pages.order + (size_t)at.kv_head * f.head_dim;
    for (uint32_t index = threadIdx.x; index < f.head_dim; index += blockDim.x)
        page_key_scale(f, page.scales, page_tier(f, index), index, &w.middle[index], &w.step[index]);
    __syncthreads();
    uint32_t lane = threadIdx.x % LQ_WARP;
    for (uint32_t r = threadIdx.x / LQ_WARP; r < ROWS; r += blockDim.x / LQ_WARP) {
        const float *q = w.q + r * w.dim4;
        float constant = 0.0f;
        for (uint32_t tier = 0; tier < f.n_tiers; tier++) {
            uint32_t first = f.tiers[tier].first_channel, n = f.tiers[tier].n_channels;
            float largest = 0.0f, half_top = 0.5f * (float)((1u << f.tiers[tier].bits) - 1);
            for (uint32_t i = lane; i < n; i += LQ_WARP) {
                float x = q[order[first + i]], size = fabsf(x * w.step[first + i]);
                largest = size > largest ? size : largest;
                constant += x * w.middle[first + i];
            }
            largest = warp_max(largest);
            float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            int sum = 0;
            for (uint32_t i = 4 * lane; i < n; i += 4 * LQ_WARP) {
                int code[4];
                for (uint32_t k = 0; k < 4; k++) {
                    code[k] = to_code(q[order[first + i + k]] * w.step[first + i + k], inverse);
                    sum += code[k];
                }
                w.q_codes[r * (f.head_dim / 4) + (first + i) / 4] = pack4(code[0], code[1], code[2], code[3]);
            }
            constant -= largest * (1.0f / 127.0f) * half_top * (float)sum;
            if (lane == 0) w.q_scale[r * LQ_PAGE_MAX_TIERS + tier] = largest * (1.0f / 127.0f);
        }
        constant = warp_sum(constant);
        if (lane == 0) w.q_const[r] = constant;
    }
    __syncthreads();
}

/* Word, shift and mask of item i in the planes of n items (docs/format.md). They are the same for all streams. */
typedef struct field {
    uint32_t word, shift, mask;
    uint32_t high_word, high_shift, high_bit; /* second plane, of bit high_bit; 0: no second plane */
} field;

LQ_DEVICE field find_field(uint32_t n, uint32_t bits, uint32_t i) {
    uint32_t low = plane_bits(bits), lanes = n * low / 8, more = n / 8;
    field at = {i % lanes, low * (i / lanes), 0x01010101u * ((1u << low) - 1), 0, 0, 0};
    if (low != bits) at.high_word = lanes + i % more, at.high_shift = i / more, at.high_bit = low;
    return at;
}

LQ_DEVICE int field_codes(const field &at, const uint32_t *words) {
    uint32_t codes = words[at.word] >> at.shift & at.mask;
    if (at.high_bit != 0) codes |= (words[at.high_word] >> at.high_shift & 0x01010101u) << at.high_bit;
    return (int)codes;
}

/* A thread has one token and every n_parts-th group of four channels. */
template <int ROWS> LQ_DEVICE void score_page(const attend_one &one, const workspace &w, const lq_page_record &page) {
    const lq_page_format &f = one.format;
    uint32_t token = threadIdx.x % TILE, part = threadIdx.x / TILE;
    float scores[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) scores[r] = part == 0 ? w.q_const[r] : 0.0f;
    for (uint32_t tier = 0; tier < f.n_tiers; tier++) {
        const lq_page_tier &t = f.tiers[tier];
        const uint32_t *words = (const uint32_t *)(const void *)(page.k + t.offset);
        field at = find_field(LQ_PAGE_TOKENS, t.bits, token);
        int sums[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] = 0;
        for (uint32_t i = part; i < t.n_channels / 4; i += w.n_parts) {
            int codes = field_codes(at, words + i * 8 * t.bits);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                sums[r] = dot4(codes, w.q_codes[r * (f.head_dim / 4) + t.first_channel / 4 + i], sums[r]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) scores[r] += w.q_scale[r * LQ_PAGE_MAX_TIERS + tier] * (float)sums[r];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) w.scores[(part * ROWS + r) * TILE + token] = scores[r];
}

/* ---- scores of cells */

template <int ROWS>
LQ_DEVICE void score_cells(const attend_one &one, const workspace &w, const lq_attn_run &run, const uint8_t *cells,
                           uint32_t n) {
    uint32_t token = threadIdx.x % TILE, part = threadIdx.x / TILE, head_dim = one.a.head_dim;
    bool wide = run.format == LQ_CELL_F16 && head_dim % 4 == 0;
    float scores[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) scores[r] = 0.0f;
    if (token < n) {
        const uint8_t *cell = cells + token * cell_bytes(run.format, head_dim);
        for (uint32_t d = 4 * part; d < head_dim; d += 4 * w.n_parts) {
            float k[4];
            cell_values4(run.format, cell, d, head_dim, wide, k);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float *q = w.q + r * w.dim4 + d;
                scores[r] += q[0] * k[0] + q[1] * k[1] + q[2] * k[2] + q[3] * k[3];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) w.scores[(part * ROWS + r) * TILE + token] = scores[r];
}

/* ---- online softmax, one warp per row */

/* Bit t of the result: the row sees token t of the tile. */
LQ_DEVICE uint64_t seen_tokens(const attend_all &all, const lq_attention &a, const lq_attn_run &run,
                               const run_tile &tile, uint32_t row) {
    uint64_t all_n = tile.n == TILE ? ~0ull : (1ull << tile.n) - 1;
    if (run.history) return all_n;
    uint32_t query = a.pos0 + row / all.group, cell = run.pos0 + tile.first_cell, end = tile.n, first = 0;
    if (cell + end > query + 1) end = query + 1 > cell ? query + 1 - cell : 0;
    if (a.window != 0 && query >= a.window) {
        uint32_t oldest = query - a.window + 1;
        if (oldest > cell) first = oldest - cell < tile.n ? oldest - cell : tile.n;
    }
    if (first >= end) return 0;
    uint64_t below_end = end == TILE ? ~0ull : (1ull << end) - 1;
    return below_end & ~((1ull << first) - 1); /* first < end <= 64 */
}

/* True if no row of the block sees any of the tile's cells. */
LQ_DEVICE bool out_of_sight(const attend_all &all, const lq_attention &a, const position &at, const run_tile &tile) {
    const lq_attn_run &run = a.runs[tile.run];
    if (run.history) return false;
    uint32_t first = a.pos0 + at.row0 / all.group, last = a.pos0 + (at.row0 + at.n_rows - 1) / all.group;
    uint32_t cell = run.pos0 + tile.first_cell;
    if (cell > last) return true;
    return a.window != 0 && first >= a.window && cell + tile.n - 1 <= first - a.window;
}

/* Online softmax step of row r: its scores become exp(score - max). p: those of tokens lane and lane + 32. */
template <int ROWS>
LQ_DEVICE void softmax_row(const lq_attention &a, const workspace &w, uint32_t r, uint64_t seen, float p[2]) {
    uint32_t lane = threadIdx.x % LQ_WARP;
    float before = w.max[r], top = before, total;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t token = lane + i * LQ_WARP;
        float score = 0.0f;
        for (uint32_t part = 0; part < w.n_parts; part++) score += w.scores[(part * ROWS + r) * TILE + token];
        score *= a.scale;
        if (a.softcap > 0.0f) score = a.softcap * tanhf(score / a.softcap);
        p[i] = (seen >> token & 1) != 0 ? score : -INFINITY;
        top = p[i] > top ? p[i] : top;
    }
    top = warp_max(top);
    for (uint32_t i = 0; i < 2; i++) p[i] = expf(p[i] - top);
    total = warp_sum(p[0] + p[1]);
    __syncwarp(); /* until every lane has read max[r] */
    for (uint32_t i = 0; i < 2; i++) w.scores[r * TILE + lane + i * LQ_WARP] = p[i];
    if (lane != 0) return;
    float decay = before == top ? 1.0f : expf(before - top);
    w.max[r] = top;
    w.sum[r] = w.sum[r] * decay + total;
    w.decay[r] = decay;
}

template <int ROWS>
LQ_DEVICE void softmax_page(const attend_one &one, const position &at, const workspace &w, const lq_page_record &page,
                            uint64_t mask) {
    const lq_page_format &f = one.format;
    uint32_t lane = threadIdx.x % LQ_WARP;
    float half_top = 0.5f * (float)((1u << f.v_bits) - 1);
    for (uint32_t r = threadIdx.x / LQ_WARP; r < ROWS; r += blockDim.x / LQ_WARP) {
        float p[2];
        softmax_row<ROWS>(one.a, w, r, r < at.n_rows ? ~mask : 0, p);
        for (uint32_t g = 0; g < f.n_groups; g++) {
            float folded[2], constant = 0.0f, largest = 0.0f;
            for (uint32_t i = 0; i < 2; i++) {
                float middle, step;
                page_value_scale(f, page.scales, g, lane + i * LQ_WARP, &middle, &step);
                folded[i] = p[i] * step;
                constant += p[i] * middle;
                largest = fabsf(folded[i]) > largest ? fabsf(folded[i]) : largest;
            }
            largest = warp_max(largest);
            float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            int code[2] = {to_code(folded[0], inverse), to_code(folded[1], inverse)};
            int8_t *codes = (int8_t *)(void *)(w.p_codes + (r * f.n_groups + g) * (TILE / 4));
            for (uint32_t i = 0; i < 2; i++) codes[lane + i * LQ_WARP] = (int8_t)code[i];
            constant = warp_sum(constant - largest * (1.0f / 127.0f) * half_top * (float)(code[0] + code[1]));
            if (lane != 0) continue;
            w.p_scale[r * f.n_groups + g] = largest * (1.0f / 127.0f);
            w.p_const[r * f.n_groups + g] = constant;
        }
    }
}

template <int ROWS>
LQ_DEVICE void softmax_cells(const attend_all &all, const attend_one &one, const position &at, const workspace &w,
                             const run_tile &tile, uint32_t tile_index) {
    uint32_t lane = threadIdx.x % LQ_WARP;
    const lq_attn_run &run = one.a.runs[tile.run];
    for (uint32_t r = threadIdx.x / LQ_WARP; r < ROWS; r += blockDim.x / LQ_WARP) {
        float p[2];
        uint64_t seen = r < at.n_rows ? seen_tokens(all, one.a, run, tile, at.row0 + r) : 0;
        softmax_row<ROWS>(one.a, w, r, seen, p);
        if (all.kept == NULL || one.a.accumulated == NULL || r >= at.n_rows) continue;
        size_t row = (size_t)at.slot * all.block_rows + r;
        for (uint32_t i = 0; i < 2; i++)
            if (lane + i * LQ_WARP < tile.n) all.kept[row * all.kept_stride + tile.column + lane + i * LQ_WARP] = p[i];
        __syncwarp();
        if (lane == 0) all.tops[row * all.n_tops + tile_index] = seen != 0 ? w.max[r] : -INFINITY;
    }
}

/* ---- values: a thread has one channel and, of the tile's tokens, all (n_halves 1) or one half (n_halves 2) */

typedef struct channel {
    uint32_t index; /* >= head_dim: the thread has no channel */
    uint32_t half;
    uint32_t n_halves;
} channel;

LQ_DEVICE channel own_channel(uint32_t head_dim) {
    uint32_t width = up(head_dim, TILE), n_halves = blockDim.x / width;
    channel c = {threadIdx.x % width, threadIdx.x / width, n_halves};
    return c;
}

template <int ROWS>
LQ_DEVICE void add_page_values(const attend_one &one, const workspace &w, const lq_page_record &page, const channel &c,
                               float acc[ROWS]) {
    const lq_page_format &f = one.format;
    if (c.index >= f.head_dim) return;
    uint32_t g = c.index / LQ_PAGE_GROUP, n = page_group_len(f, g), per_half = TILE / 4 / c.n_halves;
    const uint32_t *words = (const uint32_t *)(const void *)(page.v + page_group_offset(f, g));
    field at = find_field(n, f.v_bits, c.index % LQ_PAGE_GROUP);
    int sums[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sums[r] = 0;
    for (uint32_t i = c.half * per_half; i < (c.half + 1) * per_half; i++) {
        int codes = field_codes(at, words + i * (n * f.v_bits / 8));
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] = dot4(codes, w.p_codes[(r * f.n_groups + g) * (TILE / 4) + i], sums[r]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float constant = c.half == 0 ? w.p_const[r * f.n_groups + g] : 0.0f;
        acc[r] = acc[r] * w.decay[r] + (w.p_scale[r * f.n_groups + g] * (float)sums[r] + constant);
    }
}

template <int ROWS>
LQ_DEVICE void add_cell_values(const attend_one &one, const workspace &w, const lq_attn_run &run, const uint8_t *cells,
                               uint32_t n, const channel &c, float acc[ROWS]) {
    uint32_t head_dim = one.a.head_dim, per_half = TILE / c.n_halves, end = (c.half + 1) * per_half;
    size_t bytes = cell_bytes(run.format, head_dim);
    if (c.index >= head_dim) return;
#pragma unroll
    for (int r = 0; r < ROWS; r++) acc[r] *= w.decay[r];
    if (end > n) end = n;
    for (uint32_t token = c.half * per_half; token < end; token++) {
        float v = cell_value(run.format, cells + token * bytes, c.index);
#pragma unroll
        for (int r = 0; r < ROWS; r++) acc[r] += w.scores[r * TILE + token] * v;
    }
}

#endif
