/* attention.cu - causal attention with one online softmax over packed pages and runs of cells. Nothing is decoded to
 * global memory.
 *
 * A block of threads has up to 16 query rows of one KV head (so that a key is read once for all query heads of the
 * group) and a share of the tiles. A second kernel merges the shares, so that a single query fills the device, too.
 * Over pages the products are of integers: the key scales are folded into the query, the value scales into the
 * probabilities, and both are rounded to 8 bits with one scale per tier or group of channels, as in the CPU's vector
 * code. The integer products count codes from 0, so half the largest code times the rounded weights is subtracted, and
 * the middle of the levels is added in float, with unrounded weights: so a rounding error is multiplied only with a
 * code's distance from the middle.
 *
 * Accumulated attention: a row keeps exp(score - maximum so far) for each cell of the runs, and that maximum for each
 * tile. They become probabilities once the softmax has seen everything. Sums run in a fixed order, so that the same
 * input gives the same bits. */
#include "backends/cuda/attend_tile.cuh"

#define USUAL_THREADS 512
#define MIN_SHARE_TILES 4
#define BLOCKS_PER_MULTIPROCESSOR 8
#define KEPT_FLOATS ((uint64_t)8 << 20) /* most floats that a wave keeps for accumulated attention */

/* ---- the kernel */

template <int ROWS>
LQ_DEVICE void attend_page(const attend_one &one, const position &at, const workspace &w, uint32_t index,
                           const channel &c, float acc[ROWS]) {
    uint64_t mask;
    lq_page_record page = find_page(one, at.kv_head, index, &mask);
    if (mask == ~0ull) return;
    fold_queries<ROWS>(one, at, w, page);
    score_page<ROWS>(one, w, page);
    __syncthreads();
    softmax_page<ROWS>(one, at, w, page, mask);
    __syncthreads();
    /* no barrier here: what it reads is written again only behind a barrier of the next tile */
    add_page_values<ROWS>(one, w, page, c, acc);
}

template <int ROWS>
LQ_DEVICE void attend_cells(const attend_all &all, const attend_one &one, const position &at, const workspace &w,
                            uint32_t tile_index, const channel &c, float acc[ROWS]) {
    run_tile tile = find_tile(one.a, tile_index);
    const lq_attn_run &run = one.a.runs[tile.run];
    if (out_of_sight(all, one.a, at, tile)) {
        if (all.kept != NULL && one.a.accumulated != NULL && threadIdx.x < at.n_rows)
            all.tops[((size_t)at.slot * all.block_rows + threadIdx.x) * all.n_tops + tile_index] = -INFINITY;
        return;
    }
    size_t offset = at.kv_head * run.head_bytes + tile.first_cell * cell_bytes(run.format, one.a.head_dim);
    score_cells<ROWS>(one, w, run, run.k + offset, tile.n);
    __syncthreads();
    softmax_cells<ROWS>(all, one, at, w, tile, tile_index);
    __syncthreads();
    add_cell_values<ROWS>(one, w, run, run.v + offset, tile.n, c, acc);
    __syncthreads();
}

/* Adds the sums of half 1 to those of half 0, in the threads of half 0. */
template <int ROWS>
LQ_DEVICE void join_halves(const workspace &w, const channel &c, uint32_t head_dim, float acc[ROWS]) {
    if (c.n_halves == 1) return; /* with two halves a head has at most TILE channels: scores has room for them */
    if (c.half == 1)
        for (int r = 0; r < ROWS; r++) w.scores[r * TILE + c.index] = acc[r];
    __syncthreads();
    if (c.half == 0 && c.index < head_dim)
        for (int r = 0; r < ROWS; r++) acc[r] += w.scores[r * TILE + c.index];
}

/* Grid: blocks of rows x KV heads, shares, attentions. THREADS: most threads of a block, which bounds registers. */
template <int ROWS, int THREADS> static __global__ void __launch_bounds__(THREADS) attend_rows(attend_all all) {
    LQ_SHARED(float, memory);
    const attend_one &one = all.each[blockIdx.z];
    uint32_t head_dim = one.a.head_dim, share = blockIdx.y, block = blockIdx.x % all.n_blocks;
    if (share >= one.n_shares) return;
    workspace w = {};
    lay_out_workspace(memory, ROWS, head_dim, one.n_pages != 0, &w);
    position at = {blockIdx.x / all.n_blocks, 0, (all.first_block + block) * ROWS, 0};
    at.slot = slot_of(all, blockIdx.z, at.kv_head, block);
    at.n_rows = all.n_rows - at.row0 < ROWS ? all.n_rows - at.row0 : ROWS;
    channel c = own_channel(head_dim);
    float acc[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) acc[r] = 0.0f;
    load_queries<ROWS>(all, one, at, w);
    __syncthreads();
    uint32_t first = (uint32_t)((uint64_t)one.n_tiles * share / one.n_shares);
    uint32_t end = (uint32_t)((uint64_t)one.n_tiles * (share + 1) / one.n_shares);
    for (uint32_t tile = first; tile < end; tile++) {
        if (tile < one.n_pages)
            attend_page<ROWS>(one, at, w, tile, c, acc);
        else
            attend_cells<ROWS>(all, one, at, w, tile - one.n_pages, c, acc);
    }
    join_halves<ROWS>(w, c, head_dim, acc);
    float *partial = one.n_shares > 1 ? partial_at(all, at.slot, share) : NULL;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if ((uint32_t)r >= at.n_rows) continue;
        if (c.half == 0 && c.index < head_dim) {
            if (partial != NULL)
                partial[2 * ROWS + (size_t)r * head_dim + c.index] = acc[r];
            else
                output_row(all, one.a, at.kv_head, at.row0 + r)[c.index] = acc[r] / w.sum[r];
        }
        if (threadIdx.x != 0) continue;
        float *pair = partial != NULL ? partial + 2 * r : all.finals + ((size_t)at.slot * ROWS + r) * 2;
        if (partial == NULL && all.kept == NULL) continue;
        pair[0] = w.max[r];
        pair[1] = w.sum[r];
    }
}

/* Merges the shares of each row. Grid: blocks of rows x KV heads, rows, attentions. */
static __global__ void merge_shares(attend_all all) {
    const attend_one &one = all.each[blockIdx.z];
    uint32_t head_dim = one.a.head_dim, block = blockIdx.x % all.n_blocks, kv_head = blockIdx.x / all.n_blocks;
    uint32_t slot = slot_of(all, blockIdx.z, kv_head, block), r = blockIdx.y;
    uint32_t row = (all.first_block + block) * all.block_rows + r;
    if (one.n_shares == 1 || row >= all.n_rows) return;
    float top = -FLT_MAX, sum = 0.0f;
    for (uint32_t share = 0; share < one.n_shares; share++) {
        const float *pair = partial_at(all, slot, share) + 2 * r;
        top = pair[0] > top ? pair[0] : top;
    }
    for (uint32_t share = 0; share < one.n_shares; share++) {
        const float *pair = partial_at(all, slot, share) + 2 * r;
        sum += pair[1] * expf(pair[0] - top);
    }
    float *out = output_row(all, one.a, kv_head, row);
    for (uint32_t d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float value = 0.0f;
        for (uint32_t share = 0; share < one.n_shares; share++) {
            const float *partial = partial_at(all, slot, share);
            value += partial[2 * all.block_rows + (size_t)r * head_dim + d] * expf(partial[2 * r] - top);
        }
        out[d] = value / sum;
    }
    if (threadIdx.x != 0 || all.kept == NULL) return;
    float *final = all.finals + ((size_t)slot * all.block_rows + r) * 2;
    final[0] = top;
    final[1] = sum;
}

/* Sums a wave's probabilities by column. Grid: columns, KV heads, attentions. */
static __global__ void sum_accumulated(attend_all all) {
    const attend_one &one = all.each[blockIdx.z];
    uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, kv_head = blockIdx.y, tile = 0, before = 0;
    if (one.a.accumulated == NULL || column >= one.n_columns) return;
    for (uint32_t run = 0; run < one.a.n_runs; run++) {
        uint32_t n = one.a.runs[run].n_cells;
        if (column < before + n) {
            tile += (column - before) / TILE;
            break;
        }
        before += n;
        tile += divide_up(n, TILE);
    }
    float sum = 0.0f;
    for (uint32_t block = 0; block < all.n_blocks; block++) {
        for (uint32_t r = 0; r < all.block_rows; r++) {
            if ((all.first_block + block) * all.block_rows + r >= all.n_rows) break;
            size_t row = (size_t)slot_of(all, blockIdx.z, kv_head, block) * all.block_rows + r;
            float top = all.tops[row * all.n_tops + tile];
            if (top == -INFINITY) continue;
            sum +=
                all.kept[row * all.kept_stride + column] * (expf(top - all.finals[2 * row]) / all.finals[2 * row + 1]);
        }
    }
    float *out = one.a.accumulated + (size_t)kv_head * one.n_columns + column;
    *out = all.first_block == 0 ? sum : *out + sum;
}

/* ---- plans */

static uint32_t choose_rows(uint32_t n_rows, uint32_t head_dim) {
    uint32_t most = head_dim <= 256 ? MAX_ROWS : head_dim <= 512 ? 8 : 4;
    uint32_t rows = n_rows <= 1 ? 1 : n_rows <= 4 ? 4 : n_rows <= 8 ? 8 : MAX_ROWS;
    return rows < most ? rows : most;
}

static uint64_t wanted_blocks(const lq_backend_cuda *cuda) {
    return (uint64_t)BLOCKS_PER_MULTIPROCESSOR * cuda->n_multiprocessors;
}

static uint64_t kept_row(uint64_t n_columns) { return n_columns + n_columns / TILE + LQ_ATTN_MAX_RUNS + 2; }

uint64_t lq_cuda_attention_scratch(const lq_backend_cuda *cuda, const lq_scratch_spec *spec) {
    uint64_t at_once = spec->n_together < 2 ? 1 : spec->n_together < AT_ONCE ? spec->n_together : AT_ONCE;
    uint64_t group = spec->n_heads / spec->n_kv_heads, lone_rows = (group + MAX_ROWS - 1) / MAX_ROWS * MAX_ROWS;
    uint64_t head_rows = (spec->n_tokens * group + PROMPT_ROWS - 1) / PROMPT_ROWS * PROMPT_ROWS;
    if (head_rows < at_once * lone_rows) head_rows = at_once * lone_rows;
    uint64_t floats = (wanted_blocks(cuda) + 1) * MAX_ROWS * (spec->head_dim + 2);
    if (spec->n_accumulated != 0) {
        uint64_t row = kept_row(spec->n_accumulated), all = spec->n_kv_heads * head_rows * row;
        uint64_t together = at_once * MAX_ROWS > PROMPT_ROWS ? at_once * MAX_ROWS : PROMPT_ROWS;
        uint64_t least = together * spec->n_kv_heads * row, most = all < KEPT_FLOATS ? all : KEPT_FLOATS;
        floats += least > most ? least : most;
    }
    return floats * sizeof(float) + 4 * 256;
}

static void fill_one(attend_one *one, const lq_attention *args, uint64_t most_shares) {
    one->a = *args;
    one->n_pages = 0;
    one->n_columns = 0;
    if (args->pages != NULL) {
        one->pages = *args->pages;
        one->format = *args->pages->format;
        one->n_pages = args->pages->end_page - args->pages->first_page;
    }
    one->n_tiles = one->n_pages;
    for (uint32_t i = 0; i < args->n_runs; i++) {
        one->n_tiles += lq_divide_up(args->runs[i].n_cells, TILE);
        one->n_columns += args->runs[i].n_cells;
    }
    uint64_t useful = lq_divide_up(one->n_tiles, MIN_SHARE_TILES);
    one->n_shares = (uint32_t)(useful < most_shares ? useful : most_shares);
    if (one->n_shares == 0) one->n_shares = 1;
}

static float *allocate_scratch(uint8_t **at, uint64_t n_floats) {
    float *memory = (float *)(void *)*at;
    *at += (n_floats * sizeof(float) + 255) & ~255ull;
    return memory;
}

static void launch(lq_backend_cuda *cuda, const attend_all *all, bool has_pages) {
    const lq_attention *a = &all->each[0].a;
    uint32_t threads = block_threads(a->head_dim);
    workspace counted = {};
    size_t bytes = lay_out_workspace(NULL, all->block_rows, a->head_dim, has_pages, &counted) * sizeof(float);
    dim3 grid(all->n_blocks * a->n_kv_heads, all->most_shares, all->n_args);
    if (all->block_rows == PROMPT_ROWS) {
        lq_cuda_attend_prompt(cuda, all);
    } else if (threads > USUAL_THREADS) { /* heads of more than 512 values */
        if (all->block_rows == 1)
            LQ_LAUNCH((attend_rows<1, 1024>), grid, threads, bytes, cuda->stream, *all);
        else
            LQ_LAUNCH((attend_rows<4, 1024>), grid, threads, bytes, cuda->stream, *all);
    } else if (all->block_rows == 1) {
        LQ_LAUNCH((attend_rows<1, USUAL_THREADS>), grid, threads, bytes, cuda->stream, *all);
    } else if (all->block_rows == 4) {
        LQ_LAUNCH((attend_rows<4, USUAL_THREADS>), grid, threads, bytes, cuda->stream, *all);
    } else if (all->block_rows == 8) {
        LQ_LAUNCH((attend_rows<8, USUAL_THREADS>), grid, threads, bytes, cuda->stream, *all);
    } else {
        LQ_LAUNCH((attend_rows<MAX_ROWS, USUAL_THREADS>), grid, threads, bytes, cuda->stream, *all);
    }
    if (all->most_shares > 1) {
        dim3 rows(all->n_blocks * a->n_kv_heads, all->block_rows, all->n_args);
        LQ_LAUNCH(merge_shares, rows, 128, 0, cuda->stream, *all);
    }
    if (all->kept != NULL) {
        dim3 columns(lq_divide_up(all->kept_stride, 128), a->n_kv_heads, all->n_args);
        LQ_LAUNCH(sum_accumulated, columns, 128, 0, cuda->stream, *all);
    }
    lq_cuda_check(cuda, "attention");
}

/* Up to AT_ONCE attentions with the same heads and number of tokens. */
static void attend_some(lq_backend_cuda *cuda, const lq_attention *args, uint32_t n_args) {
    attend_all all = {};
    bool accumulated = false, has_pages = false;
    uint32_t n_heads = args->n_kv_heads;
    all.n_args = n_args;
    all.group = args->n_heads / n_heads;
    all.n_rows = args->n_tokens * all.group;
    bool prompt = n_args == 1 && lq_cuda_takes_prompt(cuda, args->n_tokens, all.n_rows, args->head_dim);
    all.block_rows = prompt ? PROMPT_ROWS : choose_rows(all.n_rows, args->head_dim);
    uint32_t n_blocks = lq_divide_up(all.n_rows, all.block_rows);
    /* blocks of PROMPT_ROWS are fewer, so that the rows of partial results fit the planned scratch */
    uint64_t wanted = prompt ? wanted_blocks(cuda) * MAX_ROWS / PROMPT_ROWS : wanted_blocks(cuda);
    uint64_t most_shares = wanted / ((uint64_t)n_blocks * n_heads * n_args);
    if (most_shares > 65535) most_shares = 65535;
    for (uint32_t i = 0; i < n_args; i++) {
        attend_one *one = &all.each[i];
        fill_one(one, &args[i], most_shares);
        if (one->n_shares > all.most_shares) all.most_shares = one->n_shares;
        has_pages = has_pages || one->n_pages != 0;
        if (args[i].accumulated == NULL) continue;
        accumulated = true;
        if (one->n_columns > all.kept_stride) all.kept_stride = one->n_columns;
        if (one->n_tiles - one->n_pages > all.n_tops) all.n_tops = one->n_tiles - one->n_pages;
    }
    uint64_t block_floats = (uint64_t)n_args * n_heads * all.block_rows * (all.kept_stride + all.n_tops + 2);
    uint32_t wave = n_blocks;
    if (accumulated && n_blocks * block_floats > KEPT_FLOATS)
        wave = (uint32_t)(KEPT_FLOATS / block_floats > 0 ? KEPT_FLOATS / block_floats : 1);
    uint8_t *at = cuda->scratch;
    uint64_t slot_rows = (uint64_t)n_args * n_heads * wave * all.block_rows;
    all.partials = allocate_scratch(&at, all.most_shares > 1 ? slot_rows * all.most_shares * (args->head_dim + 2) : 0);
    if (accumulated) {
        all.finals = allocate_scratch(&at, slot_rows * 2);
        all.tops = allocate_scratch(&at, slot_rows * all.n_tops);
        all.kept = allocate_scratch(&at, slot_rows * all.kept_stride);
    }
    for (all.first_block = 0; all.first_block < n_blocks; all.first_block += wave) {
        all.n_blocks = n_blocks - all.first_block < wave ? n_blocks - all.first_block : wave;
        launch(cuda, &all, has_pages);
    }
}

void lq_cuda_attention(lq_backend *backend, const lq_attention *args, uint32_t n_args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    for (uint32_t done = 0; done < n_args; done += AT_ONCE)
        attend_some(cuda, args + done, n_args - done < AT_ONCE ? n_args - done : AT_ONCE);
}
