/* elementwise.cu - embedding, softcap and scale. rows.cu has the other elementwise operations. */
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

/* ---- embedding: the same bits as dequantize of formats/, times scale */

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
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    const int32_t *ids = (const int32_t *)lq_cuda_stage(cuda, tokens, n_tokens * sizeof *tokens);
    if (ids == NULL) return;
    embed_job job = {cuda, dst, table, ids, n_tokens, scale};
    with_format(table->format->type, job);
    lq_cuda_check(cuda, "embed");
}

/* ---- softcap */

static __global__ void softcap_elements(float *x, float cap, size_t n) {
    FOR_EACH(i, n) { x[i] = cap * tanhf(x[i] / cap); }
}

void lq_cuda_softcap(lq_backend *backend, float *x, float cap, size_t n) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    LQ_LAUNCH(softcap_elements, grid_for(n), BLOCK, 0, cuda->stream, x, cap, n);
    lq_cuda_check(cuda, "softcap");
}

/* ---- scale */

/* One block per row. first: lq_expert_choice.first, which gives the row's expert; NULL: all rows have one factor. */
static __global__ void scale_rows(float *x, uint32_t n_cols, const float *factors, const uint32_t *first) {
    uint32_t row = blockIdx.x, at = 0;
    if (first != NULL)
        while (row >= first[at + 1]) at++;
    float factor = factors[at];
    for (uint32_t i = threadIdx.x; i < n_cols; i += BLOCK) x[(size_t)row * n_cols + i] *= factor;
}

void lq_cuda_scale(lq_backend *backend, float *x, uint32_t n_rows, uint32_t n_cols, const float *factors,
                   const lq_expert_choice *choice) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    if (n_rows == 0) return;
    LQ_LAUNCH(scale_rows, n_rows, BLOCK, 0, cuda->stream, x, n_cols, factors, choice != NULL ? choice->first : NULL);
    lq_cuda_check(cuda, "scale");
}
