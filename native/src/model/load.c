/* load.c - names in the file -> weights by role. Nothing from the file is used before it was checked here: every
 * hyperparameter against a bound and against the shapes of the tensors it describes. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/checked.h"
#include "core/system.h"
#include "model/model.h"

/* Bounds that keep every product of two sizes within 32 bits; far above any model made so far. */
#define MAX_LAYERS 4096
#define MAX_HEADS 4096
#define MAX_HEAD_DIM 1024
#define MAX_WIDTH (1u << 22)
#define MAX_VOCAB (1u << 24)
#define MAX_CONTEXT (1u << 28)

typedef struct loader {
    lq_model *model;
    const lq_gguf *gguf;
    const lq_arch *arch;
    float *vectors; /* device memory for all one-dimensional tensors, decoded to f32 */
    uint64_t n_vectors;
    uint64_t used_vectors;
    float *host_vector; /* one of them, on the way */
    uint64_t n_used_tensors;
} loader;

/* ---- hyperparameters */

static lq_status bounded(const char *key, uint32_t value, uint32_t least, uint32_t most) {
    if (value >= least && value <= most) return LQ_OK;
    return lq_fail(LQ_E_FORMAT, "key '%s' is %u; it must be %u to %u", key, (unsigned)value, (unsigned)least,
                   (unsigned)most);
}

typedef struct key_name {
    char text[128];
} key_name;

static key_name arch_key(const loader *l, const char *suffix) {
    key_name key;
    snprintf(key.text, sizeof key.text, "%s.%s", l->arch->name, suffix);
    return key;
}

static lq_status read_u32(const loader *l, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    key_name key = arch_key(l, suffix);
    LQ_TRY(lq_gguf_u32(l->gguf, key.text, out, NULL));
    return bounded(key.text, *out, least, most);
}

static lq_status read_optional_u32(const loader *l, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    key_name key = arch_key(l, suffix);
    bool found;
    LQ_TRY(lq_gguf_u32(l->gguf, key.text, out, &found));
    return found ? bounded(key.text, *out, least, most) : LQ_OK;
}

static lq_status read_optional_positive(const loader *l, const char *suffix, float *out) {
    key_name key = arch_key(l, suffix);
    bool found;
    LQ_TRY(lq_gguf_f32(l->gguf, key.text, out, &found));
    if (found && !(*out > 0.0f && *out < 1e30f))
        return lq_fail(LQ_E_FORMAT, "key '%s' must be a positive number", key.text);
    return LQ_OK;
}

/* Keys that change the arithmetic in ways no architecture of this build declares: better refused than ignored. */
static lq_status refuse_foreign_keys(const loader *l) {
    static const char *const suffixes[] = {
        "attn_logit_softcapping", "final_logit_softcapping", "attention.scale", "logit_scale",
        "residual_scale",         "embedding_scale",         "expert_count"};
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        key_name key = arch_key(l, suffixes[i]);
        if (lq_gguf_find(l->gguf, key.text) < 0) continue;
        uint32_t integer = 0;
        float number = 0.0f;
        bool found;
        /* Writers store zero for "not used", in either kind of number. */
        if (lq_gguf_u32(l->gguf, key.text, &integer, &found) == LQ_OK && integer == 0) continue;
        if (lq_gguf_f32(l->gguf, key.text, &number, &found) == LQ_OK && number == 0.0f) continue;
        return lq_fail(LQ_E_UNSUPPORTED, "the model sets '%s', which this build does not run for %s", key.text,
                       l->arch->name);
    }
    return LQ_OK;
}

static lq_status read_config(loader *l) {
    lq_config *c = &l->model->config;
    LQ_TRY(read_u32(l, "block_count", 1, MAX_LAYERS, &c->n_layers));
    LQ_TRY(read_u32(l, "embedding_length", 1, MAX_WIDTH, &c->n_embd));
    LQ_TRY(read_u32(l, "feed_forward_length", 1, MAX_WIDTH, &c->n_ff));
    LQ_TRY(read_u32(l, "attention.head_count", 1, MAX_HEADS, &c->n_heads));
    LQ_TRY(read_u32(l, "context_length", 1, MAX_CONTEXT, &c->n_ctx_train));
    c->n_kv_heads = c->n_heads;
    LQ_TRY(read_optional_u32(l, "attention.head_count_kv", 1, c->n_heads, &c->n_kv_heads));
    if (c->n_heads % c->n_kv_heads != 0)
        return lq_fail(LQ_E_FORMAT, "%u attention heads cannot share %u KV heads evenly", (unsigned)c->n_heads,
                       (unsigned)c->n_kv_heads);
    c->head_dim = c->n_embd / c->n_heads;
    LQ_TRY(read_optional_u32(l, "attention.key_length", 2, MAX_HEAD_DIM, &c->head_dim));
    LQ_TRY(bounded("head size", c->head_dim, 2, MAX_HEAD_DIM));
    uint32_t value_dim = c->head_dim;
    LQ_TRY(read_optional_u32(l, "attention.value_length", 1, MAX_HEAD_DIM, &value_dim));
    if (value_dim != c->head_dim)
        return lq_fail(LQ_E_UNSUPPORTED, "keys of %u and values of %u a head: only equal sizes are supported",
                       (unsigned)c->head_dim, (unsigned)value_dim);
    c->n_rot = c->head_dim;
    LQ_TRY(read_optional_u32(l, "rope.dimension_count", 2, c->head_dim, &c->n_rot));
    if (c->n_rot % 2 != 0) return lq_fail(LQ_E_FORMAT, "rope over %u values a head: must be even", (unsigned)c->n_rot);
    key_name eps = arch_key(l, "attention.layer_norm_rms_epsilon");
    LQ_TRY(lq_gguf_f32(l->gguf, eps.text, &c->norm_eps, NULL));
    if (!(c->norm_eps >= 0.0f && c->norm_eps < 1.0f))
        return lq_fail(LQ_E_FORMAT, "key '%s' must be between 0 and 1", eps.text);
    if (l->arch->global_period != 0) LQ_TRY(read_u32(l, "attention.sliding_window", 1, MAX_CONTEXT, &c->window));
    c->attn_scale = 1.0f / sqrtf((float)c->head_dim);
    c->embed_scale = l->arch->scale_embedding ? sqrtf((float)c->n_embd) : 1.0f;
    return LQ_OK;
}

/* ---- tensors */

static lq_status find_tensor(loader *l, lq_presence presence, const lq_gguf_tensor_info **out, const char *format,
                             va_list args) {
    char name[128];
    vsnprintf(name, sizeof name, format, args);
    *out = presence == LQ_ABSENT ? NULL : lq_gguf_find_tensor(l->gguf, name);
    if (*out == NULL) {
        if (presence == LQ_REQUIRED) return lq_fail(LQ_E_FORMAT, "tensor '%s' is missing", name);
        return LQ_OK;
    }
    if ((*out)->format == NULL)
        return lq_fail(LQ_E_UNSUPPORTED, "tensor '%s' has type %d, which this build cannot decode", name,
                       (int)(*out)->type);
    l->n_used_tensors++;
    return LQ_OK;
}

static lq_status wrong_shape(const lq_gguf_tensor_info *t, uint64_t n_cols, uint64_t n_rows) {
    return lq_fail(LQ_E_FORMAT, "tensor '%.*s' has shape [%llu, %llu], expected [%llu, %llu]",
                   (int)(t->name_bytes < 100 ? t->name_bytes : 100), t->name, (unsigned long long)t->dims[0],
                   (unsigned long long)t->dims[1], (unsigned long long)n_cols, (unsigned long long)n_rows);
}

/* A matrix of n_rows outputs; n_rows 0 takes what the file has, up to MAX_VOCAB. */
static lq_status load_matrix(loader *l, lq_presence presence, lq_weight *out, uint32_t n_rows, uint32_t n_cols,
                             const char *format, ...) {
    const lq_gguf_tensor_info *t;
    va_list args;
    va_start(args, format);
    lq_status status = find_tensor(l, presence, &t, format, args);
    va_end(args);
    if (status != LQ_OK || t == NULL) return status;
    uint64_t rows = n_rows != 0 ? n_rows : (t->dims[1] <= MAX_VOCAB ? t->dims[1] : 0);
    if (t->dims[0] != n_cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return wrong_shape(t, n_cols, rows);
    out->format = t->format;
    out->n_rows = (uint32_t)rows;
    out->n_cols = n_cols;
    out->row_bytes = lq_format_row_bytes(t->format, n_cols);
    return l->model->backend->ops->adopt(l->model->backend, t->data, t->data_bytes, &out->data);
}

/* A vector, decoded to f32. */
static lq_status load_vector(loader *l, lq_presence presence, const float **out, uint32_t n, const char *format, ...) {
    const lq_gguf_tensor_info *t;
    va_list args;
    va_start(args, format);
    lq_status status = find_tensor(l, presence, &t, format, args);
    va_end(args);
    if (status != LQ_OK || t == NULL) return status;
    if (t->n_dims != 1 || t->dims[0] != n) return wrong_shape(t, n, 1);
    if (l->used_vectors + n > l->n_vectors) return lq_fail(LQ_E_INTERNAL, "vectors were counted wrongly");
    float *dst = l->vectors + l->used_vectors;
    t->format->dequantize(l->host_vector, t->data, n);
    l->model->backend->ops->upload(l->model->backend, dst, l->host_vector, n * sizeof(float));
    l->used_vectors += n;
    *out = dst;
    return LQ_OK;
}

static lq_status load_layer(loader *l, uint32_t i) {
    const lq_config *c = &l->model->config;
    const lq_arch *a = l->arch;
    lq_layer *w = &l->model->layers[i];
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    unsigned n = i;
    LQ_TRY(load_vector(l, LQ_REQUIRED, &w->attn_norm, c->n_embd, "blk.%u.attn_norm.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->q, q, c->n_embd, "blk.%u.attn_q.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->k, kv, c->n_embd, "blk.%u.attn_k.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->v, kv, c->n_embd, "blk.%u.attn_v.weight", n));
    LQ_TRY(load_vector(l, a->qkv_bias, &w->q_bias, q, "blk.%u.attn_q.bias", n));
    LQ_TRY(load_vector(l, a->qkv_bias, &w->k_bias, kv, "blk.%u.attn_k.bias", n));
    LQ_TRY(load_vector(l, a->qkv_bias, &w->v_bias, kv, "blk.%u.attn_v.bias", n));
    LQ_TRY(load_vector(l, a->qk_norm, &w->q_norm, c->head_dim, "blk.%u.attn_q_norm.weight", n));
    LQ_TRY(load_vector(l, a->qk_norm, &w->k_norm, c->head_dim, "blk.%u.attn_k_norm.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->attn_out, c->n_embd, q, "blk.%u.attn_output.weight", n));
    LQ_TRY(load_vector(l, a->attn_out_bias, &w->attn_out_bias, c->n_embd, "blk.%u.attn_output.bias", n));
    LQ_TRY(load_vector(l, a->post_norms, &w->post_attn_norm, c->n_embd, "blk.%u.post_attention_norm.weight", n));
    LQ_TRY(load_vector(l, LQ_REQUIRED, &w->ffn_norm, c->n_embd, "blk.%u.ffn_norm.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->gate, c->n_ff, c->n_embd, "blk.%u.ffn_gate.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->up, c->n_ff, c->n_embd, "blk.%u.ffn_up.weight", n));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &w->down, c->n_embd, c->n_ff, "blk.%u.ffn_down.weight", n));
    return load_vector(l, a->post_norms, &w->post_ffn_norm, c->n_embd, "blk.%u.post_ffw_norm.weight", n);
}

/* ---- rope */

static lq_status rope_scale(const loader *l, float *scale) {
    key_name key = arch_key(l, "rope.scaling.type");
    const char *kind = "none";
    size_t n = 4;
    float factor = 1.0f;
    bool found;
    *scale = 1.0f;
    LQ_TRY(lq_gguf_string(l->gguf, key.text, &kind, &n, &found));
    if (n == 4 && memcmp(kind, "none", 4) == 0) return LQ_OK;
    if (n != 6 || memcmp(kind, "linear", 6) != 0)
        return lq_fail(LQ_E_UNSUPPORTED, "rope scaling '%.*s' is not supported; this build has: none, linear",
                       (int)(n < 40 ? n : 40), kind);
    LQ_TRY(read_optional_positive(l, "rope.scaling.factor", &factor));
    *scale = 1.0f / factor;
    return LQ_OK;
}

static lq_status fill_rope(const loader *l, lq_rope_table *table, float base, float scale, const float *factors) {
    uint32_t n_rot = l->model->config.n_rot;
    void *memory;
    LQ_TRY(lq_alloc(n_rot / 2 * sizeof(float), "rope table", &memory));
    table->frequencies = memory;
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double frequency = pow((double)base, -2.0 * i / n_rot) * scale;
        table->frequencies[i] = (float)(factors != NULL ? frequency / factors[i] : frequency);
    }
    return LQ_OK;
}

static lq_status load_rope(loader *l) {
    lq_model *model = l->model;
    uint32_t n_pairs = model->config.n_rot / 2;
    float base = l->arch->rope_base, base_sliding = l->arch->rope_base_sliding, scale;
    const float *factors = NULL;
    LQ_TRY(read_optional_positive(l, "rope.freq_base", &base));
    LQ_TRY(rope_scale(l, &scale));
    LQ_TRY(load_vector(l, l->arch->rope_factors, &factors, n_pairs, "rope_freqs.weight"));
    if (factors != NULL) {
        factors = l->host_vector; /* still holds what was just decoded */
        for (uint32_t i = 0; i < n_pairs; i++) {
            if (!(factors[i] > 0.0f)) return lq_fail(LQ_E_FORMAT, "tensor 'rope_freqs.weight' must be positive");
        }
    }
    LQ_TRY(fill_rope(l, &model->rope_global, base, scale, factors));
    if (model->config.window == 0) return LQ_OK;
    LQ_TRY(read_optional_positive(l, "rope.freq_base_swa", &base_sliding));
    return fill_rope(l, &model->rope_sliding, base_sliding, 1.0f, NULL);
}

/* ---- the whole */

static lq_status count_vectors(loader *l) {
    uint64_t longest = 1;
    void *memory;
    for (size_t i = 0; i < lq_gguf_n_tensors(l->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(l->gguf, i);
        uint64_t n_params = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; /* checked by the reader */
        l->model->n_params += n_params;
        l->model->weight_bytes += t->data_bytes;
        if (t->n_dims != 1 || t->format == NULL) continue;
        l->n_vectors += t->dims[0];
        if (t->dims[0] > longest) longest = t->dims[0];
    }
    LQ_TRY(lq_alloc(longest * sizeof(float), "weights", &memory));
    l->host_vector = memory;
    LQ_TRY(l->model->backend->ops->alloc(l->model->backend, l->n_vectors * sizeof(float), "weights", &memory));
    l->model->vectors = memory;
    l->model->vector_bytes = l->n_vectors * sizeof(float);
    l->vectors = memory;
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

static lq_status load_all(loader *l) {
    lq_model *model = l->model;
    lq_config *c = &model->config;
    const char *name;
    size_t name_bytes;
    void *memory;
    LQ_TRY(lq_gguf_string(l->gguf, "general.architecture", &name, &name_bytes, NULL));
    LQ_TRY(lq_arch_find(name, name_bytes, &model->arch));
    l->arch = model->arch;
    LQ_TRY(refuse_foreign_keys(l));
    LQ_TRY(read_config(l));
    LQ_TRY(count_vectors(l));
    LQ_TRY(load_matrix(l, LQ_REQUIRED, &model->token_embd, 0, c->n_embd, "token_embd.weight"));
    c->n_vocab = model->token_embd.n_rows;
    LQ_TRY(check_vocabulary(l));
    model->head = model->token_embd;
    LQ_TRY(load_matrix(l, LQ_OPTIONAL, &model->head, c->n_vocab, c->n_embd, "output.weight"));
    LQ_TRY(load_vector(l, LQ_REQUIRED, &model->output_norm, c->n_embd, "output_norm.weight"));
    LQ_TRY(load_rope(l));
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * sizeof(lq_layer), "layers", &memory));
    model->layers = memory;
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * sizeof(uint32_t), "layers", &memory));
    model->windows = memory;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        bool global = l->arch->global_period == 0 || (i + 1) % l->arch->global_period == 0;
        model->windows[i] = global ? 0 : c->window;
        LQ_TRY(load_layer(l, i));
    }
    /* A tensor nobody asked for is a part of the model that would silently not be run. */
    if (l->n_used_tensors != lq_gguf_n_tensors(l->gguf))
        return lq_fail(
            LQ_E_UNSUPPORTED, "the file has %llu tensors that architecture %s does not use: not a plain %s model",
            (unsigned long long)(lq_gguf_n_tensors(l->gguf) - l->n_used_tensors), l->arch->name, l->arch->name);
    return LQ_OK;
}

lq_status lq_model_load(lq_model *model) {
    loader l = {.model = model, .gguf = model->gguf};
    lq_status status = load_all(&l);
    lq_free(l.host_vector);
    return status;
}

void lq_model_unload(lq_model *model) {
    if (model->backend != NULL) model->backend->ops->release(model->backend, model->vectors, model->vector_bytes);
    lq_free(model->rope_global.frequencies);
    lq_free(model->rope_sliding.frequencies);
    lq_free(model->windows);
    lq_free(model->layers);
}
