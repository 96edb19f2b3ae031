/* kv_cells.cu - cells and what lies beside pages: rotating, storing, moving, masks, attention received. */
#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/cells.cuh"

/* ---- rotation: a block is a row, in shared memory; lq_hadamard, bit for bit */

#define MAX_ROW 1024

/* Where the power-of-two block of value i starts, and how long it is. */
LQ_DEVICE void rotation_block(uint32_t head_dim, uint32_t i, uint32_t *start, uint32_t *len) {
    uint32_t whole = head_dim / LQ_PAGE_GROUP * LQ_PAGE_GROUP;
    *start = 0;
    *len = head_dim;
    if ((head_dim & (head_dim - 1)) == 0) return;
    *len = LQ_PAGE_GROUP;
    if (i < whole) {
        *start = i / LQ_PAGE_GROUP * LQ_PAGE_GROUP;
        return;
    }
    *start = whole;
    for (*len = LQ_PAGE_GROUP / 2; *len > 1; *len /= 2) {
        if ((head_dim & *len) == 0) continue;
        if (i < *start + *len) return;
        *start += *len;
    }
}

static __global__ void rotate_rows(float *x, uint32_t head_dim) {
    __shared__ float row[MAX_ROW];
    float *at = x + (size_t)blockIdx.x * head_dim;
    for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) row[i] = at[i];
    __syncthreads();
    for (uint32_t half = 1; half < head_dim; half *= 2) {
        for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) {
            uint32_t start, len;
            rotation_block(head_dim, i, &start, &len);
            if (half >= len || ((i - start) & half) != 0) continue;
            float a = row[i], b = row[i + half];
            row[i] = a + b;
            row[i + half] = a - b;
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) {
        uint32_t start, len;
        rotation_block(head_dim, i, &start, &len);
        at[i] = row[i] * (1.0f / sqrtf((float)len));
    }
}

void lq_cuda_hadamard(lq_backend *backend, float *x, uint32_t n_rows, uint32_t head_dim) {
    if (n_rows == 0) return;
    uint32_t n_threads = head_dim < 64 ? 32 : head_dim < 256 ? head_dim / 2 / 32 * 32 : 128;
    LQ_LAUNCH(rotate_rows, n_rows, n_threads, 0, lq_cuda(backend)->stream, x, head_dim);
    lq_cuda_check(lq_cuda(backend), "hadamard");
}

/* ---- storing a chunk: a thread is a block of 32 values */

static __global__ void store_blocks(lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                                    uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0,
                                    uint32_t n_cells) {
    uint32_t n_blocks = divide_up(head_dim, LQ_CELL_BLOCK);
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)n_tokens * n_kv_heads * n_blocks) return;
    uint32_t block = (uint32_t)(i % n_blocks), head = (uint32_t)(i / n_blocks % n_kv_heads);
    uint32_t token = (uint32_t)(i / n_blocks / n_kv_heads), at = block * LQ_CELL_BLOCK;
    uint64_t cell = ((uint64_t)cell0 + token) % n_cells;
    uint32_t n = head_dim - at < LQ_CELL_BLOCK ? head_dim - at : LQ_CELL_BLOCK;
    cell_store_block(format, dst + head * head_bytes + cell * cell_bytes(format, head_dim), block,
                     x + ((size_t)token * n_kv_heads + head) * head_dim + at, n);
}

void lq_cuda_kv_store(lq_backend *backend, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                      uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells) {
    size_t n = (size_t)n_tokens * n_kv_heads * lq_divide_up(head_dim, LQ_CELL_BLOCK);
    if (n == 0) return;
    LQ_LAUNCH(store_blocks, lq_divide_up(n, 64), 64, 0, lq_cuda(backend)->stream, format, dst, head_bytes, x, n_tokens,
              n_kv_heads, head_dim, cell0, n_cells);
    lq_cuda_check(lq_cuda(backend), "kv_store");
}

/* ---- moving cells: a block is a head, keys or values. It moves a few cells at a time, all of which are read before
 * one is written: later ones lie behind what was overwritten, since columns[i] >= i. */

#define MOVED_BYTES 16384

static __global__ void gather_cells(lq_kv_gather g, const uint32_t *columns) {
    __shared__ float staged[MOVED_BYTES / sizeof(float)]; /* floats, or bytes where no format changes */
    bool keys = blockIdx.x % 2 == 0;
    uint32_t head = blockIdx.x / 2, n_blocks = divide_up(g.head_dim, LQ_CELL_BLOCK);
    size_t bytes = cell_bytes(g.dst.format, g.head_dim);
    uint32_t at_once =
        (uint32_t)(MOVED_BYTES / (4 * n_blocks * LQ_CELL_BLOCK)); /* a cell takes as much as its floats */
    uint8_t *dst = (keys ? g.dst.k : g.dst.v) + head * g.dst.head_bytes;
    for (uint32_t first = 0; first < g.n_cells; first += at_once) {
        uint32_t n = g.n_cells - first < at_once ? g.n_cells - first : at_once;
        for (uint32_t pass = 0; pass < 2; pass++) { /* reading, then writing */
            for (uint32_t i = 0; i < n; i++) {
                uint32_t column = columns[(size_t)head * g.n_cells + first + i], source = 0;
                while (column >= g.sources[source].n_cells) column -= g.sources[source++].n_cells;
                const lq_attn_run &run = g.sources[source];
                const uint8_t *src =
                    (keys ? run.k : run.v) + head * run.head_bytes + column * cell_bytes(run.format, g.head_dim);
                uint8_t *to = dst + (size_t)(first + i) * bytes;
                float *floats = staged + (size_t)i * n_blocks * LQ_CELL_BLOCK;
                if (run.format == g.dst.format) {
                    uint8_t *whole = (uint8_t *)floats;
                    for (uint32_t b = threadIdx.x; b < bytes; b += blockDim.x)
                        if (pass == 0)
                            whole[b] = src[b];
                        else
                            to[b] = whole[b];
                } else if (pass == 0) {
                    for (uint32_t d = threadIdx.x; d < g.head_dim; d += blockDim.x)
                        floats[d] = cell_value(run.format, src, d);
                } else {
                    for (uint32_t b = threadIdx.x; b < n_blocks; b += blockDim.x) {
                        uint32_t left = g.head_dim - b * LQ_CELL_BLOCK;
                        cell_store_block(g.dst.format, to, b, floats + b * LQ_CELL_BLOCK,
                                         left < LQ_CELL_BLOCK ? left : LQ_CELL_BLOCK);
                    }
                }
            }
            __syncthreads();
        }
    }
}

void lq_cuda_kv_gather(lq_backend *backend, const lq_kv_gather *args) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (args->n_cells == 0) return;
    const void *columns =
        lq_cuda_stage(cuda, args->columns, (size_t)args->n_kv_heads * args->n_cells * sizeof(uint32_t));
    if (columns == NULL) return;
    LQ_LAUNCH(gather_cells, 2 * args->n_kv_heads, 128, 0, cuda->stream, *args, (const uint32_t *)columns);
    lq_cuda_check(cuda, "kv_gather");
}

/* ---- masks: a block is a head */

static __global__ void set_masks(lq_kv_pages pages, const uint32_t *tokens, uint32_t n_tokens) {
    unsigned long long *masks = (unsigned long long *)(pages.masks + (size_t)blockIdx.x * pages.n_places);
    for (uint32_t page = pages.first_page + threadIdx.x; page < pages.end_page; page += blockDim.x)
        masks[page % pages.n_places] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_tokens; i += blockDim.x) {
        uint32_t token = tokens[(size_t)blockIdx.x * n_tokens + i], page = token / LQ_PAGE_TOKENS;
        if (page >= pages.first_page) atomicOr(&masks[page % pages.n_places], 1ull << token % LQ_PAGE_TOKENS);
    }
}

void lq_cuda_kv_masks(lq_backend *backend, const lq_kv_pages *pages, uint32_t n_kv_heads, const uint32_t *tokens,
                      uint32_t n_tokens) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    const void *list = NULL;
    if (n_tokens != 0) {
        list = lq_cuda_stage(cuda, tokens, (size_t)n_kv_heads * n_tokens * sizeof *tokens);
        if (list == NULL) return;
    }
    LQ_LAUNCH(set_masks, n_kv_heads, 128, 0, cuda->stream, *pages, (const uint32_t *)list, n_tokens);
    lq_cuda_check(cuda, "kv_masks");
}

/* ---- attention received: a block is a head */

static __global__ void add_received(lq_kv_received args) {
    float *so_far = args.so_far + blockIdx.x * args.head_floats;
    const float *now = args.now + (size_t)blockIdx.x * args.n_columns;
    for (uint32_t i = threadIdx.x; i < args.n_columns; i += blockDim.x)
        so_far[i] = i < args.n_before ? so_far[i] + now[i] : now[i];
}

void lq_cuda_kv_received(lq_backend *backend, const lq_kv_received *args) {
    LQ_LAUNCH(add_received, args->n_kv_heads, 128, 0, lq_cuda(backend)->stream, *args);
    lq_cuda_check(lq_cuda(backend), "kv_received");
}
