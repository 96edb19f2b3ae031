/* forward.c - the one forward pass: layers differ by their blocks, architectures by values in lq_arch. */
#include <math.h>
#include <string.h>

#include "model/pass.h"

static void set_device(lq_pass *f, uint32_t device) {
    f->device = device;
    f->backend = f->model->devices[device].backend;
    f->ops = f->backend->ops;
    f->s = &f->state->at[device];
}

/* Moves the pass to a device. It copies the residual stream alone: no other activations outlive a block. */
static void go_to(lq_pass *f, uint32_t device) {
    if (device == f->device) return;
    size_t n_bytes = (size_t)f->n_tokens * f->model->config.n_embd * sizeof(float);
    f->ops->download(f->backend, f->state->crossing, f->s->x, n_bytes);
    set_device(f, device);
    f->ops->upload(f->backend, f->s->x, f->state->crossing, n_bytes);
}

/* Products of few rows use other kernels, which round otherwise, but a tentative token's result must not depend on how
 * many tokens came with it. The results of padding rows are never used. */
static uint32_t padded_rows(const lq_pass *f, uint32_t n_rows) {
    return f->is_tentative && n_rows != 0 && n_rows < LQ_LEAST_ALIKE ? LQ_LEAST_ALIKE : n_rows;
}

static void embed(const lq_pass *f) {
    const lq_model *model = f->model;
    uint32_t n_embd = model->config.n_embd, row = 0;
    for (uint32_t i = 0; i < f->n_parts; i++)
        for (uint32_t t = 0; t < f->parts[i].n_tokens; t++)
            f->state->tokens[row++] = f->parts[i].tokens != NULL ? f->parts[i].tokens[t] : 0;
    while (row < f->n_tokens) f->state->tokens[row++] = 0;
    f->ops->embed(f->backend, f->s->x, &model->token_embd, f->state->tokens, f->n_tokens, model->config.embed_scale);
    row = 0;
    for (uint32_t i = 0; i < f->n_parts; row += f->parts[i++].n_tokens)
        if (f->parts[i].tokens == NULL)
            f->ops->upload(f->backend, f->s->x + (size_t)row * n_embd, f->parts[i].rows,
                           (size_t)f->parts[i].n_tokens * n_embd * sizeof(float));
}

/* Computes the rotations of all rows, by one table for all parts or, if that is NULL, by each part's own. Angles are
 * double: at position 30,000 a float angle is off by up to 0.001. */
static void fill_rotations(const lq_pass *f, const lq_rope_table *shared) {
    uint32_t n_rot = f->model->config.n_rot;
    float *out = f->state->rotations_host;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const lq_pass_part *part = &f->parts[i];
        const lq_rope_table *table = shared != NULL ? shared : part->rope_global;
        for (uint32_t t = 0; t < part->n_tokens; t++) {
            for (uint32_t pair = 0; pair < n_rot / 2; pair++) {
                double angle = (double)(part->pos0 + t) * (double)table->frequencies[pair];
                *out++ = (float)(cos(angle) * table->magnitude);
                *out++ = (float)(sin(angle) * table->magnitude);
            }
        }
    }
    float *end = f->state->rotations_host + (size_t)f->n_tokens * n_rot;
    if (out < end) memset(out, 0, (size_t)(end - out) * sizeof *out);
}

/* Computes rotations and uploads them to every device that has layers. */
static void upload_rotations(const lq_pass *f) {
    const lq_model *model = f->model;
    size_t n_bytes = (size_t)f->n_tokens * model->config.n_rot * sizeof(float);
    bool slides = model->rope_sliding.frequencies != NULL;
    for (int sliding = 0; sliding <= slides; sliding++) {
        fill_rotations(f, sliding ? &model->rope_sliding : NULL);
        for (uint32_t i = 0; i < model->n_devices; i++) {
            const lq_device_layers *device = &model->devices[i];
            const lq_activations *s = &f->state->at[i];
            if (device->end_layer == device->first_layer) continue;
            device->backend->ops->upload(device->backend, sliding ? s->rotations_sliding : s->rotations_global,
                                         f->state->rotations_host, n_bytes);
        }
    }
}

const float *lq_normed(const lq_pass *f, float *dst, const float *x, const float *weight, uint32_t n_rows,
                       uint32_t n_cols) {
    if (weight == NULL) return x;
    f->ops->rms_norm(f->backend, dst, x, weight, n_rows, n_cols, f->model->config.norm_eps);
    return dst;
}

/* Adds a block's output to the residual stream, after its norm if it has one. */
static void add_branch(const lq_pass *f, const float *post_norm) {
    const lq_config *p = &f->model->config;
    const float *branch = lq_normed(f, f->s->branch, f->s->branch, post_norm, f->n_tokens, p->n_embd);
    f->ops->add(f->backend, f->s->x, branch, p->residual_scale, (size_t)f->n_tokens * p->n_embd);
}

bool lq_pass_is_cancelled(const void *context) {
    const lq_pass *f = context;
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (atomic_load_explicit(f->parts[i].cancel, memory_order_relaxed) != 0) return true;
    return false;
}

/* After the last mixer only rows whose logits are asked for matter, so they move to the front. */
void lq_keep_logit_rows(lq_pass *f, float *rows, size_t n_cols) {
    size_t x_cols = f->model->config.n_embd, row = 0, kept = 0;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const lq_pass_part *part = &f->parts[i];
        row += part->n_tokens - part->n_logits;
        for (uint32_t j = 0; j < part->n_logits; j++, row++, kept++) {
            if (row == kept) continue;
            f->ops->copy(f->backend, f->s->x + kept * x_cols, f->s->x + row * x_cols, x_cols * sizeof(float));
            f->ops->copy(f->backend, rows + kept * n_cols, rows + row * n_cols, n_cols * sizeof(float));
        }
    }
    f->n_tokens = padded_rows(f, (uint32_t)kept);
}

/* The destination of a row of logits, in device or host memory. */
typedef struct logits_out {
    float *to;
    bool on_device;
} logits_out;

/* Computes the logits of n rows from row first on, and copies each to its destination. */
static void flush_logits(const lq_pass *f, const logits_out *outs, uint32_t first, uint32_t n) {
    const lq_config *p = &f->model->config;
    const lq_projection head = {&f->model->head, f->s->logits};
    if (n == 0) return;
    uint32_t n_rows = padded_rows(f, n);
    f->ops->rms_norm(f->backend, f->s->norm, f->s->x + (size_t)first * p->n_embd, f->model->output_norm, n_rows,
                     p->n_embd, p->norm_eps);
    lq_project(f, &head, 1, f->s->norm, n_rows);
    if (p->final_softcap > 0.0f) f->ops->softcap(f->backend, f->s->logits, p->final_softcap, (size_t)n * p->n_vocab);
    for (uint32_t i = 0; i < n; i++) {
        const float *row = f->s->logits + (size_t)i * p->n_vocab;
        if (outs[i].on_device)
            f->ops->copy(f->backend, outs[i].to, row, p->n_vocab * sizeof(float));
        else
            f->ops->download(f->backend, outs[i].to, row, p->n_vocab * sizeof(float));
    }
}

/* The head matrix is the largest weight, so it multiplies only the rows whose logits are asked for, several at once. No
 * other rows are left by now (lq_keep_logit_rows). */
static void write_logits(const lq_pass *f) {
    const lq_config *p = &f->model->config;
    logits_out outs[LQ_LOGIT_ROWS] = {{NULL, false}};
    uint32_t n = 0, row = 0;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        for (uint32_t j = 0; j < f->parts[i].n_logits; j++) {
            const lq_pass_part *part = &f->parts[i];
            bool on_device = part->device_logits != NULL;
            outs[n++] =
                (logits_out){on_device ? part->device_logits : part->logits + (size_t)j * p->n_vocab, on_device};
            if (n < f->state->n_logit_rows) continue;
            flush_logits(f, outs, row, n);
            row += n;
            n = 0;
        }
    }
    flush_logits(f, outs, row, n);
}

static bool can_undo(const lq_pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (!f->parts[i].can_undo && !lq_kv_cache_can_undo(f->parts[i].cache, f->parts[i].tentative)) return false;
    return true;
}

static void watch(const lq_pass *f) {
    for (uint32_t i = 0; i < f->model->n_devices; i++) {
        lq_backend *backend = f->model->devices[i].backend;
        if (backend->ops->watch != NULL) backend->ops->watch(backend, lq_pass_is_cancelled, f);
    }
}

static bool is_abandoned(const lq_pass *f) {
    return f->n_parts == 1 && (atomic_load_explicit(f->parts[0].cancel, memory_order_relaxed) & LQ_PASS_ABANDON) != 0;
}

static lq_status sync_all(const lq_model *model) {
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        LQ_TRY(backend->ops->sync(backend));
    }
    return LQ_OK;
}

static lq_status cancelled(void) { return lq_fail(LQ_E_CANCELLED, "cancelled"); }

static void run_block(lq_pass *f, const lq_block *block, uint32_t index, const lq_layer_block *of_layer) {
    const float *x = lq_normed(f, f->s->norm, f->s->x, of_layer->norm, f->n_tokens, f->model->config.n_embd);
    block->run(f, index, of_layer->weights, x);
    if (f->n_tokens != 0) add_branch(f, of_layer->post_norm);
}

static void run_layer(lq_pass *f, uint32_t index) {
    const lq_layer_shape *shape = &f->model->config.layers[index];
    const lq_layer *layer = &f->model->layers[index];
    run_block(f, lq_mixers[shape->mixer], index, &layer->mixer);
    if (f->n_tokens != 0) run_block(f, lq_ffns[shape->ffn], index, &layer->ffn);
}

static lq_status run_layers(lq_pass *f, bool may_stop) {
    for (uint32_t i = 0; i < f->model->config.n_layers; i++) {
        go_to(f, lq_model_layer_device(f->model, i));
        run_layer(f, i);
        /* Queued work cannot be stopped, so wait for it: that costs nothing beside a layer of so many tokens. */
        if (f->is_watched && f->ops->watch == NULL) LQ_TRY(f->ops->sync(f->backend));
        if (may_stop ? lq_pass_is_cancelled(f) : is_abandoned(f)) return cancelled();
    }
    return LQ_OK;
}

static void count_rows(lq_pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++) {
        f->n_tokens += f->parts[i].n_tokens;
        f->is_tentative = f->is_tentative || f->parts[i].tentative;
    }
    f->n_tokens = padded_rows(f, f->n_tokens);
}

static void end_parts(const lq_pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++) {
        lq_kv_chunk chunk = lq_pass_chunk(&f->parts[i]);
        lq_kv_cache_end_chunk(f->parts[i].cache, &chunk);
    }
}

lq_status lq_forward(lq_model *model, lq_run_state *state, const lq_pass_part *parts, uint32_t n_parts) {
    lq_pass f = {.model = model, .state = state, .parts = parts, .n_parts = n_parts};
    bool may_stop = can_undo(&f);

    LQ_TRY(lq_gguf_check_whole(model->gguf));
    count_rows(&f);
    f.is_watched = may_stop && f.n_tokens >= LQ_WATCHED_TOKENS;
    lq_model_begin(model, state);
    if (f.is_watched) watch(&f);
    upload_rotations(&f);
    set_device(&f, model->embed_device);
    embed(&f);
    lq_status status = run_layers(&f, may_stop);
    if (status == LQ_OK) {
        go_to(&f, model->head_device);
        write_logits(&f);
        status = sync_all(model);
        if (status == LQ_OK && lq_pass_is_stopped(&f)) status = cancelled();
    }
    if (status == LQ_OK) end_parts(&f);
    lq_model_end(model);
    return status;
}
