/* kv_cells.cu - moves cells, sets the masks of pages, and adds up accumulated attention. */
#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/cells.cuh"

/* ---- moving cells: one block for the keys and one for the values of each head. It moves a few cells at a time and
 * reads all of these before it writes one. It never overwrites cells that it reads later, since columns[i] >= i. */

#define MOVED_BYTES 16384

static __global__ void gather_cells(lq_kv_gather g) {
    __shared__ float staged[MOVED_BYTES / sizeof(float)]; /* floats, or a cell's bytes if the format stays */
    bool keys = blockIdx.x % 2 == 0;
    uint32_t head = blockIdx.x / 2, n_blocks = divide_up(g.head_dim, LQ_CELL_BLOCK);
    size_t bytes = cell_bytes(g.dst.format, g.head_dim);
    uint32_t at_once =
        (uint32_t)(MOVED_BYTES / (4 * n_blocks * LQ_CELL_BLOCK)); /* room for a cell's floats, whatever it stages */
    uint8_t *dst = (keys ? g.dst.k : g.dst.v) + head * g.dst.head_bytes;
    for (uint32_t first = 0; first < g.n_cells; first += at_once) {
        uint32_t n = g.n_cells - first < at_once ? g.n_cells - first : at_once;
        for (uint32_t pass = 0; pass < 2; pass++) { /* reading, then writing */
            for (uint32_t i = 0; i < n; i++) {
                uint32_t column = g.first + first + i, source = 0;
                if (g.columns != NULL) column = g.columns[(size_t)head * g.head_columns + first + i];
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
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    if (args->n_cells == 0) return;
    LQ_LAUNCH(gather_cells, 2 * args->n_kv_heads, 128, 0, cuda->stream, *args);
    lq_cuda_check(cuda, "kv_gather");
}

/* ---- masks: one block per head */

static __global__ void set_masks(lq_kv_masks args, lq_kv_pages pages) {
    unsigned long long *masks = (unsigned long long *)(pages.masks + (size_t)blockIdx.x * pages.n_slots);
    const uint32_t *positions = args.positions + blockIdx.x * args.head_positions;
    for (uint32_t page = pages.first_page + threadIdx.x; page < pages.end_page; page += blockDim.x)
        masks[page % pages.n_slots] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < args.n_tokens; i += blockDim.x) {
        uint32_t token = positions[i] - args.pos0, page = token / LQ_PAGE_TOKENS;
        if (page >= pages.first_page) atomicOr(&masks[page % pages.n_slots], 1ull << token % LQ_PAGE_TOKENS);
    }
}

void lq_cuda_kv_masks(lq_backend *backend, const lq_kv_masks *args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    LQ_LAUNCH(set_masks, args->n_kv_heads, 128, 0, cuda->stream, *args, *args->pages);
    lq_cuda_check(cuda, "kv_masks");
}

/* ---- accumulated attention: one block per head */

static __global__ void add_accumulated(lq_kv_accumulated args) {
    float *so_far = args.so_far + blockIdx.x * args.head_floats;
    const float *now = args.now + (size_t)blockIdx.x * args.n_columns;
    for (uint32_t i = threadIdx.x; i < args.n_columns; i += blockDim.x)
        so_far[i] = i < args.n_before ? so_far[i] + now[i] : now[i];
}

void lq_cuda_kv_accumulated(lq_backend *backend, const lq_kv_accumulated *args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    LQ_LAUNCH(add_accumulated, args->n_kv_heads, 128, 0, cuda->stream, *args);
    lq_cuda_check(cuda, "kv_accumulated");
}
