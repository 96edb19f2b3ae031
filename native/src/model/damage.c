/* damage.c - finds weights that are NaN or infinite. Loading does not scan matrices, which would take as long as
 * reading the whole file; but once no logit is a number, the reason is worth that time. */
#include <math.h>

#include "core/system.h"
#include "model/model.h"

/* Returns a tensor's first row with a NaN or an infinity, or UINT64_MAX. row: room for one decoded row. */
static uint64_t damaged_row(const lq_gguf_tensor_info *t, float *row) {
    uint64_t n_rows = t->dims[1] * t->dims[2] * t->dims[3];
    size_t n_cols = (size_t)t->dims[0], row_bytes = (size_t)(t->data_bytes / n_rows);
    for (uint64_t r = 0; r < n_rows; r++) {
        float sum = 0.0f; /* stays 0 unless a value is not finite: 0 times that is NaN */
        t->format->dequantize(row, t->data + r * row_bytes, n_cols);
        for (size_t i = 0; i < n_cols; i++) sum += row[i] * 0.0f;
        if (isnan(sum)) return r;
    }
    return UINT64_MAX;
}

lq_status lq_model_blame(const lq_model *model) {
    uint64_t longest = 1;
    void *row;
    for (size_t i = 0; i < lq_gguf_n_tensors(model->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(model->gguf, i);
        if (t->dims[0] > longest) longest = t->dims[0];
    }
    LQ_TRY(lq_alloc(longest * sizeof(float), "a row of weights", &row));
    for (size_t i = 0; i < lq_gguf_n_tensors(model->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(model->gguf, i);
        uint64_t at = t->format != NULL ? damaged_row(t, row) : UINT64_MAX;
        if (at == UINT64_MAX) continue;
        lq_free(row);
        return lq_fail(
            LQ_E_FORMAT,
            "no logit is a number: tensor '%.*s' holds NaN or an infinity in row %llu; the file is damaged or "
            "was badly made, get it again",
            (int)t->name_bytes, t->name, (unsigned long long)at);
    }
    lq_free(row);
    return lq_fail(LQ_E_FORMAT,
                   "no logit is a number, though all weights are: keys or values exceed the 65504 that f16 holds, "
                   "where q8_0 may do, or the model computes beyond any float and is unusable");
}
