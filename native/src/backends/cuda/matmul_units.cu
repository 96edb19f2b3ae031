/* matmul_units.cu - quantized weights times 8-bit activations: integer products of units, whatever the format.
 *
 * With few rows of x (decoding), a warp takes a row of weights and its lanes take the units, so that memory is read in
 * order. With many (prompts), tiles of 64 rows of weights and 64 of x pass through shared memory to mma_16x8x16(). */
#include "backends/cuda/matmul.cuh"

#define WARPS 4
#define TILE 64
/* Words of a unit in shared memory: 8, and padding that puts the lanes of a fragment on different banks. */
#define STRIDE 12

/* ---- activations */

uint64_t lq_cuda_activation_bytes(uint64_t n_x, uint64_t n_cols) {
    return align_up(n_x * (n_cols + 31)) + 2 * align_up(n_x * (n_cols / UNIT_LEN + 1) * 4);
}

activations lq_cuda_quantize(lq_backend_cuda *cuda, const float *x, uint32_t n_x, uint32_t n_cols) {
    size_t n_blocks = (size_t)n_x * (n_cols / UNIT_LEN);
    int *q = (int *)(void *)cuda->scratch;
    float *d = (float *)(void *)(cuda->scratch + align_up(n_blocks * UNIT_LEN));
    int *halves = (int *)(void *)((uint8_t *)d + align_up(n_blocks * sizeof(float)));
    lq_cuda_gather_quantize(cuda, x, n_blocks * UNIT_LEN, q, d, halves);
    activations a = {(const int4 *)(const void *)q, d, halves};
    return a;
}

LQ_DEVICE float half_sum(int halves, int h) { return (float)(int16_t)((uint32_t)halves >> 16 * h); }

/* ---- a row of weights and up to NX rows of x */

template <class F, int NX>
static __global__ void __launch_bounds__(WARPS *LQ_WARP) multiply_row(product p, activations x, unit_grids grids) {
    uint32_t lane = threadIdx.x % LQ_WARP, r = blockIdx.x * WARPS + threadIdx.x / LQ_WARP, job;
    uint32_t n_units = p.n_cols / UNIT_LEN, expert = blockIdx.y, begin, end;
    if (!find_row(p, &job, &r)) return;
    x_range(p, expert, &begin, &end);
    const uint8_t *row = weight_row(p, job, expert, r);
    for (uint32_t t0 = begin; t0 < end; t0 += NX) {
        float sums[NX];
        for (int t = 0; t < NX; t++) sums[t] = 0.0f;
        for (uint32_t index = lane; index < n_units; index += LQ_WARP) {
            unit u;
            F::get(row, index, grids, &u);
#pragma unroll
            for (int t = 0; t < NX; t++) {
                if (t0 + t >= end) break;
                size_t block = (size_t)(t0 + t) * n_units + index;
                int4 a = x.q[2 * block], b = x.q[2 * block + 1];
                int first = dot4(u.q[3], a.w, dot4(u.q[2], a.z, dot4(u.q[1], a.y, dot4(u.q[0], a.x, 0))));
                int second = dot4(u.q[7], b.w, dot4(u.q[6], b.z, dot4(u.q[5], b.y, dot4(u.q[4], b.x, 0))));
                int halves = x.halves[block];
                sums[t] += x.d[block] * (u.d[0] * (float)first + u.d[1] * (float)second + u.m[0] * half_sum(halves, 0) +
                                         u.m[1] * half_sum(halves, 1));
            }
        }
        for (int t = 0; t < NX; t++) {
            float sum = warp_sum(sums[t]);
            if (lane != 0 || t0 + t >= end) continue;
            const product_job &j = p.jobs[job];
            j.y[(size_t)(t0 + t) * j.n_rows + r] = sum + (j.bias != NULL ? j.bias[r] : 0.0f);
        }
    }
}

/* ---- tiles */

typedef struct tile_memory {
    int w[TILE][STRIDE];
    int x[TILE][STRIDE];
    float w_d[TILE][2], w_m[TILE][2]; /* scales and offsets of the unit's two halves */
    float x_d[TILE];
    float x_sum[TILE][2];
} tile_memory;

/* Loads unit number index of the tile's rows of weights (threads 0 to 63) and of x (64 to 127). Rows beyond the last
 * get scales of 0. */
template <class F>
LQ_DEVICE void load_tile(tile_memory *s, const product &p, const activations &x, const unit_grids &grids, uint32_t job,
                         uint32_t expert, uint32_t row0, uint32_t x0, uint32_t x_end, uint32_t index) {
    uint32_t i = threadIdx.x % TILE;
    if (threadIdx.x < TILE) {
        unit u;
        if (row0 + i < p.jobs[job].n_rows) {
            F::get(weight_row(p, job, expert, row0 + i), index, grids, &u);
        } else {
            for (int k = 0; k < 8; k++) u.q[k] = 0;
            set_scale(&u, 0.0f, 0.0f);
        }
        for (int k = 0; k < 8; k++) s->w[i][k] = u.q[k];
        for (int h = 0; h < 2; h++) s->w_d[i][h] = u.d[h], s->w_m[i][h] = u.m[h];
    } else {
        bool is = x0 + i < x_end;
        size_t block = (size_t)(is ? x0 + i : x0) * (p.n_cols / UNIT_LEN) + index;
        int4 a = x.q[2 * block], b = x.q[2 * block + 1];
        int words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        for (int k = 0; k < 8; k++) s->x[i][k] = words[k];
        s->x_d[i] = is ? x.d[block] : 0.0f;
        for (int h = 0; h < 2; h++) s->x_sum[i][h] = half_sum(x.halves[block], h);
    }
}

/* Each warp has 16 of the tile's rows of weights and all 64 rows of x. */
template <class F>
static __global__ void __launch_bounds__(WARPS *LQ_WARP)
    multiply_tile(product p, uint32_t job, activations x, unit_grids grids) {
    __shared__ tile_memory s;
    uint32_t lane = threadIdx.x % LQ_WARP, g = lane / 4, t = lane % 4, expert = blockIdx.z, begin, end;
    x_range(p, expert, &begin, &end);
    uint32_t row0 = blockIdx.x * TILE, x0 = begin + blockIdx.y * TILE, top = threadIdx.x / LQ_WARP * 16 + g;
    if (x0 >= end) return;
    float sums[TILE / 8][4];
    for (int n = 0; n < TILE / 8; n++)
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
    for (uint32_t index = 0; index < p.n_cols / UNIT_LEN; index++) {
        load_tile<F>(&s, p, x, grids, job, expert, row0, x0, end, index);
        __syncthreads();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int a[2] = {s.w[top][4 * h + t], s.w[top + 8][4 * h + t]};
            float d[2] = {s.w_d[top][h], s.w_d[top + 8][h]}, m[2] = {s.w_m[top][h], s.w_m[top + 8][h]};
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
                int c[4] = {0, 0, 0, 0};
                mma_16x8x16(c, a, s.x[8 * n + g][4 * h + t]);
                for (int i = 0; i < 4; i++) {
                    uint32_t column = 8 * n + 2 * t + i % 2;
                    sums[n][i] += s.x_d[column] * (d[i / 2] * (float)c[i] + m[i / 2] * s.x_sum[column][h]);
                }
            }
        }
        __syncthreads();
    }
    const product_job &j = p.jobs[job];
    for (int n = 0; n < TILE / 8; n++) {
        for (int i = 0; i < 4; i++) {
            uint32_t r = row0 + top + 8 * (i / 2), column = x0 + 8 * n + 2 * t + i % 2;
            if (r < j.n_rows && column < end)
                j.y[(size_t)column * j.n_rows + r] = sums[n][i] + (j.bias != NULL ? j.bias[r] : 0.0f);
        }
    }
}

/* ---- the choice between them */

struct units_job {
    lq_backend_cuda *cuda;
    const product *p;
    const activations *x;

    template <class F, int NX> void rows() {
        uint32_t n_rows = 0;
        for (uint32_t i = 0; i < p->n_jobs; i++) n_rows += p->jobs[i].n_rows;
        dim3 grid(lq_divide_up(n_rows, WARPS), p->n_experts);
        LQ_LAUNCH((multiply_row<F, NX>), grid, WARPS * LQ_WARP, 0, cuda->stream, *p, *x, cuda->grids);
    }
    template <class F> void tiles() {
        for (uint32_t i = 0; i < p->n_jobs; i++) {
            dim3 grid(lq_divide_up(p->jobs[i].n_rows, TILE), lq_divide_up(p->most_x, TILE), p->n_experts);
            LQ_LAUNCH(multiply_tile<F>, grid, WARPS * LQ_WARP, 0, cuda->stream, *p, i, *x, cuda->grids);
        }
    }
    template <class F> void units() {
        uint32_t usual = p->n_x / p->n_experts; /* rows of x per matrix, on average */
        if (usual > FEW_X && !p->apart)
            tiles<F>();
        else if (p->most_x == 1)
            rows<F, 1>();
        else if (p->most_x <= 4)
            rows<F, 4>();
        else
            rows<F, FEW_X>();
    }
    template <class F> void items() {}
};

void lq_cuda_multiply_units(lq_backend_cuda *cuda, int32_t type, const product *p, const activations *x) {
    units_job job = {cuda, p, x};
    with_format(type, job);
    lq_cuda_check(cuda, "matmul");
}
