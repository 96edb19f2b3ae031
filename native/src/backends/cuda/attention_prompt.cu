/* attention_prompt.cu - attention of the many query rows of a prompt by tensor cores (attend_prompt.cuh), on devices of
 * compute capability 7.5 and newer, for heads of up to 256 channels, a multiple of 16. attention.cu does all other
 * attention; its kernels also merge the shares and sum up the accumulated attention of this one. */
#include "backends/cuda/attend_prompt.cuh"

template <int STEPS, int PARTS>
LQ_DEVICE void prompt_page(const attend_one &one, const position &at, prompt_tile<STEPS, PARTS> *s, uint32_t index,
                           prompt_rows<STEPS> *rows) {
    uint64_t mask;
    lq_page_record page = find_page(one, at.kv_head, index, &mask);
    if (mask == ~0ull) return;
    load_page_scales(s, one.format, page);
    __syncthreads();
    load_page_keys(s, one.format, page, one.pages.order + (size_t)at.kv_head * one.format.head_dim);
    if (PARTS == 1) load_page_values(s, one.format, page);
    __syncthreads();
    score_tile(s, one.a, rows);
    add_parts(s, rows);
    scale_scores(one.a, rows);
    if (PARTS > 1) load_page_values(s, one.format, page);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) softmax_tile<STEPS>(rows, i, ~mask);
    if (PARTS > 1) __syncthreads();
    add_values(s, one.a.head_dim, rows);
    __syncthreads();
}

/* Stores the lane's exp(score - max) of its row i, and the tile's max, for accumulated attention. */
template <int STEPS>
LQ_DEVICE void keep(const attend_all &all, const position &at, const run_tile &tile, uint32_t tile_index, uint64_t seen,
                    uint32_t i, const prompt_rows<STEPS> &rows) {
    uint32_t r = row_in_block(i), t = threadIdx.x % 4;
    if (r >= at.n_rows) return;
    size_t row = (size_t)at.slot * all.block_rows + r;
    float *kept = all.kept + row * all.kept_stride + tile.column;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (uint32_t k = 0; k < 2; k++)
            if (8 * n + 2 * t + k < tile.n) kept[8 * n + 2 * t + k] = rows.p[n][2 * i + k];
    if (t == 0) all.tops[row * all.n_tops + tile_index] = seen != 0 ? rows.max[i] : -INFINITY;
}

template <int STEPS, int PARTS>
LQ_DEVICE void prompt_cells(const attend_all &all, const attend_one &one, const position &at,
                            prompt_tile<STEPS, PARTS> *s, uint32_t tile_index, prompt_rows<STEPS> *rows) {
    run_tile tile = find_tile(one.a, tile_index);
    const lq_attn_run &run = one.a.runs[tile.run];
    bool keeps = all.kept != NULL && one.a.accumulated != NULL;
    if (out_of_sight(all, one.a, at, tile)) {
        if (keeps && threadIdx.x < at.n_rows)
            all.tops[((size_t)at.slot * all.block_rows + threadIdx.x) * all.n_tops + tile_index] = -INFINITY;
        return;
    }
    size_t offset = at.kv_head * run.head_bytes + tile.first_cell * cell_bytes(run.format, one.a.head_dim);
    load_cell_keys(s, run, run.k + offset, tile.n, one.a.head_dim);
    if (PARTS == 1) load_cell_values(s, run, run.v + offset, tile.n, one.a.head_dim);
    __syncthreads();
    score_tile(s, one.a, rows);
    add_parts(s, rows);
    scale_scores(one.a, rows);
    if (PARTS > 1) load_cell_values(s, run, run.v + offset, tile.n, one.a.head_dim);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t seen = seen_tokens(all, one.a, run, tile, at.row0 + lane_row(at, i));
        softmax_tile<STEPS>(rows, i, seen);
        if (keeps && s->part() == 0) keep<STEPS>(all, at, tile, tile_index, seen, i, *rows);
    }
    if (PARTS > 1) __syncthreads();
    add_values(s, one.a.head_dim, rows);
    __syncthreads();
}

/* Writes the lane's row i: its final output, or a share's partial result. */
template <int STEPS, int PARTS>
LQ_DEVICE void write_row(const attend_all &all, const attend_one &one, const position &at, uint32_t share, uint32_t i,
                         const prompt_rows<STEPS> &rows) {
    typedef prompt_tile<STEPS, PARTS> tile;
    uint32_t r = row_in_block(i), t = threadIdx.x % 4, first = 16 * STEPS * tile::part();
    float sum = quad_sum(rows.sum[i]);
    if (r >= at.n_rows) return;
    float *partial = one.n_shares > 1 ? partial_at(all, at.slot, share) : NULL, *to, *pair = NULL;
    if (partial != NULL) {
        to = partial + 2 * PROMPT_ROWS + (size_t)r * one.a.head_dim;
        pair = partial + 2 * r;
    } else {
        to = output_row(all, one.a, at.kv_head, at.row0 + r);
        if (all.kept != NULL) pair = all.finals + ((size_t)at.slot * PROMPT_ROWS + r) * 2;
    }
    float factor = partial != NULL ? 1.0f : 1.0f / sum;
#pragma unroll
    for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
        for (uint32_t k = 0; k < 2; k++)
            if ((uint32_t)n < 2 * tile::n_steps(one.a.head_dim))
                to[first + 8 * n + 2 * t + k] = rows.out[n][2 * i + k] * factor;
    if (pair == NULL || t != 0 || first != 0) return;
    pair[0] = rows.max[i];
    pair[1] = sum;
}

/* Grid: blocks of rows x KV heads, shares. */
template <int STEPS, int PARTS>
static __global__ void __launch_bounds__(PROMPT_GROUPS *PARTS *LQ_WARP) attend_prompt(attend_all all) {
    __shared__ prompt_tile<STEPS, PARTS> tile_memory;
    if (!fmt_f16::on_tensor_cores) return;
    const attend_one &one = all.each[0];
    uint32_t share = blockIdx.y, block = blockIdx.x % all.n_blocks;
    if (share >= one.n_shares) return;
    position at = {blockIdx.x / all.n_blocks, 0, (all.first_block + block) * PROMPT_ROWS, 0};
    at.slot = slot_of(all, 0, at.kv_head, block);
    at.n_rows = all.n_rows - at.row0 < PROMPT_ROWS ? all.n_rows - at.row0 : PROMPT_ROWS;
    prompt_rows<STEPS> rows;
    load_rows<STEPS, PARTS>(all, one.a, at, &rows);
    uint32_t first = (uint32_t)((uint64_t)one.n_tiles * share / one.n_shares);
    uint32_t end = (uint32_t)((uint64_t)one.n_tiles * (share + 1) / one.n_shares);
    for (uint32_t tile = first; tile < end; tile++) {
        if (tile < one.n_pages)
            prompt_page(one, at, &tile_memory, tile, &rows);
        else
            prompt_cells(all, one, at, &tile_memory, tile - one.n_pages, &rows);
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) write_row<STEPS, PARTS>(all, one, at, share, i, rows);
}

template <int STEPS, int PARTS> static void start([[maybe_unused]] cudaStream_t stream, const attend_all *all) {
    dim3 grid(all->n_blocks * all->each[0].a.n_kv_heads, all->most_shares);
    LQ_LAUNCH((attend_prompt<STEPS, PARTS>), grid, PROMPT_GROUPS * PARTS * LQ_WARP, 0, stream, *all);
}

bool lq_cuda_takes_prompt(const lq_backend_cuda *cuda, uint32_t n_tokens, uint32_t n_rows, uint32_t head_dim) {
    return cuda->multiplies_f16 && n_tokens > 1 && n_rows > MAX_ROWS && head_dim % 16 == 0 && head_dim <= 256;
}

void lq_cuda_attend_prompt(lq_backend_cuda *cuda, const attend_all *all) {
    uint32_t head_dim = all->each[0].a.head_dim;
    if (head_dim <= 64)
        start<4, 1>(cuda->stream, all);
    else if (head_dim <= 128)
        start<8, 1>(cuda->stream, all);
    else
        start<8, 2>(cuda->stream, all);
    lq_cuda_check(cuda, "attention of a prompt");
}
