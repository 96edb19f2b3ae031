/* models.c - opens a model, describes it, and frees it when nobody holds it any more. */
#include <string.h>

#include "core/guard.h"
#include "core/process.h"
#include "core/system.h"
#include "session/models.h"
#include "session/workspace.h"

void lq_model_options_init(lq_model_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
    options->gpu_layers = -1;
}

lq_status lq_model_open(const char *path, const lq_model_options *options, lq_model **out) {
    void *memory;
    if (path == NULL || out == NULL) return lq_fail(LQ_E_ARG, "path and out must be given");
    *out = NULL;
    if (options == NULL || options->struct_size != sizeof *options)
        return lq_fail(LQ_E_ARG, "model options were not made by lq_model_options_init of this library");
    LQ_TRY(lq_alloc(sizeof(lq_model), "model", &memory));
    lq_model *model = memory;
    atomic_init(&model->n_refs, 1);
    model->process = lq_process();
    lq_status status = lq_workspace_create(&model->workspace);
    if (status == LQ_OK) status = lq_gguf_open(path, &model->gguf);
    if (status == LQ_OK) status = lq_model_place(model, options, path);
    if (status != LQ_OK) {
        lq_model_release(model);
        return status;
    }
    *out = model;
    return LQ_OK;
}

void lq_model_retain(lq_model *model) { atomic_fetch_add(&model->n_refs, 1); }

void lq_model_release(lq_model *model) {
    if (atomic_fetch_sub(&model->n_refs, 1) != 1 || lq_model_is_stranded(model)) return;
    lq_workspace_free(model, model->workspace);
    lq_model_leave(model);
    lq_gguf_close(&model->gguf);
    lq_free(model);
}

lq_status lq_model_check_process(const lq_model *model) { return lq_check_process(model->process, "model"); }

bool lq_model_is_stranded(const lq_model *model) { return model->n_gpu_layers != 0 && model->process != lq_process(); }

void lq_model_close(lq_model **model) {
    if (model == NULL || *model == NULL) return;
    lq_model *held = *model;
    *model = NULL;
    lq_model_release(held);
}

const lq_gguf *lq_model_gguf(const lq_model *model) { return model != NULL ? model->gguf : NULL; }

/* Counts layers by what they remember, and the KV values of a token. */
static void count_layers(const lq_model *model, lq_model_info *info) {
    info->n_global_layers = info->n_recurrent_layers = 0;
    info->kv_values = info->kv_values_sliding = 0;
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        const lq_kv_layer_spec *state = &model->states[i];
        uint64_t values = (uint64_t)2 * state->n_kv_heads * state->head_dim;
        info->n_recurrent_layers += state->state_rows != 0;
        info->n_global_layers += values != 0 && state->window == 0;
        *(state->window == 0 ? &info->kv_values : &info->kv_values_sliding) += values;
    }
}

lq_status lq_model_get_info(const lq_model *model, lq_model_info *info) {
    if (model == NULL || info == NULL) return lq_fail(LQ_E_ARG, "model and info must be given");
    if (info->struct_size != sizeof *info)
        return lq_fail(LQ_E_ARG, "model info: struct_size is not this library's %zu", sizeof *info);
    const lq_config *c = &model->config;
    info->n_layers = c->n_layers;
    count_layers(model, info);
    info->n_vocab = c->n_vocab;
    info->n_embd = c->n_embd;
    info->n_heads = c->n_heads;
    info->n_kv_heads = c->n_kv_heads;
    info->head_dim = c->head_dim;
    info->window = info->kv_values_sliding == 0 ? 0 : c->window;
    info->n_ctx_train = c->n_ctx_train;
    info->n_threads = model->n_threads;
    info->n_params = model->n_params;
    info->weight_bytes = model->weight_bytes;
    info->arch = model->arch->name;
    info->device = model->device;
    info->device_name = model->device_name;
    info->device_note = model->device_note;
    info->n_gpu_layers = model->n_gpu_layers;
    info->plan = model->plan;
    return LQ_OK;
}
