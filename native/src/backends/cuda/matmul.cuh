/* matmul.cuh - what the products of all formats share: jobs, and which rows of x are multiplied with which matrix. */
#ifndef LQ_CUDA_MATMUL_CUH
#define LQ_CUDA_MATMUL_CUH

#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/formats.cuh"

#define FEW_X 8 /* up to this many rows of x a warp takes a row of weights; more use tiles */

typedef struct product_job {
    const uint8_t *rows;
    const float *bias; /* or NULL */
    float *y;          /* [n_x][n_rows] */
    uint32_t n_rows;
} product_job;

/* Products of one format that share x. With experts, expert e's matrix starts e * n_rows rows after `rows` and is
 * multiplied with rows first[e] to first[e + 1] - 1 of x; without, there is one "expert" with all rows. */
typedef struct product {
    product_job jobs[LQ_MATMUL_MAX_GROUP];
    uint32_t n_jobs;
    size_t row_bytes;
    uint32_t n_cols;
    uint32_t n_x;
    uint32_t n_experts;    /* 1 without experts */
    const uint32_t *first; /* [n_experts + 1]; NULL without experts */
    uint32_t most_x;       /* rows of x that one expert may have */
    bool apart;            /* a row's results must not depend on how many others its expert has */
} product;

/* 8-bit activations: blocks of 32 along each row of x. */
typedef struct activations {
    const int4 *q;     /* [n_x][n_cols / 16] */
    const float *d;    /* [n_x][n_cols / 32] x ~ d q */
    const int *halves; /* [n_x][n_cols / 32] sums of q over the block's halves, 16 bits each, the first lowest */
} activations;

/* Rounds up to a multiple of 256 bytes, where each part of scratch memory starts. */
static inline uint64_t align_up(uint64_t n) { return (n + 255) & ~255ull; }

LQ_DEVICE void x_range(const product &p, uint32_t expert, uint32_t *begin, uint32_t *end) {
    *begin = p.first != NULL ? p.first[expert] : 0;
    *end = p.first != NULL ? p.first[expert + 1] : p.n_x;
}

/* Finds the job and its row for row number *r, counted over the rows of all jobs. False: *r is beyond the last. */
LQ_DEVICE bool find_row(const product &p, uint32_t *job, uint32_t *r) {
    for (*job = 0; *job < p.n_jobs; ++*job) {
        if (*r < p.jobs[*job].n_rows) return true;
        *r -= p.jobs[*job].n_rows;
    }
    return false;
}

LQ_DEVICE const uint8_t *weight_row(const product &p, uint32_t job, uint32_t expert, uint32_t r) {
    return p.jobs[job].rows + ((size_t)expert * p.jobs[job].n_rows + r) * p.row_bytes;
}

/* matmul_units.cu */
uint64_t lq_cuda_activation_bytes(uint64_t n_x, uint64_t n_cols);
/* Gathered with other operations on rows: call lq_cuda_run_rows() before reading the result. */
activations lq_cuda_quantize(lq_backend_cuda *cuda, const float *x, uint32_t n_x, uint32_t n_cols);
void lq_cuda_multiply_units(lq_backend_cuda *cuda, int32_t type, const product *p, const activations *x);
/* matmul_dense.cu: activations in F16, row t in units of unit[t] */
typedef struct dense_x {
    uint16_t *halves; /* [n_x][n_cols] */
    float *unit;      /* [n_x] */
} dense_x;
uint64_t lq_cuda_dense_bytes(uint64_t n_x, uint64_t n_cols);
bool lq_cuda_can_multiply_dense(lq_backend_cuda *cuda, uint32_t n_x, uint32_t n_cols);
/* Gathered, like lq_cuda_quantize(). */
dense_x lq_cuda_narrow(lq_backend_cuda *cuda, const float *x, uint32_t n_x, uint32_t n_cols);
void lq_cuda_multiply_dense(lq_backend_cuda *cuda, int32_t type, const product *p, const dense_x *x);
/* matmul_halves.cu */
uint64_t lq_cuda_split_bytes(uint64_t n_x, uint64_t n_cols);
/* False, with nothing done: the device has no tensor cores for the type, or n_cols or the alignment does not suit. */
bool lq_cuda_multiply_f16(lq_backend_cuda *cuda, const product *p, const float *x);
bool lq_cuda_multiply_bf16(lq_backend_cuda *cuda, const product *p, const float *x);
/* matmul_plain.cu */
void lq_cuda_multiply_plain(lq_backend_cuda *cuda, int32_t type, const product *p, const float *x);

#endif
