/* matmul_halves.cu - F16 and BF16 weights times many float activations, on tensor cores, which multiply halves and add
 * up floats. An activation is split into two halves, the nearest one and the remainder, and each is multiplied with the
 * weights: so 22 bits of it count with F16, 16 with BF16. Weights stay exact. */
#include "backends/cuda/matmul.cuh"
#include "backends/cuda/scale.cuh"

#define WARPS 4
#define TILE 64
#define DEPTH 32  /* columns of a tile in shared memory */
#define STRIDE 20 /* words of a row: 16, and padding that puts the lanes of a fragment on different banks */

typedef struct split_x {
    const uint32_t *high, *low; /* [n_x][n_cols / 2], two halves in a word */
    const float *unit;          /* [n_x]: a row's values are its halves times this */
} split_x;

uint64_t lq_cuda_split_bytes(uint64_t n_x, uint64_t n_cols) {
    return 2 * align_up(n_x * n_cols * sizeof(uint16_t)) + align_up(n_x * sizeof(float));
}

/* One block per row. */
template <class F>
static __global__ void __launch_bounds__(128)
    split_rows(uint32_t *high, uint32_t *low, float *unit, const float *x, uint32_t n_cols) {
    __shared__ float largest[4];
    const float *row = x + (size_t)blockIdx.x * n_cols;
    float scale = 1.0f;
    if (F::scaled) {
        float most = 0.0f;
        for (uint32_t c = threadIdx.x; c < n_cols; c += 128) most = fabsf(row[c]) > most ? fabsf(row[c]) : most;
        most = warp_max(most);
        if (threadIdx.x % LQ_WARP == 0) largest[threadIdx.x / LQ_WARP] = most;
        __syncthreads();
        for (int i = 0; i < 4; i++) most = largest[i] > most ? largest[i] : most;
        float row_unit;
        fit_halves(most, &scale, &row_unit);
        if (threadIdx.x == 0) unit[blockIdx.x] = row_unit;
    } else if (threadIdx.x == 0) {
        unit[blockIdx.x] = 1.0f;
    }
    for (uint32_t c = 2 * threadIdx.x; c < n_cols; c += 256) {
        float a = row[c] * scale, b = row[c + 1] * scale;
        uint32_t a_high = F::nearest(a), b_high = F::nearest(b);
        uint32_t a_low = F::nearest(a - F::value((uint16_t)a_high)), b_low = F::nearest(b - F::value((uint16_t)b_high));
        size_t at = ((size_t)blockIdx.x * n_cols + c) / 2;
        high[at] = a_high | b_high << 16;
        low[at] = a_low | b_low << 16;
    }
}

typedef struct tile_memory {
    uint32_t w[TILE][STRIDE], high[TILE][STRIDE], low[TILE][STRIDE];
} tile_memory;

/* Loads 32 halves of each of 64 rows, eight at a time per thread; zeros beyond the last row. */
LQ_DEVICE void load_rows(uint32_t (*tile)[STRIDE], const uint8_t *rows, size_t row_bytes, uint32_t n_rows,
                         uint32_t c0) {
    for (uint32_t i = threadIdx.x; i < TILE * DEPTH / 8; i += WARPS * LQ_WARP) {
        uint32_t r = i / (DEPTH / 8), part = i % (DEPTH / 8);
        uint4 eight = {0, 0, 0, 0};
        if (r < n_rows) eight = ((const uint4 *)(const void *)(rows + r * row_bytes + c0 * sizeof(uint16_t)))[part];
        uint32_t *to = &tile[r][4 * part];
        to[0] = eight.x, to[1] = eight.y, to[2] = eight.z, to[3] = eight.w;
    }
}

/* A block has 64 rows of weights and 64 of x; each of its warps has 16 of the rows of weights and all rows of x. */
template <class F>
static __global__ void __launch_bounds__(WARPS *LQ_WARP) multiply_halves(product p, uint32_t job, split_x x) {
    __shared__ tile_memory s;
    if (!F::on_tensor_cores) return;
    const product_job &j = p.jobs[job];
    uint32_t lane = threadIdx.x % LQ_WARP, g = lane / 4, t = lane % 4, expert = blockIdx.z, begin, end;
    x_range(p, expert, &begin, &end);
    uint32_t row0 = blockIdx.x * TILE, x0 = begin + blockIdx.y * TILE, top = threadIdx.x / LQ_WARP * 16 + g;
    if (x0 >= end) return;
    size_t x_bytes = (size_t)p.n_cols * sizeof(uint16_t);
    const uint8_t *weights = weight_row(p, job, expert, row0);
    const uint8_t *high = (const uint8_t *)x.high + x0 * x_bytes, *low = (const uint8_t *)x.low + x0 * x_bytes;
    float sums[TILE / 8][4];
    for (int n = 0; n < TILE / 8; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    for (uint32_t c0 = 0; c0 < p.n_cols; c0 += DEPTH) {
        load_rows(s.w, weights, p.row_bytes, j.n_rows - row0, c0);
        load_rows(s.high, high, x_bytes, end - x0, c0);
        load_rows(s.low, low, x_bytes, end - x0, c0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH / 2; k += 8) {
            uint32_t a[4] = {s.w[top][k + t], s.w[top + 8][k + t], s.w[top][k + t + 4], s.w[top + 8][k + t + 4]};
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
                uint32_t most[2] = {s.high[8 * n + g][k + t], s.high[8 * n + g][k + t + 4]};
                uint32_t rest[2] = {s.low[8 * n + g][k + t], s.low[8 * n + g][k + t + 4]};
                F::mma(sums[n], a, most);
                F::mma(sums[n], a, rest);
            }
        }
        __syncthreads();
    }
    for (int n = 0; n < TILE / 8; n++) {
        for (int i = 0; i < 4; i++) {
            uint32_t r = row0 + top + 8 * (i / 2), column = x0 + 8 * n + 2 * t + i % 2;
            if (r < j.n_rows && column < end)
                j.y[(size_t)column * j.n_rows + r] = sums[n][i] * x.unit[column] + (j.bias != NULL ? j.bias[r] : 0.0f);
        }
    }
}

template <class F> static void multiply(lq_backend_cuda *cuda, const product *p, const float *x) {
    uint8_t *at = cuda->scratch;
    uint64_t bytes = align_up((uint64_t)p->n_x * p->n_cols * sizeof(uint16_t));
    uint32_t *high = (uint32_t *)(void *)at, *low = (uint32_t *)(void *)(at + bytes);
    float *unit = (float *)(void *)(at + 2 * bytes);
    split_x split = {high, low, unit};
    LQ_LAUNCH(split_rows<F>, p->n_x, 128, 0, cuda->stream, high, low, unit, x, p->n_cols);
    for (uint32_t i = 0; i < p->n_jobs; i++) {
        dim3 grid(lq_divide_up(p->jobs[i].n_rows, TILE), lq_divide_up(p->most_x, TILE), p->n_experts);
        LQ_LAUNCH(multiply_halves<F>, grid, WARPS * LQ_WARP, 0, cuda->stream, *p, i, split);
    }
}

/* Rows are read in words of 16 bytes, DEPTH columns at a time. */
static bool can_multiply(const product *p) {
    if (p->n_cols % DEPTH != 0) return false;
    for (uint32_t i = 0; i < p->n_jobs; i++)
        if ((uintptr_t)p->jobs[i].rows % sizeof(uint4) != 0) return false;
    return true;
}

bool lq_cuda_multiply_f16(lq_backend_cuda *cuda, const product *p, const float *x) {
    if (!cuda->multiplies_f16 || !can_multiply(p)) return false;
    multiply<fmt_f16>(cuda, p, x);
    return true;
}

bool lq_cuda_multiply_bf16(lq_backend_cuda *cuda, const product *p, const float *x) {
    if (!cuda->multiplies_bf16 || !can_multiply(p)) return false;
    multiply<fmt_bf16>(cuda, p, x);
    return true;
}
