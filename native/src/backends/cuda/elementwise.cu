/* elementwise.cu - embedding, norms, rope, activations, sums. */
#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/formats.cuh"

#define BLOCK 256
#define MAX_GRID 65535u

static uint32_t grid_for(size_t n) {
    size_t blocks = (n + BLOCK - 1) / BLOCK;
    return blocks < MAX_GRID ? (uint32_t)blocks : MAX_GRID;
}

#define FOR_EACH(i, n)                                                                                                 \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

/* ---- embedding: the same bits as formats' dequantize, times scale */

template <class F>
static __global__ void embed_units(float *dst, const uint8_t *table, size_t row_bytes, uint32_t n_cols,
                                   const int32_t *tokens, uint32_t n_tokens, float scale, unit_grids grids) {
    uint32_t n_units = n_cols / UNIT_LEN;
    FOR_EACH(i, (size_t)n_tokens * n_units) {
        uint32_t token = (uint32_t)(i / n_units), index = (uint32_t)(i % n_units);
        unit u;
        F::get(table + (size_t)tokens[token] * row_bytes, index, grids, &u);
        float *out = dst + (size_t)token * n_cols + (size_t)index * UNIT_LEN;
        for (int j = 0; j < UNIT_LEN; j++) {
            float q = (float)(int8_t)((uint32_t)u.q[j / 4] >> 8 * (j % 4));
            float value = __fadd_rn(__fmul_rn(u.d[j / 16], q), u.m[j / 16]);
            out[j] = scale == 1.0f ? value : value * scale;
        }
    }
}

template <class F>
static __global__ void embed_items(float *dst, const uint8_t *table, size_t row_bytes, uint32_t n_cols,
                                   const int32_t *tokens, uint32_t n_tokens, float scale) {
    FOR_EACH(i, (size_t)n_tokens * n_cols) {
        const uint8_t *row = table + (size_t)tokens[i / n_cols] * row_bytes;
        float value = F::value(((const typename F::item *)(const void *)row)[i % n_cols]);
        dst[i] = scale == 1.0f ? value : value * scale;
    }
}

struct embed_job {
    lq_backend_cuda *cuda;
    float *dst;
    const lq_weight *table;
    const int32_t *tokens;
    uint32_t n_tokens;
    float scale;

    template <class F> void units() {
        size_t n = (size_t)n_tokens * (table->n_cols / UNIT_LEN);
        LQ_LAUNCH(embed_units<F>, grid_for(n), BLOCK, 0, cuda->stream, dst, (const uint8_t *)table->data,
                  table->row_bytes, table->n_cols, tokens, n_tokens, scale, cuda->grids);
    }
    template <class F> void items() {
        size_t n = (size_t)n_tokens * table->n_cols;
        LQ_LAUNCH(embed_items<F>, grid_for(n), BLOCK, 0, cuda->stream, dst, (const uint8_t *)table->data,
                  table->row_bytes, table->n_cols, tokens, n_tokens, scale);
    }
};

void lq_cuda_embed(lq_backend *backend, float *dst, const lq_weight *table, const int32_t *tokens, uint32_t n_tokens,
                   float scale) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    const int32_t *ids = (const int32_t *)lq_cuda_stage(cuda, tokens, n_tokens * sizeof *tokens);
    if (ids == NULL) return;
    embed_job job = {cuda, dst, table, ids, n_tokens, scale};
    with_format(table->format->type, job);
    lq_cuda_check(cuda, "embed");
}

/* ---- norms: a block is a row */

static __global__ void rms_norm_rows(float *dst, const float *x, const float *weight, uint32_t n_cols, float eps) {
    __shared__ float parts[BLOCK / LQ_WARP];
    const float *row = x + (size_t)blockIdx.x * n_cols;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < n_cols; i += BLOCK) sum += row[i] * row[i];
    sum = warp_sum(sum);
    if (threadIdx.x % LQ_WARP == 0) parts[threadIdx.x / LQ_WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < BLOCK / LQ_WARP; i++) sum += parts[i];
    float scale = 1.0f / sqrtf(sum / (float)n_cols + eps);
    float *out = dst + (size_t)blockIdx.x * n_cols;
    for (uint32_t i = threadIdx.x; i < n_cols; i += BLOCK) out[i] = row[i] * scale * weight[i];
}

void lq_cuda_rms_norm(lq_backend *backend, float *dst, const float *x, const float *weight, uint32_t n_rows,
                      uint32_t n_cols, float eps) {
    if (n_rows == 0) return;
    LQ_LAUNCH(rms_norm_rows, n_rows, BLOCK, 0, lq_cuda(backend)->stream, dst, x, weight, n_cols, eps);
    lq_cuda_check(lq_cuda(backend), "rms_norm");
}

/* ---- rope: a thread is a pair */

static __global__ void rope_pairs(float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                                  const float *rotations, lq_rope_style style) {
    uint32_t half = n_rot / 2;
    FOR_EACH(i, (size_t)n_tokens * n_heads * half) {
        uint32_t pair = (uint32_t)(i % half);
        size_t head = i / half;
        float *at = x + head * head_dim;
        const float *turn = rotations + head / n_heads * n_rot + 2 * pair;
        uint32_t first = style == LQ_ROPE_PAIRS ? 2 * pair : pair;
        uint32_t second = style == LQ_ROPE_PAIRS ? first + 1 : pair + half;
        float a = at[first], b = at[second], c = turn[0], s = turn[1];
        at[first] = a * c - b * s;
        at[second] = a * s + b * c;
    }
}

void lq_cuda_rope(lq_backend *backend, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                  const float *rotations, lq_rope_style style) {
    size_t n = (size_t)n_tokens * n_heads * (n_rot / 2);
    LQ_LAUNCH(rope_pairs, grid_for(n), BLOCK, 0, lq_cuda(backend)->stream, x, n_tokens, n_heads, head_dim, n_rot,
              rotations, style);
    lq_cuda_check(lq_cuda(backend), "rope");
}

/* ---- elements */

static __global__ void glu_elements(float *gate, const float *up, size_t n, lq_activation activation) {
    FOR_EACH(i, n) {
        float x = gate[i];
        float y = activation == LQ_ACT_SILU
                      ? x / (1.0f + expf(-x))
                      : 0.5f * x * (1.0f + tanhf(0.797884560802865f * (x + 0.044715f * x * x * x)));
        gate[i] = y * up[i];
    }
}

static __global__ void add_elements(float *dst, const float *x, float scale, size_t n) {
    FOR_EACH(i, n) { dst[i] += scale * x[i]; }
}

static __global__ void softcap_elements(float *x, float cap, size_t n) {
    FOR_EACH(i, n) { x[i] = cap * tanhf(x[i] / cap); }
}

void lq_cuda_glu(lq_backend *backend, float *gate, const float *up, size_t n, lq_activation activation) {
    LQ_LAUNCH(glu_elements, grid_for(n), BLOCK, 0, lq_cuda(backend)->stream, gate, up, n, activation);
    lq_cuda_check(lq_cuda(backend), "glu");
}

void lq_cuda_add(lq_backend *backend, float *dst, const float *x, float scale, size_t n) {
    LQ_LAUNCH(add_elements, grid_for(n), BLOCK, 0, lq_cuda(backend)->stream, dst, x, scale, n);
    lq_cuda_check(lq_cuda(backend), "add");
}

void lq_cuda_softcap(lq_backend *backend, float *x, float cap, size_t n) {
    LQ_LAUNCH(softcap_elements, grid_for(n), BLOCK, 0, lq_cuda(backend)->stream, x, cap, n);
    lq_cuda_check(lq_cuda(backend), "softcap");
}
