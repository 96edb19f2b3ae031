/* matmul_plain.cu - F32, F16 and BF16 weights times float activations, in floats. matmul_halves.cu has the products on
 * tensor cores. */
#include "backends/cuda/matmul.cuh"

#define WARPS 4
#define TILE 64
#define DEPTH 16 /* columns of a tile in shared memory */

/* Few rows of x: a warp takes a row of weights, and its lanes take neighbouring columns. */
template <class F, int NX>
static __global__ void __launch_bounds__(WARPS *LQ_WARP) multiply_row(product p, const float *x) {
    uint32_t lane = threadIdx.x % LQ_WARP, r = blockIdx.x * WARPS + threadIdx.x / LQ_WARP, job;
    uint32_t expert = blockIdx.y, begin, end;
    if (!find_row(p, &job, &r)) return;
    x_range(p, expert, &begin, &end);
    const typename F::item *row = (const typename F::item *)(const void *)weight_row(p, job, expert, r);
    for (uint32_t t0 = begin; t0 < end; t0 += NX) {
        float sums[NX];
        for (int t = 0; t < NX; t++) sums[t] = 0.0f;
#pragma unroll 4
        for (uint32_t c = lane; c < p.n_cols; c += LQ_WARP) {
            float w = F::value(row[c]);
#pragma unroll
            for (int t = 0; t < NX; t++)
                if (t0 + t < end) sums[t] += w * x[(size_t)(t0 + t) * p.n_cols + c];
        }
        for (int t = 0; t < NX; t++) {
            float sum = warp_sum(sums[t]);
            if (lane != 0 || t0 + t >= end) continue;
            const product_job &j = p.jobs[job];
            j.y[(size_t)(t0 + t) * j.n_rows + r] = sum + (j.bias != NULL ? j.bias[r] : 0.0f);
        }
    }
}

/* Many rows of x: a block has 64 rows of weights and 64 of x, a thread computes 4 x 4 of the results. */
template <class F>
static __global__ void __launch_bounds__(256) multiply_tile(product p, uint32_t job, const float *x) {
    __shared__ float w_tile[DEPTH][TILE + 4], x_tile[DEPTH][TILE + 4];
    const product_job &j = p.jobs[job];
    uint32_t expert = blockIdx.z, begin, end, row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    x_range(p, expert, &begin, &end);
    uint32_t row0 = blockIdx.x * TILE, x0 = begin + blockIdx.y * TILE;
    if (x0 >= end) return;
    float sums[4][4];
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) sums[i][k] = 0.0f;
    for (uint32_t c0 = 0; c0 < p.n_cols; c0 += DEPTH) {
        for (uint32_t i = threadIdx.x; i < DEPTH * TILE; i += 256) {
            uint32_t c = i % DEPTH, at = i / DEPTH;
            bool in_row = c0 + c < p.n_cols, is_w = in_row && row0 + at < j.n_rows, is_x = in_row && x0 + at < end;
            const typename F::item *w =
                (const typename F::item *)(const void *)weight_row(p, job, expert, is_w ? row0 + at : row0);
            w_tile[c][at] = is_w ? F::value(w[c0 + c]) : 0.0f;
            x_tile[c][at] = is_x ? x[(size_t)(x0 + at) * p.n_cols + c0 + c] : 0.0f;
        }
        __syncthreads();
        for (int c = 0; c < DEPTH; c++)
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 4; k++) sums[i][k] += w_tile[c][row + i] * x_tile[c][column + k];
        __syncthreads();
    }
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t r = row0 + row + i, t = x0 + column + k;
            if (r < j.n_rows && t < end)
                j.y[(size_t)t * j.n_rows + r] = sums[i][k] + (j.bias != NULL ? j.bias[r] : 0.0f);
        }
    }
}

struct plain_job {
    lq_backend_cuda *cuda;
    const product *p;
    const float *x;

    template <class F, int NX> void rows() {
        uint32_t n_rows = 0;
        for (uint32_t i = 0; i < p->n_jobs; i++) n_rows += p->jobs[i].n_rows;
        dim3 grid(lq_divide_up(n_rows, WARPS), p->n_experts);
        LQ_LAUNCH((multiply_row<F, NX>), grid, WARPS * LQ_WARP, 0, cuda->stream, *p, x);
    }
    /* True if tensor cores did the products. */
    bool halves(fmt_f32) { return false; }
    bool halves(fmt_f16) { return lq_cuda_multiply_f16(cuda, p, x); }
    bool halves(fmt_bf16) { return lq_cuda_multiply_bf16(cuda, p, x); }
    template <class F> void items() {
        if (p->n_x / p->n_experts > FEW_X && !p->apart) {
            if (halves(F())) return;
            for (uint32_t i = 0; i < p->n_jobs; i++) {
                dim3 grid(lq_divide_up(p->jobs[i].n_rows, TILE), lq_divide_up(p->most_x, TILE), p->n_experts);
                LQ_LAUNCH(multiply_tile<F>, grid, 256, 0, cuda->stream, *p, i, x);
            }
        } else if (p->most_x == 1) {
            rows<F, 1>();
        } else {
            rows<F, FEW_X>();
        }
    }
    template <class F> void units() {}
};

void lq_cuda_multiply_plain(lq_backend_cuda *cuda, int32_t type, const product *p, const float *x) {
    plain_job job = {cuda, p, x};
    with_format(type, job);
    lq_cuda_check(cuda, "matmul");
}
