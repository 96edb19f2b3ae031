/* load.c - loads a model from its file: the embedding, the layers, the head, the rope tables. config.c has checked
 * every hyperparameter against a bound; here tensors.c checks it against the shapes of the tensors it describes. */
#include <string.h>

#include "core/system.h"
#include "model/load.h"

static lq_status load_block(lq_loader *l, const lq_block *block, const lq_layer_shape *shape, lq_layer_block *out,
                            const char *norm, const char *post_norm) {
    lq_presence before = l->arch->norms == LQ_NORM_OUTPUT ? LQ_ABSENT : LQ_REQUIRED;
    lq_presence after = l->arch->norms == LQ_NORM_INPUT ? LQ_ABSENT : LQ_REQUIRED;
    uint32_t n_embd = l->model->config.n_embd;
    LQ_TRY(lq_alloc(block->weights_bytes, "layers", &out->weights));
    LQ_TRY(lq_load_vector(l, before, &out->norm, n_embd, norm));
    LQ_TRY(block->load(l, shape, out->weights));
    return lq_load_vector(l, after, &out->post_norm, n_embd, post_norm);
}

static lq_status load_layer(lq_loader *l, uint32_t index) {
    const lq_layer_shape *shape = &l->model->config.layers[index];
    lq_layer *layer = &l->model->layers[index];
    l->layer = index;
    l->device = lq_model_layer_device(l->model, index);
    LQ_TRY(
        load_block(l, lq_mixers[shape->mixer], shape, &layer->mixer, "attn_norm.weight", "post_attention_norm.weight"));
    return load_block(l, lq_ffns[shape->ffn], shape, &layer->ffn, "ffn_norm.weight", "post_ffw_norm.weight");
}

/* ---- rope factors */

/* Loads rope factors into host memory, which the caller frees; *out stays NULL if the file has none. */
static lq_status load_factors(lq_loader *l, lq_presence presence, float **out, const char *name) {
    uint32_t n_pairs = l->model->config.n_rot / 2;
    const float *on_device = NULL;
    void *memory;
    LQ_TRY(lq_load_vector(l, presence, &on_device, n_pairs, name));
    if (on_device == NULL) return LQ_OK;
    LQ_TRY(lq_alloc(n_pairs * sizeof(float), "rope factors", &memory));
    *out = memory;
    memcpy(memory, l->host_vector, n_pairs * sizeof(float)); /* host_vector still holds the decoded tensor */
    for (uint32_t i = 0; i < n_pairs; i++) {
        if (!((*out)[i] > 0.0f && (*out)[i] < 1e30f)) return lq_fail(LQ_E_FORMAT, "tensor '%s' must be positive", name);
    }
    return LQ_OK;
}

/* Loads one set of factors (Llama 3), or one for short and one for long contexts (LongRoPE). */
static lq_status load_rope(lq_loader *l) {
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

static lq_status check_vocabulary(const lq_loader *l) {
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

/* Loads the embedding, and the output head with its norm. A matrix that serves as both is loaded twice only if they are
 * on different devices; on the CPU it is the mapped file itself. */
static lq_status load_ends(lq_loader *l) {
    lq_model *model = l->model;
    lq_config *c = &model->config;
    lq_weight *head = &model->head.weight;
    float factor = 1.0f, of_head = 1.0f;
    l->layer = LQ_NO_LAYER;
    l->device = model->embed_device;
    LQ_TRY(lq_load_end(l, LQ_REQUIRED, &model->token_embd, &factor, 0, "token_embd"));
    c->embed_scale *= factor;
    c->n_vocab = model->token_embd.n_rows;
    LQ_TRY(check_vocabulary(l));
    l->device = model->head_device;
    model->head = (lq_linear){0};
    LQ_TRY(lq_load_end(l, LQ_OPTIONAL, head, &of_head, c->n_vocab, "output"));
    if (head->data == NULL) {
        *head = model->token_embd;
        of_head = factor;
        if (model->head_device != model->embed_device)
            LQ_TRY(lq_load_end(l, LQ_REQUIRED, head, &of_head, c->n_vocab, "token_embd"));
    }
    if (l->arch->output_norm != NULL)
        LQ_TRY(lq_load_vector(l, LQ_OPTIONAL, &model->output_norm, c->n_embd, l->arch->output_norm));
    if (model->output_norm == NULL)
        LQ_TRY(lq_load_vector(l, LQ_REQUIRED, &model->output_norm, c->n_embd, "output_norm.weight"));
    lq_scale_last_vector(l, c->n_embd, c->logit_scale * of_head);
    return load_rope(l);
}

static lq_status map_files(const lq_loader *l) {
    for (uint32_t i = 0; i < l->model->n_devices; i++) {
        lq_backend *backend = l->model->devices[i].backend;
        for (size_t file = 0; file < lq_gguf_n_files(l->gguf); file++) {
            uint64_t n_bytes;
            const uint8_t *bytes = lq_gguf_file_at(l->gguf, file, &n_bytes);
            LQ_TRY(backend->ops->map(backend, bytes, n_bytes));
        }
    }
    return LQ_OK;
}

static lq_status load_all(lq_loader *l) {
    lq_model *model = l->model;
    lq_config *c = &model->config;
    const char *name;
    size_t name_bytes;
    void *memory;
    LQ_TRY(lq_gguf_string(l->gguf, "general.architecture", &name, &name_bytes, NULL));
    LQ_TRY(lq_arch_find(name, name_bytes, &model->arch));
    l->arch = model->arch;
    LQ_TRY(lq_config_read(l->gguf, l->arch, c));
    LQ_TRY(lq_count_vectors(l));
    LQ_TRY(map_files(l));
    LQ_TRY(load_ends(l));
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * sizeof(lq_layer), "layers", &memory));
    model->layers = memory;
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * 2 * sizeof *model->states, "layers", &memory));
    model->states = memory;
    model->states_far = model->states + c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const lq_layer_shape *shape = &c->layers[i];
        model->states[i] = model->states_far[i] = lq_mixers[shape->mixer]->state(c, shape);
        if (c->window >= c->n_ctx_train) model->states[i].window = 0;
        LQ_TRY(load_layer(l, i));
    }
    return lq_tensors_check(l->gguf, l->used, c->n_layers, l->arch->name);
}

lq_status lq_model_load(lq_model *model) {
    lq_loader l = {.model = model, .gguf = model->gguf};
    void *memory;
    LQ_TRY(lq_alloc(lq_gguf_n_tensors(model->gguf) + 1, "tensors", &memory));
    l.used = memory;
    lq_status status = load_all(&l);
    lq_free(l.host_vector);
    lq_free(l.used);
    return status;
}

static void free_layers(lq_model *model) {
    for (uint32_t i = 0; i < model->config.n_layers && model->layers != NULL; i++) {
        lq_free(model->layers[i].mixer.weights);
        lq_free(model->layers[i].ffn.weights);
    }
    lq_free(model->layers);
    lq_free(model->config.layers);
    model->layers = NULL;
    model->config.layers = NULL;
}

/* Leaves a model that can be loaded once more, on other devices. */
void lq_model_unload(lq_model *model) {
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        backend->ops->release(backend, model->vectors[i], model->vector_bytes[i]);
        model->vectors[i] = NULL;
        model->vector_bytes[i] = 0;
    }
    lq_free(model->rope_global.frequencies);
    lq_free(model->rope_long.frequencies);
    lq_free(model->rope_sliding.frequencies);
    lq_free(model->states);
    free_layers(model);
    model->n_params = model->weight_bytes = 0;
    model->widest_input = 0;
    model->rope_global = model->rope_long = model->rope_sliding = (lq_rope_table){NULL, 0.0f};
    model->states = model->states_far = NULL;
    model->output_norm = NULL;
}
