/* experts.cu - mixture of experts. Choices are sorted by expert, as in experts_cpu.c. */
#include "backends/cuda/backend_cuda.cuh"

#define BLOCK 256

/* Finds the n_used experts with the largest logits, the largest first. One thread per token. */
static __global__ void choose_experts(lq_expert_choice c, uint32_t *chosen) {
    uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= c.n_tokens) return;
    const float *logits = c.router + (size_t)token * c.n_experts;
    uint32_t *taken = chosen + (size_t)token * c.n_used;
    for (uint32_t i = 0; i < c.n_used; i++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < c.n_experts; e++) {
            bool is_free = true;
            for (uint32_t k = 0; k < i && is_free; k++) is_free = taken[k] != e;
            /* comparing with a NaN is false: then the first free one stays */
            if (is_free && (best == UINT32_MAX || logits[e] > logits[best])) best = e;
        }
        taken[i] = best;
    }
}

/* One block counts the choices of each expert, adds up where they begin, and writes them there by rising token. */
static __global__ void sort_choices(lq_expert_choice c, const uint32_t *chosen) {
    uint32_t n = c.n_tokens * c.n_used;
    for (uint32_t e = threadIdx.x; e < c.n_experts; e += BLOCK) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < n; i++) count += chosen[i] == e;
        c.first[e + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        c.first[0] = 0;
        for (uint32_t e = 0; e < c.n_experts; e++) c.first[e + 1] += c.first[e];
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < c.n_experts; e += BLOCK) {
        uint32_t index = c.first[e];
        for (uint32_t i = 0; i < n; i++) {
            if (chosen[i] != e) continue;
            uint32_t token = i / c.n_used;
            const uint32_t *taken = chosen + (size_t)token * c.n_used;
            const float *logits = c.router + (size_t)token * c.n_experts;
            float sum = 0.0f;
            for (uint32_t k = 0; k < c.n_used; k++) sum += expf(logits[taken[k]] - logits[taken[0]]);
            c.token[index] = token;
            c.weight[index++] = expf(logits[e] - logits[taken[0]]) / sum;
        }
    }
}

static __global__ void gather_rows(float *dst, const float *x, lq_expert_choice c, uint32_t n_cols) {
    const float *row = x + (size_t)c.token[blockIdx.x] * n_cols;
    for (uint32_t i = threadIdx.x; i < n_cols; i += BLOCK) dst[(size_t)blockIdx.x * n_cols + i] = row[i];
}

/* One block per token and BLOCK columns. It searches all choices for the token's, and adds them in their order. */
static __global__ void sum_choices(float *dst, const float *x, lq_expert_choice c, uint32_t n_cols) {
    uint32_t token = blockIdx.x, column = blockIdx.y * BLOCK + threadIdx.x;
    float sum = 0.0f;
    for (uint32_t i = 0; i < c.n_tokens * c.n_used; i++)
        if (c.token[i] == token && column < n_cols) sum += c.weight[i] * x[(size_t)i * n_cols + column];
    if (column < n_cols) dst[(size_t)token * n_cols + column] = sum;
}

void lq_cuda_route(lq_backend *backend, const lq_expert_choice *choice) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    uint32_t *chosen = (uint32_t *)(void *)cuda->scratch;
    if (choice->n_tokens == 0) return;
    LQ_LAUNCH(choose_experts, lq_divide_up(choice->n_tokens, 64), 64, 0, cuda->stream, *choice, chosen);
    LQ_LAUNCH(sort_choices, 1, BLOCK, 0, cuda->stream, *choice, chosen);
    lq_cuda_check(cuda, "route");
}

void lq_cuda_expert_gather(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                           uint32_t n_cols) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    if (choice->n_tokens == 0) return;
    LQ_LAUNCH(gather_rows, choice->n_tokens * choice->n_used, BLOCK, 0, cuda->stream, dst, x, *choice, n_cols);
    lq_cuda_check(cuda, "expert_gather");
}

void lq_cuda_expert_sum(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                        uint32_t n_cols) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    if (choice->n_tokens == 0) return;
    dim3 grid(choice->n_tokens, lq_divide_up(n_cols, BLOCK));
    LQ_LAUNCH(sum_choices, grid, BLOCK, 0, cuda->stream, dst, x, *choice, n_cols);
    lq_cuda_check(cuda, "expert_sum");
}
