/* matmul.cu - runs groups of products that share x; those of one format run together. Scratch memory holds x in one
 * form at a time: products of quantized weights run first, then those of F16 and BF16, whose split x overwrites it. */
#include "backends/cuda/matmul.cuh"

uint64_t lq_cuda_matmul_scratch(const lq_scratch_spec *spec) {
    uint64_t n_x = (uint64_t)spec->n_tokens * (spec->n_used > 1 ? spec->n_used : 1);
    uint64_t n_cols = ((uint64_t)spec->n_cols + 31) & ~31ull;
    uint64_t quantized = lq_cuda_activation_bytes(n_x, n_cols), dense = lq_cuda_dense_bytes(n_x, n_cols);
    uint64_t split = lq_cuda_split_bytes(n_x, n_cols), most = quantized > dense ? quantized : dense;
    return split > most ? split : most;
}

/* Collects the members of a group that have the format of member i. */
static product collect(const lq_matmul *group, uint32_t n_group, uint32_t i, uint32_t n_x,
                       const lq_expert_choice *choice) {
    const lq_weight *w = group[i].weight;
    product p = {};
    p.row_bytes = w->row_bytes;
    p.n_cols = w->n_cols;
    p.n_x = n_x;
    p.n_experts = choice != NULL ? choice->n_experts : 1;
    p.apart = choice != NULL && choice->apart;
    p.first = choice != NULL ? choice->first : NULL;
    p.most_x = choice != NULL ? choice->n_tokens : n_x; /* a token chooses an expert at most once */
    for (uint32_t k = i; k < n_group; k++) {
        if (group[k].weight->format != w->format) continue;
        product_job job = {(const uint8_t *)group[k].weight->data, group[k].bias, group[k].y, group[k].weight->n_rows};
        p.jobs[p.n_jobs++] = job;
    }
    return p;
}

/* True if no earlier member has member i's format. */
static bool is_first(const lq_matmul *group, uint32_t i) {
    for (uint32_t k = 0; k < i; k++)
        if (group[k].weight->format == group[i].weight->format) return false;
    return true;
}

static void multiply(lq_backend_cuda *cuda, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x,
                     const lq_expert_choice *choice) {
    bool any_units = false;
    uint32_t n_cols = group[0].weight->n_cols;
    activations quantized = {NULL, NULL, NULL};
    dense_x narrow = {NULL, NULL};
    if (n_x == 0) return;
    for (uint32_t i = 0; i < n_group; i++) any_units = any_units || group[i].weight->format->block_len != 1;
    if (any_units && choice == NULL && lq_cuda_can_multiply_dense(cuda, n_x, n_cols))
        narrow = lq_cuda_narrow(cuda, x, n_x, n_cols);
    else if (any_units)
        quantized = lq_cuda_quantize(cuda, x, n_x, n_cols);
    lq_cuda_run_rows(cuda); /* the last of them make x and its quantized form */
    for (uint32_t i = 0; i < n_group; i++) {
        const lq_format *format = group[i].weight->format;
        if (format->block_len == 1 || !is_first(group, i)) continue;
        product p = collect(group, n_group, i, n_x, choice);
        if (narrow.halves != NULL)
            lq_cuda_multiply_dense(cuda, format->type, &p, &narrow);
        else
            lq_cuda_multiply_units(cuda, format->type, &p, &quantized);
    }
    for (uint32_t i = 0; i < n_group; i++) {
        const lq_format *format = group[i].weight->format;
        if (format->block_len != 1 || !is_first(group, i)) continue;
        product p = collect(group, n_group, i, n_x, choice);
        lq_cuda_multiply_plain(cuda, format->type, &p, x);
    }
}

void lq_cuda_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x) {
    multiply(lq_cuda(backend), group, n_group, x, n_x, NULL);
}

void lq_cuda_expert_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x,
                           const lq_expert_choice *choice) {
    multiply(lq_cuda(backend), group, n_group, x, choice->n_tokens * choice->n_used, choice);
}
