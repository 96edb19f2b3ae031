/* tensors.c - finds tensors by name and loads them onto a device. A tensor's type and shape are checked before anything
 * of it is used. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/system.h"
#include "model/load.h"

#define MAX_VOCAB (1u << 24)

typedef struct tensor_name {
    char text[128];
} tensor_name;

static tensor_name full_name(const lq_loader *l, const char *stem, const char *ending) {
    tensor_name name;
    if (l->layer == LQ_NO_LAYER)
        snprintf(name.text, sizeof name.text, "%s%s", stem, ending);
    else
        snprintf(name.text, sizeof name.text, "blk.%u.%s%s", (unsigned)l->layer, stem, ending);
    return name;
}

/* The backend that tensors are loaded to now; NULL: they are only checked. */
static lq_backend *target(const lq_loader *l) {
    return l->model->n_devices != 0 ? l->model->devices[l->device].backend : NULL;
}

static void mark_used(lq_loader *l, const lq_gguf_tensor_info *t) { l->used[t - lq_gguf_tensor_at(l->gguf, 0)] = true; }

static lq_status find_tensor(lq_loader *l, lq_presence presence, const char *name, const lq_gguf_tensor_info **out) {
    *out = presence == LQ_ABSENT ? NULL : lq_gguf_find_tensor(l->gguf, name);
    if (*out == NULL) {
        if (presence == LQ_REQUIRED) return lq_fail(LQ_E_FORMAT, "tensor '%s' is missing", name);
        return LQ_OK;
    }
    if ((*out)->format == NULL)
        return lq_fail(LQ_E_UNSUPPORTED, "tensor '%s' has type %d, which this build cannot decode", name,
                       (int)(*out)->type);
    mark_used(l, *out);
    return LQ_OK;
}

static lq_status wrong_shape(const lq_gguf_tensor_info *t, uint64_t n_cols, uint64_t n_rows, uint64_t n_stacked) {
    char shape[96];
    int n = snprintf(shape, sizeof shape, "%llu, %llu", (unsigned long long)n_cols, (unsigned long long)n_rows);
    if (n_stacked != 1 && n > 0) snprintf(shape + n, sizeof shape - (size_t)n, ", %llu", (unsigned long long)n_stacked);
    return lq_fail(LQ_E_FORMAT, "tensor '%.*s' has shape [%llu, %llu, %llu, %llu], expected [%s]",
                   (int)(t->name_bytes < 100 ? t->name_bytes : 100), t->name, (unsigned long long)t->dims[0],
                   (unsigned long long)t->dims[1], (unsigned long long)t->dims[2], (unsigned long long)t->dims[3],
                   shape);
}

/* Decodes n values to f32 in l->host_vector; LQ_E_FORMAT if one is NaN or infinite. */
static lq_status decode(lq_loader *l, const lq_gguf_tensor_info *t, uint32_t n, const char *name) {
    t->format->dequantize(l->host_vector, t->data, n);
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(l->host_vector[i]))
            return lq_fail(LQ_E_FORMAT,
                           "tensor '%s' holds NaN or an infinity at %u: the file is damaged or was badly made; get it "
                           "again",
                           name, (unsigned)i);
    return LQ_OK;
}

/* Finds a vector of n values and decodes it to f32 in l->host_vector. */
static lq_status read_vector(lq_loader *l, lq_presence presence, uint32_t n, const char *name, bool *found) {
    const lq_gguf_tensor_info *t;
    LQ_TRY(find_tensor(l, presence, name, &t));
    *found = t != NULL;
    if (t == NULL) return LQ_OK;
    if (t->n_dims != 1 || t->dims[0] != n) return wrong_shape(t, n, 1, 1);
    return decode(l, t, n, name);
}

/* Copies l->host_vector into the current device's memory for vectors. */
static lq_status place_vector(lq_loader *l, uint32_t n, const float **out) {
    uint64_t *used = &l->used_vectors[l->device];
    lq_backend *backend = target(l);
    if (*used + n > l->n_vectors[l->device]) return lq_fail(LQ_E_INTERNAL, "vectors were counted wrongly");
    *out = l->host_vector; /* a check needs only to see that the vector exists */
    if (backend == NULL) return LQ_OK;
    float *dst = l->model->vectors[l->device] + *used;
    backend->ops->upload(backend, dst, l->host_vector, n * sizeof(float));
    *used += n;
    *out = dst;
    return LQ_OK;
}

lq_status lq_load_vector(lq_loader *l, lq_presence presence, const float **out, uint32_t n, const char *name) {
    bool found;
    LQ_TRY(read_vector(l, presence, n, full_name(l, name, "").text, &found));
    return found ? place_vector(l, n, out) : LQ_OK;
}

/* Whether a tensor is decoded to f32: vectors are, and the kernels of short convolutions. */
static bool is_decoded(const lq_gguf_tensor_info *t) {
    return t->format != NULL && (t->n_dims == 1 || (t->n_dims == 2 && t->dims[0] <= LQ_CONV_MAX_TAPS));
}

lq_status lq_load_kernel(lq_loader *l, const float **out, uint32_t n_channels, uint32_t n_taps, const char *name) {
    tensor_name full = full_name(l, name, "");
    const lq_gguf_tensor_info *t;
    LQ_TRY(find_tensor(l, LQ_REQUIRED, full.text, &t));
    if (t->n_dims != 2 || t->dims[0] != n_taps || t->dims[1] != n_channels)
        return wrong_shape(t, n_taps, n_channels, 1);
    LQ_TRY(decode(l, t, n_channels * n_taps, full.text));
    return place_vector(l, n_channels * n_taps, out);
}

void lq_scale_last_vector(lq_loader *l, uint32_t n, float scale) {
    lq_backend *backend = target(l);
    if (scale == 1.0f || backend == NULL) return;
    for (uint32_t i = 0; i < n; i++) l->host_vector[i] *= scale;
    float *last = l->model->vectors[l->device] + l->used_vectors[l->device] - n;
    backend->ops->upload(backend, last, l->host_vector, n * sizeof(float));
}

/* Reads the n factors of a matrix, the tensor <stem>.scale, into l->host_vector. NVFP4 files have them, because the
 * format's numbers reach no further than 2688. <stem>.input_scale counts as used, but has no effect: it serves to round
 * activations to 4 bits, which nothing here does. */
static lq_status read_factors(lq_loader *l, uint32_t n, const char *stem, bool *found) {
    const lq_gguf_tensor_info *input_scale = lq_gguf_find_tensor(l->gguf, full_name(l, stem, ".input_scale").text);
    tensor_name name = full_name(l, stem, ".scale");
    if (input_scale != NULL) mark_used(l, input_scale);
    LQ_TRY(read_vector(l, LQ_OPTIONAL, n, name.text, found));
    for (uint32_t i = 0; i < n && *found; i++)
        if (l->host_vector[i] == 0.0f) return lq_fail(LQ_E_FORMAT, "tensor '%s' holds 0 at %u", name.text, (unsigned)i);
    return LQ_OK;
}

static lq_status take_matrix(lq_loader *l, const lq_gguf_tensor_info *t, lq_weight *out, uint32_t n_rows,
                             uint32_t n_cols, uint32_t n_stacked) {
    uint64_t rows = n_rows != 0 ? n_rows : (t->dims[1] <= MAX_VOCAB ? t->dims[1] : 0);
    if (t->dims[0] != n_cols || t->dims[1] != rows || t->dims[2] != n_stacked || t->dims[3] != 1)
        return wrong_shape(t, n_cols, rows, n_stacked);
    out->format = t->format;
    out->n_rows = (uint32_t)rows;
    out->n_cols = n_cols;
    out->row_bytes = lq_format_row_bytes(t->format, n_cols);
    out->factors = NULL;
    if (n_cols > l->model->widest_input) l->model->widest_input = n_cols;
    out->data = t->data;
    lq_backend *backend = target(l);
    return backend != NULL ? backend->ops->adopt(backend, t->data, t->data_bytes, &out->data) : LQ_OK;
}

/* Loads a matrix with the factor of its products; *factor is the same number, 1 if there is none. */
static lq_status load_matrix(lq_loader *l, lq_weight *out, float *factor, uint32_t n_rows, uint32_t n_cols,
                             const char *stem) {
    const lq_gguf_tensor_info *t;
    bool found;
    LQ_TRY(find_tensor(l, LQ_REQUIRED, full_name(l, stem, ".weight").text, &t));
    LQ_TRY(take_matrix(l, t, out, n_rows, n_cols, 1));
    LQ_TRY(read_factors(l, 1, stem, &found));
    *factor = found ? l->host_vector[0] : 1.0f;
    return *factor != 1.0f ? place_vector(l, 1, &out->factors) : LQ_OK;
}

/* Divides the bias by the factor, because lq_project() applies the factor after it. */
lq_status lq_load_linear(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem,
                         lq_presence bias) {
    float factor;
    bool found;
    LQ_TRY(load_matrix(l, &out->weight, &factor, n_rows, n_cols, stem));
    LQ_TRY(read_vector(l, bias, n_rows, full_name(l, stem, ".bias").text, &found));
    if (!found) return LQ_OK;
    LQ_TRY(place_vector(l, n_rows, &out->bias));
    lq_scale_last_vector(l, n_rows, 1.0f / factor);
    return LQ_OK;
}

lq_status lq_load_fused(lq_loader *l, const lq_slice *slices, uint32_t n_slices, uint32_t n_cols, const char *stem) {
    lq_weight whole;
    float factor;
    uint32_t n_rows = 0, first = 0;
    for (uint32_t i = 0; i < n_slices; i++) n_rows += slices[i].n_rows;
    LQ_TRY(load_matrix(l, &whole, &factor, n_rows, n_cols, stem));
    for (uint32_t i = 0; i < n_slices; i++) {
        lq_weight *slice = &slices[i].out->weight;
        *slice = whole;
        slice->data = (const uint8_t *)whole.data + (size_t)first * whole.row_bytes;
        slice->n_rows = slices[i].n_rows;
        first += slices[i].n_rows;
    }
    return LQ_OK;
}

lq_status lq_load_stack(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem) {
    const lq_gguf_tensor_info *t;
    uint32_t n_experts = l->model->config.n_experts;
    bool found;
    LQ_TRY(find_tensor(l, LQ_REQUIRED, full_name(l, stem, ".weight").text, &t));
    LQ_TRY(take_matrix(l, t, &out->weight, n_rows, n_cols, n_experts));
    LQ_TRY(read_factors(l, n_experts, stem, &found));
    return found ? place_vector(l, n_experts, &out->weight.factors) : LQ_OK;
}

lq_status lq_load_end(lq_loader *l, lq_presence presence, lq_weight *out, float *factor, uint32_t n_rows,
                      const char *stem) {
    const lq_gguf_tensor_info *t;
    bool found;
    LQ_TRY(find_tensor(l, presence, full_name(l, stem, ".weight").text, &t));
    if (t == NULL) return LQ_OK;
    LQ_TRY(take_matrix(l, t, out, n_rows, l->model->config.n_embd, 1));
    LQ_TRY(read_factors(l, 1, stem, &found));
    *factor = found ? l->host_vector[0] : 1.0f;
    return LQ_OK;
}

/* ---- vectors of the whole model */

uint32_t lq_tensor_layer(const lq_gguf_tensor_info *t) {
    const char *name = t->name, *end = t->name + t->name_bytes;
    uint32_t layer = 0;
    if (t->name_bytes < 6 || memcmp(name, "blk.", 4) != 0) return UINT32_MAX;
    for (name += 4; name < end && *name >= '0' && *name <= '9' && layer < 1u << 24; name++)
        layer = 10 * layer + (uint32_t)(*name - '0');
    return name < end && *name == '.' && name != t->name + 4 ? layer : UINT32_MAX;
}

/* The index of a tensor's device. Vectors that belong to no layer are used with the output head. */
static uint32_t device_of(const lq_model *model, const lq_gguf_tensor_info *t) {
    uint32_t layer = lq_tensor_layer(t);
    return layer != UINT32_MAX ? lq_model_layer_device(model, layer) : model->head_device;
}

lq_status lq_count_vectors(lq_loader *l) {
    uint64_t longest = 1;
    void *memory;
    for (size_t i = 0; i < lq_gguf_n_tensors(l->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(l->gguf, i);
        uint64_t n_params = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; /* checked by the reader */
        l->model->n_params += n_params;
        l->model->weight_bytes += t->data_bytes;
        if (!is_decoded(t)) continue;
        l->n_vectors[device_of(l->model, t)] += n_params;
        if (n_params > longest) longest = n_params;
    }
    LQ_TRY(lq_alloc(longest * sizeof(float), "weights", &memory));
    l->host_vector = memory;
    for (uint32_t i = 0; i < l->model->n_devices; i++) {
        lq_backend *backend = l->model->devices[i].backend;
        LQ_TRY(backend->ops->alloc(backend, l->n_vectors[i] * sizeof(float), "weights", &memory));
        l->model->vectors[i] = memory;
        l->model->vector_bytes[i] = l->n_vectors[i] * sizeof(float);
    }
    return LQ_OK;
}
