/* load.c - names in the file -> weights by role. Nothing from the file is used before it was checked: every
 * hyperparameter against a bound (config.c) and here against the shapes of the tensors it describes. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/checked.h"
#include "core/system.h"
#include "model/model.h"

#define MAX_VOCAB (1u << 24)
#define MAX_NAME 128

typedef struct loader {
    lq_model *model;
    const lq_gguf *gguf;
    const lq_arch *arch;
    uint32_t place;                    /* of the tensors that are loaded now */
    uint64_t n_vectors[LQ_MAX_PLACES]; /* floats of all one-dimensional tensors of a place */
    uint64_t used_vectors[LQ_MAX_PLACES];
    float *host_vector; /* one of them, on the way */
    bool *used;         /* [tensors of the file] */
} loader;

/* Where tensors go now; NULL: they are only checked. */
static lq_backend *target(const loader *l) {
    return l->model->n_places != 0 ? l->model->places[l->place].backend : NULL;
}

/* ---- tensors */

static void mark_used(loader *l, const lq_gguf_tensor_info *t) { l->used[t - lq_gguf_tensor_at(l->gguf, 0)] = true; }

static lq_status find_tensor(loader *l, lq_presence presence, const char *name, const lq_gguf_tensor_info **out) {
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

/* A vector of n values, decoded to f32 in l->host_vector. *found may be NULL for a required one. */
static lq_status read_vector(loader *l, lq_presence presence, uint32_t n, const char *name, bool *found) {
    const lq_gguf_tensor_info *t;
    LQ_TRY(find_tensor(l, presence, name, &t));
    *found = t != NULL;
    if (t == NULL) return LQ_OK;
    if (t->n_dims != 1 || t->dims[0] != n) return wrong_shape(t, n, 1, 1);
    t->format->dequantize(l->host_vector, t->data, n);
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(l->host_vector[i]))
            return lq_fail(LQ_E_FORMAT,
                           "tensor '%s' holds NaN or an infinity at %u: the file is damaged or was badly made; get it "
                           "again",
                           name, (unsigned)i);
    return LQ_OK;
}

/* l->host_vector to where the tensors are that are loaded now. */
static lq_status place_vector(loader *l, uint32_t n, const float **out) {
    uint64_t *used = &l->used_vectors[l->place];
    lq_backend *backend = target(l);
    if (*used + n > l->n_vectors[l->place]) return lq_fail(LQ_E_INTERNAL, "vectors were counted wrongly");
    *out = l->host_vector; /* all that a check needs: it is there */
    if (backend == NULL) return LQ_OK;
    float *dst = l->model->vectors[l->place] + *used;
    backend->ops->upload(backend, dst, l->host_vector, n * sizeof(float));
    *used += n;
    *out = dst;
    return LQ_OK;
}

/* A vector, decoded to f32. */
static lq_status load_vector(loader *l, lq_presence presence, const float **out, uint32_t n, const char *format, ...) {
    char name[MAX_NAME];
    bool found;
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    LQ_TRY(read_vector(l, presence, n, name, &found));
    return found ? place_vector(l, n, out) : LQ_OK;
}

/* Multiplies the vector of n values that was loaded last: logits are scaled with the weights of the norm before them.
 */
static void scale_last_vector(loader *l, uint32_t n, float scale) {
    lq_backend *backend = target(l);
    if (scale == 1.0f || backend == NULL) return;
    for (uint32_t i = 0; i < n; i++) l->host_vector[i] *= scale;
    float *last = l->model->vectors[l->place] + l->used_vectors[l->place] - n;
    backend->ops->upload(backend, last, l->host_vector, n * sizeof(float));
}

/* The factors of a matrix (NVFP4 files have them: its numbers reach no further than 2688), n of them in
 * l->host_vector: the tensor name.scale beside name.weight. What is name.input_scale is for rounding activations to 4
 * bits, which nothing here does. */
static lq_status read_factors(loader *l, uint32_t n, const char *weight_name, bool *found) {
    char name[MAX_NAME + 16];
    int n_stem = (int)strlen(weight_name) - (int)strlen("weight");
    snprintf(name, sizeof name, "%.*sinput_scale", n_stem, weight_name);
    const lq_gguf_tensor_info *input_scale = lq_gguf_find_tensor(l->gguf, name);
    if (input_scale != NULL) mark_used(l, input_scale);
    snprintf(name, sizeof name, "%.*sscale", n_stem, weight_name);
    LQ_TRY(read_vector(l, LQ_OPTIONAL, n, name, found));
    for (uint32_t i = 0; i < n && *found; i++)
        if (l->host_vector[i] == 0.0f) return lq_fail(LQ_E_FORMAT, "tensor '%s' holds 0 at %u", name, (unsigned)i);
    return LQ_OK;
}

static lq_status take_matrix(loader *l, const lq_gguf_tensor_info *t, lq_weight *out, uint32_t n_rows, uint32_t n_cols,
                             uint32_t n_stacked) {
    uint64_t rows = n_rows != 0 ? n_rows : (t->dims[1] <= MAX_VOCAB ? t->dims[1] : 0);
    if (t->dims[0] != n_cols || t->dims[1] != rows || t->dims[2] != n_stacked || t->dims[3] != 1)
        return wrong_shape(t, n_cols, rows, n_stacked);
    out->format = t->format;
    out->n_rows = (uint32_t)rows;
    out->n_cols = n_cols;
    out->row_bytes = lq_format_row_bytes(t->format, n_cols);
    out->factors = NULL;
    if (t->format->block_len == 1 && t->format->block_bytes == 2) l->model->has_halves = true;
    out->data = t->data;
    lq_backend *backend = target(l);
    return backend != NULL ? backend->ops->adopt(backend, t->data, t->data_bytes, &out->data) : LQ_OK;
}

/* A matrix of n_rows outputs with its factors, of each layer one; *factor is the same number, 1 where there is none:
 * biases are divided by it, so that the factor can come after the bias. */
static lq_status load_matrix(loader *l, lq_weight *out, float *factor, uint32_t n_rows, uint32_t n_cols,
                             const char *format, ...) {
    const lq_gguf_tensor_info *t;
    char name[MAX_NAME];
    bool found;
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    LQ_TRY(find_tensor(l, LQ_REQUIRED, name, &t));
    LQ_TRY(take_matrix(l, t, out, n_rows, n_cols, 1));
    LQ_TRY(read_factors(l, 1, name, &found));
    *factor = found ? l->host_vector[0] : 1.0f;
    return *factor != 1.0f ? place_vector(l, 1, &out->factors) : LQ_OK;
}

/* The embedding or the output head, n_rows 0: of as many rows as the file has, up to MAX_VOCAB. *factor: for the caller
 * to put elsewhere. Leaves *out alone if it is not there. */
static lq_status load_end(loader *l, lq_presence presence, lq_weight *out, float *factor, uint32_t n_rows,
                          const char *name) {
    const lq_gguf_tensor_info *t;
    bool found;
    LQ_TRY(find_tensor(l, presence, name, &t));
    if (t == NULL) return LQ_OK;
    LQ_TRY(take_matrix(l, t, out, n_rows, l->model->config.n_embd, 1));
    LQ_TRY(read_factors(l, 1, name, &found));
    *factor = found ? l->host_vector[0] : 1.0f;
    return LQ_OK;
}

/* One matrix for each expert; out describes the first, the others follow. */
static lq_status load_stack(loader *l, lq_weight *out, uint32_t n_rows, uint32_t n_cols, const char *format, ...) {
    const lq_gguf_tensor_info *t;
    uint32_t n_experts = l->model->config.n_experts;
    char name[MAX_NAME];
    bool found;
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    LQ_TRY(find_tensor(l, LQ_REQUIRED, name, &t));
    LQ_TRY(take_matrix(l, t, out, n_rows, n_cols, n_experts));
    LQ_TRY(read_factors(l, n_experts, name, &found));
    return found ? place_vector(l, n_experts, &out->factors) : LQ_OK;
}

/* The bias of a matrix with a factor. */
static lq_status load_bias(loader *l, lq_presence presence, const float **out, float factor, uint32_t n,
                           const char *format, unsigned layer) {
    LQ_TRY(load_vector(l, presence, out, n, format, layer));
    if (*out != NULL) scale_last_vector(l, n, 1.0f / factor);
    return LQ_OK;
}

/* n_rows rows of a matrix from row first on. */
static lq_weight slice_rows(const lq_weight *matrix, uint32_t first, uint32_t n_rows) {
    lq_weight part = *matrix;
    part.data = (const uint8_t *)matrix->data + (size_t)first * matrix->row_bytes;
    part.n_rows = n_rows;
    return part;
}

static lq_status load_qkv(loader *l, lq_layer *w, unsigned n) {
    const lq_config *c = &l->model->config;
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    float of_q, of_k, of_v;
    if (l->arch->fused) {
        lq_weight qkv;
        LQ_TRY(load_matrix(l, &qkv, &of_q, q + 2 * kv, c->n_embd, "blk.%u.attn_qkv.weight", n));
        w->q = slice_rows(&qkv, 0, q);
        w->k = slice_rows(&qkv, q, kv);
        w->v = slice_rows(&qkv, q + kv, kv);
        return LQ_OK;
    }
    LQ_TRY(load_matrix(l, &w->q, &of_q, q, c->n_embd, "blk.%u.attn_q.weight", n));
    LQ_TRY(load_matrix(l, &w->k, &of_k, kv, c->n_embd, "blk.%u.attn_k.weight", n));
    LQ_TRY(load_matrix(l, &w->v, &of_v, kv, c->n_embd, "blk.%u.attn_v.weight", n));
    LQ_TRY(load_bias(l, l->arch->qkv_bias, &w->q_bias, of_q, q, "blk.%u.attn_q.bias", n));
    LQ_TRY(load_bias(l, l->arch->qkv_bias, &w->k_bias, of_k, kv, "blk.%u.attn_k.bias", n));
    return load_bias(l, l->arch->qkv_bias, &w->v_bias, of_v, kv, "blk.%u.attn_v.bias", n);
}

static lq_status load_attention(loader *l, lq_layer *w, unsigned n) {
    const lq_config *c = &l->model->config;
    const lq_arch *a = l->arch;
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    bool per_token = a->qk_norm == LQ_QK_NORM_TOKEN;
    lq_presence qk_norm = a->qk_norm == LQ_QK_NORM_NONE ? LQ_ABSENT : LQ_REQUIRED;
    float factor;
    LQ_TRY(load_qkv(l, w, n));
    LQ_TRY(load_vector(l, qk_norm, &w->q_norm, per_token ? q : c->head_dim, "blk.%u.attn_q_norm.weight", n));
    LQ_TRY(load_vector(l, qk_norm, &w->k_norm, per_token ? kv : c->head_dim, "blk.%u.attn_k_norm.weight", n));
    LQ_TRY(load_matrix(l, &w->attn_out, &factor, c->n_embd, q, "blk.%u.attn_output.weight", n));
    return load_bias(l, a->attn_out_bias, &w->attn_out_bias, factor, c->n_embd, "blk.%u.attn_output.bias", n);
}

static lq_status load_feed_forward(loader *l, lq_layer *w, unsigned n) {
    const lq_config *c = &l->model->config;
    lq_presence bias = l->arch->ffn_bias;
    float of_gate = 1.0f, of_up, of_down;
    if (l->arch->fused) {
        lq_weight gate_up;
        LQ_TRY(load_matrix(l, &gate_up, &of_up, 2 * c->n_ff, c->n_embd, "blk.%u.ffn_up.weight", n));
        w->gate = slice_rows(&gate_up, 0, c->n_ff);
        w->up = slice_rows(&gate_up, c->n_ff, c->n_ff);
    } else {
        LQ_TRY(load_matrix(l, &w->gate, &of_gate, c->n_ff, c->n_embd, "blk.%u.ffn_gate.weight", n));
        LQ_TRY(load_matrix(l, &w->up, &of_up, c->n_ff, c->n_embd, "blk.%u.ffn_up.weight", n));
    }
    LQ_TRY(load_matrix(l, &w->down, &of_down, c->n_embd, c->n_ff, "blk.%u.ffn_down.weight", n));
    LQ_TRY(load_bias(l, bias, &w->gate_bias, of_gate, c->n_ff, "blk.%u.ffn_gate.bias", n));
    LQ_TRY(load_bias(l, bias, &w->up_bias, of_up, c->n_ff, "blk.%u.ffn_up.bias", n));
    return load_bias(l, bias, &w->down_bias, of_down, c->n_embd, "blk.%u.ffn_down.bias", n);
}

static lq_status load_experts(loader *l, lq_layer *w, unsigned n) {
    const lq_config *c = &l->model->config;
    float factor;
    LQ_TRY(load_matrix(l, &w->router, &factor, c->n_experts, c->n_embd, "blk.%u.ffn_gate_inp.weight", n));
    LQ_TRY(load_stack(l, &w->gate, c->n_ff_expert, c->n_embd, "blk.%u.ffn_gate_exps.weight", n));
    LQ_TRY(load_stack(l, &w->up, c->n_ff_expert, c->n_embd, "blk.%u.ffn_up_exps.weight", n));
    return load_stack(l, &w->down, c->n_embd, c->n_ff_expert, "blk.%u.ffn_down_exps.weight", n);
}

static lq_status load_layer(loader *l, uint32_t i) {
    const lq_config *c = &l->model->config;
    lq_layer *w = &l->model->layers[i];
    lq_presence before = l->arch->norms == LQ_NORM_OUTPUT ? LQ_ABSENT : LQ_REQUIRED;
    lq_presence after = l->arch->norms == LQ_NORM_INPUT ? LQ_ABSENT : LQ_REQUIRED;
    unsigned n = i;
    LQ_TRY(load_vector(l, before, &w->attn_norm, c->n_embd, "blk.%u.attn_norm.weight", n));
    LQ_TRY(load_attention(l, w, n));
    LQ_TRY(load_vector(l, after, &w->post_attn_norm, c->n_embd, "blk.%u.post_attention_norm.weight", n));
    LQ_TRY(load_vector(l, before, &w->ffn_norm, c->n_embd, "blk.%u.ffn_norm.weight", n));
    LQ_TRY((c->n_experts != 0 ? load_experts : load_feed_forward)(l, w, n));
    return load_vector(l, after, &w->post_ffn_norm, c->n_embd, "blk.%u.post_ffw_norm.weight", n);
}

/* ---- rope factors */

/* Rope factors in host memory, which the caller frees; NULL where the file has none. */
static lq_status load_factors(loader *l, lq_presence presence, float **out, const char *name) {
    uint32_t n_pairs = l->model->config.n_rot / 2;
    const float *on_device = NULL;
    void *memory;
    LQ_TRY(load_vector(l, presence, &on_device, n_pairs, "%s", name));
    if (on_device == NULL) return LQ_OK;
    LQ_TRY(lq_alloc(n_pairs * sizeof(float), "rope factors", &memory));
    *out = memory;
    memcpy(memory, l->host_vector, n_pairs * sizeof(float)); /* it still holds what was just decoded */
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (!((*out)[i] > 0.0f && (*out)[i] < 1e30f)) return lq_fail(LQ_E_FORMAT, "tensor '%s' must be positive", name);
    }
    return LQ_OK;
}

/* One set of factors (Llama 3), or one for short and one for long contexts (LongRoPE). */
static lq_status load_rope(loader *l) {
    float *all = NULL, *brief = NULL, *wide = NULL;
    lq_presence presence = l->arch->rope_factors;
    lq_status status = load_factors(l, presence, &all, "rope_freqs.weight");
    if (status == LQ_OK) status = load_factors(l, presence, &brief, "rope_factors_short.weight");
    if (status == LQ_OK)
        status = load_factors(l, brief != NULL ? LQ_REQUIRED : LQ_ABSENT, &wide, "rope_factors_long.weight");
    if (status == LQ_OK && all != NULL && brief != NULL)
        status = lq_fail(LQ_E_FORMAT, "the file has both rope_freqs.weight and rope_factors_short.weight");
    if (status == LQ_OK) status = lq_rope_load(l->model, all != NULL ? all : brief, wide);
    lq_free(all);
    lq_free(brief);
    lq_free(wide);
    return status;
}

/* ---- the whole */

uint32_t lq_tensor_layer(const lq_gguf_tensor_info *t) {
    const char *name = t->name, *end = t->name + t->name_bytes;
    uint32_t layer = 0;
    if (t->name_bytes < 6 || memcmp(name, "blk.", 4) != 0) return UINT32_MAX;
    for (name += 4; name < end && *name >= '0' && *name <= '9' && layer < 1u << 24; name++)
        layer = 10 * layer + (uint32_t)(*name - '0');
    return name < end && *name == '.' && name != t->name + 4 ? layer : UINT32_MAX;
}

/* Of a tensor that is no layer's: the vectors among them belong to the head. */
static uint32_t tensor_place(const lq_model *model, const lq_gguf_tensor_info *t) {
    uint32_t layer = lq_tensor_layer(t);
    return layer != UINT32_MAX ? lq_model_layer_place(model, layer) : model->head_place;
}

static lq_status count_vectors(loader *l) {
    uint64_t longest = 1;
    void *memory;
    for (size_t i = 0; i < lq_gguf_n_tensors(l->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(l->gguf, i);
        uint64_t n_params = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; /* checked by the reader */
        l->model->n_params += n_params;
        l->model->weight_bytes += t->data_bytes;
        if (t->n_dims != 1 || t->format == NULL) continue;
        l->n_vectors[tensor_place(l->model, t)] += t->dims[0];
        if (t->dims[0] > longest) longest = t->dims[0];
    }
    LQ_TRY(lq_alloc(longest * sizeof(float), "weights", &memory));
    l->host_vector = memory;
    for (uint32_t i = 0; i < l->model->n_places; i++) {
        lq_backend *backend = l->model->places[i].backend;
        LQ_TRY(backend->ops->alloc(backend, l->n_vectors[i] * sizeof(float), "weights", &memory));
        l->model->vectors[i] = memory;
        l->model->vector_bytes[i] = l->n_vectors[i] * sizeof(float);
    }
    return LQ_OK;
}

static lq_status check_vocabulary(const loader *l) {
    uint64_t n_tokens;
    int32_t item_type;
    const void *data;
    bool found;
    LQ_TRY(lq_gguf_array(l->gguf, "tokenizer.ggml.tokens", &item_type, &n_tokens, &data, &found));
    if (found && n_tokens != l->model->config.n_vocab)
        return lq_fail(LQ_E_FORMAT, "the file lists %llu tokens but embeds %u", (unsigned long long)n_tokens,
                       (unsigned)l->model->config.n_vocab);
    return LQ_OK;
}

/* The embedding, and the output head with its norm. A matrix that is both is on two devices only where they are on
 * two: the CPU's is the file itself. */
static lq_status load_ends(loader *l) {
    lq_model *model = l->model;
    lq_config *c = &model->config;
    float factor = 1.0f, of_head = 1.0f;
    l->place = model->embed_place;
    LQ_TRY(load_end(l, LQ_REQUIRED, &model->token_embd, &factor, 0, "token_embd.weight"));
    c->embed_scale *= factor;
    c->n_vocab = model->token_embd.n_rows;
    LQ_TRY(check_vocabulary(l));
    l->place = model->head_place;
    model->head = (lq_weight){0};
    LQ_TRY(load_end(l, LQ_OPTIONAL, &model->head, &of_head, c->n_vocab, "output.weight"));
    if (model->head.data == NULL) {
        model->head = model->token_embd;
        of_head = factor;
        if (model->head_place != model->embed_place)
            LQ_TRY(load_end(l, LQ_REQUIRED, &model->head, &of_head, c->n_vocab, "token_embd.weight"));
    }
    LQ_TRY(load_vector(l, LQ_REQUIRED, &model->output_norm, c->n_embd, "output_norm.weight"));
    scale_last_vector(l, c->n_embd, c->logit_scale * of_head);
    return load_rope(l);
}

static lq_status map_files(const loader *l) {
    for (uint32_t i = 0; i < l->model->n_places; i++) {
        lq_backend *backend = l->model->places[i].backend;
        for (size_t file = 0; file < lq_gguf_n_files(l->gguf); file++) {
            uint64_t n_bytes;
            const uint8_t *bytes = lq_gguf_file_at(l->gguf, file, &n_bytes);
            LQ_TRY(backend->ops->map(backend, bytes, n_bytes));
        }
    }
    return LQ_OK;
}

static lq_status load_all(loader *l) {
    lq_model *model = l->model;
    lq_config *c = &model->config;
    const char *name;
    size_t name_bytes;
    void *memory;
    LQ_TRY(lq_gguf_string(l->gguf, "general.architecture", &name, &name_bytes, NULL));
    LQ_TRY(lq_arch_find(name, name_bytes, &model->arch));
    l->arch = model->arch;
    LQ_TRY(lq_config_read(l->gguf, l->arch, c));
    LQ_TRY(count_vectors(l));
    LQ_TRY(map_files(l));
    LQ_TRY(load_ends(l));
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * sizeof(lq_layer), "layers", &memory));
    model->layers = memory;
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * 2 * sizeof *model->states, "layers", &memory));
    model->states = memory;
    model->states_far = model->states + c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        model->states[i] = model->states_far[i] =
            (lq_kv_layer_spec){c->n_kv_heads, c->head_dim, c->slides[i] ? c->window : 0, 0, 0};
        if (c->window >= c->n_ctx_train) model->states[i].window = 0;
        l->place = lq_model_layer_place(model, i);
        LQ_TRY(load_layer(l, i));
    }
    return lq_tensors_check(l->gguf, l->used, c->n_layers, l->arch->name);
}

lq_status lq_model_load(lq_model *model) {
    loader l = {.model = model, .gguf = model->gguf};
    void *memory;
    LQ_TRY(lq_alloc(lq_gguf_n_tensors(model->gguf) + 1, "tensors", &memory));
    l.used = memory;
    lq_status status = load_all(&l);
    lq_free(l.host_vector);
    lq_free(l.used);
    return status;
}

/* Leaves a model that can be loaded once more, at other places. */
void lq_model_unload(lq_model *model) {
    for (uint32_t i = 0; i < model->n_places; i++) {
        lq_backend *backend = model->places[i].backend;
        backend->ops->release(backend, model->vectors[i], model->vector_bytes[i]);
        model->vectors[i] = NULL;
        model->vector_bytes[i] = 0;
    }
    lq_free(model->rope_global.frequencies);
    lq_free(model->rope_long.frequencies);
    lq_free(model->rope_sliding.frequencies);
    lq_free(model->states);
    lq_free(model->layers);
    model->n_params = model->weight_bytes = 0;
    model->has_halves = false;
    model->rope_global = model->rope_long = model->rope_sliding = (lq_rope_table){NULL, 0.0f};
    model->states = model->states_far = NULL;
    model->layers = NULL;
}
