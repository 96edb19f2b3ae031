/* matmul_dense.cu - quantized weights times the activations of a prompt, by cuBLAS. A slab of weights is converted to
 * F16 and multiplied with all activations, also in F16 (11 bits, each row scaled), before the next slab overwrites it.
 * That is about 4 bytes of memory traffic for each weight and chunk, more than the quantized weights have, and pays off
 * from some dozens of rows on: there the products take most of the time, and nothing multiplies F16 faster.
 *
 * The sums are in units of a row of x. A gathered ROW_SCALE step (rows.cuh) multiplies them with the unit and adds the
 * bias. */
#include "backends/cuda/blas.cuh"
#include "backends/cuda/matmul.cuh"

#define MOST_X 65536
#define BLOCK 128
#define UNIT_WORDS 4 /* 16-byte words of a unit as halves */
/* DENSE_X: least rows of x. By memory traffic some dozens would be enough, but loading cuBLAS takes tenths of a second,
 * for which short prompts should not wait. Computed, not measured. */
#ifdef __CUDACC__
#define DENSE_X 256
#define SLAB_BYTES ((size_t)64 << 20)
#else /* the emulation: small matrices get several slabs, short test prompts use this path */
#define DENSE_X 64
#define SLAB_BYTES ((size_t)64 << 10)
#endif

uint64_t lq_cuda_dense_bytes(uint64_t n_x, uint64_t n_cols) { return align_up(n_x * n_cols * sizeof(uint16_t)); }

/* One thread per unit. The block writes its units together from shared memory, so that the writes are coalesced. */
template <class F>
static __global__ void __launch_bounds__(BLOCK)
    widen_units(uint4 *dst, const uint8_t *rows, size_t row_bytes, uint32_t n_units, uint32_t n, unit_grids grids) {
    __shared__ uint4 staged[BLOCK * UNIT_WORDS];
    uint32_t first = blockIdx.x * BLOCK, at = first + threadIdx.x;
    if (at < n) {
        unit u;
        F::get(rows + at / n_units * row_bytes, at % n_units, grids, &u);
        for (int word = 0; word < UNIT_WORDS; word++) {
            uint32_t pairs[4];
            for (int pair = 0; pair < 4; pair++) {
                uint32_t bits[2];
                for (int i = 0; i < 2; i++) {
                    int j = 8 * word + 2 * pair + i;
                    float q = (float)(int8_t)((uint32_t)u.q[j / 4] >> 8 * (j % 4));
                    bits[i] = float_to_half(u.d[j / 16] * q + u.m[j / 16]);
                }
                pairs[pair] = bits[0] | bits[1] << 16;
            }
            uint4 four = {pairs[0], pairs[1], pairs[2], pairs[3]};
            staged[threadIdx.x * UNIT_WORDS + word] = four;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < BLOCK * UNIT_WORDS; i += BLOCK)
        if (first + i / UNIT_WORDS < n) dst[(size_t)first * UNIT_WORDS + i] = staged[i];
}

struct widen_job {
    lq_backend_cuda *cuda;
    const product *p;
    const uint8_t *rows;
    uint32_t n_rows;

    template <class F> void units() {
        uint32_t n_units = p->n_cols / UNIT_LEN, n = n_rows * n_units;
        LQ_LAUNCH(widen_units<F>, lq_divide_up(n, BLOCK), BLOCK, 0, cuda->stream, (uint4 *)cuda->slab, rows,
                  p->row_bytes, n_units, n, cuda->grids);
    }
    template <class F> void items() {}
};

/* Allocates the slab and, behind it, two arrays of units: those of one product may still be in use when the next
 * product's are written. False: no cuBLAS, or no memory; then the other kernels multiply. */
static bool open_dense(lq_backend_cuda *cuda) {
    if (cuda->dense_tried) return cuda->blas != NULL;
    cuda->dense_tried = true;
    if (lq_blas_name() == NULL) return false;
    if (cudaMalloc(&cuda->slab, SLAB_BYTES + 2 * MOST_X * sizeof(float)) == cudaSuccess)
        cuda->blas = lq_blas_open(cuda->stream);
    cudaGetLastError();
    return cuda->blas != NULL;
}

bool lq_cuda_can_multiply_dense(lq_backend_cuda *cuda, uint32_t n_x, uint32_t n_cols) {
    size_t row = (size_t)n_cols * sizeof(uint16_t);
    return n_x >= DENSE_X && n_x <= MOST_X && row <= SLAB_BYTES && open_dense(cuda);
}

dense_x lq_cuda_narrow(lq_backend_cuda *cuda, const float *x, uint32_t n_x, uint32_t n_cols) {
    float *units = (float *)(void *)((uint8_t *)cuda->slab + SLAB_BYTES);
    cuda->dense_turn = !cuda->dense_turn;
    dense_x narrow = {(uint16_t *)(void *)cuda->scratch, units + (cuda->dense_turn ? MOST_X : 0)};
    lq_cuda_gather_narrow(cuda, x, n_x, n_cols, narrow.halves, narrow.unit);
    return narrow;
}

static void multiply_slabs(lq_backend_cuda *cuda, int32_t type, const product *p, const product_job *job,
                           const dense_x *x) {
    uint32_t most = (uint32_t)(SLAB_BYTES / (p->n_cols * sizeof(uint16_t)));
    if (most > BLOCK) most = most / BLOCK * BLOCK;
    for (uint32_t first = 0; first < job->n_rows; first += most) {
        uint32_t n = job->n_rows - first < most ? job->n_rows - first : most;
        widen_job widen = {cuda, p, job->rows + first * p->row_bytes, n};
        with_format(type, widen);
        if (!lq_blas_multiply(cuda->blas, job->y + first, job->n_rows, (const uint16_t *)cuda->slab, n, x->halves,
                              p->n_x, p->n_cols))
            lq_cuda_note(cuda, cudaErrorInvalidValue, "a product by cuBLAS, which LQ_CUDA_BLAS=off does without");
    }
}

void lq_cuda_multiply_dense(lq_backend_cuda *cuda, int32_t type, const product *p, const dense_x *x) {
    for (uint32_t i = 0; i < p->n_jobs; i++) {
        const product_job *job = &p->jobs[i];
        multiply_slabs(cuda, type, p, job, x);
        lq_cuda_gather_scale(cuda, job->y, p->n_x, job->n_rows, x->unit, job->bias);
    }
    lq_cuda_check(cuda, "matmul");
}
