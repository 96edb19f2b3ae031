/* block_short_conv.c - a short depthwise convolution, gated before and after. */
#include "model/load.h"
#include "model/pass.h"

/* The most parts that one operation convolves. */
#define MAX_SEQUENCES 16

typedef struct conv_weights {
    lq_linear in;        /* [3 n_embd][n_embd] the gates b, the gates c, the inputs x */
    const float *kernel; /* [n_embd][n_taps] */
    lq_linear out;       /* [n_embd][n_embd] */
} conv_weights;

typedef struct activations {
    float *bcx; /* [n_tokens][3 n_embd] */
    float *bx;  /* [n_tokens][n_embd] gated inputs; the layer's state keeps the last of them */
    float *y;   /* [n_tokens][n_embd] */
} activations;

static lq_status load(lq_loader *l, const lq_layer_shape *shape, void *weights) {
    conv_weights *w = weights;
    uint32_t n_embd = l->model->config.n_embd;
    LQ_TRY(lq_load_linear(l, &w->in, 3 * n_embd, n_embd, "shortconv.in_proj", LQ_ABSENT));
    LQ_TRY(lq_load_kernel(l, &w->kernel, n_embd, shape->n_taps, "shortconv.conv.weight"));
    return lq_load_linear(l, &w->out, n_embd, n_embd, "shortconv.out_proj", LQ_ABSENT);
}

static activations take(const lq_model *model, uint64_t n_tokens, lq_arena *arena) {
    uint64_t n = n_tokens * model->config.n_embd;
    return (activations){
        .bcx = lq_arena_floats(arena, 3 * n), .bx = lq_arena_floats(arena, n), .y = lq_arena_floats(arena, n)};
}

static void scratch(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec) {
    (void)shape, (void)spec;
    take(model, n_tokens, arena);
}

/* Describes the part's tokens as a sequence that goes on from its cache's state. A tentative part writes its bx rows
 * into the cache, since a later commit may keep some of them. */
static lq_conv_sequence begin_part(const lq_pass *f, const lq_pass_part *part, uint32_t layer, const activations *s,
                                   size_t row) {
    size_t n_embd = f->model->config.n_embd;
    lq_kv_chunk chunk = lq_pass_chunk(part);
    lq_kv_recurrent_rows held = lq_kv_cache_begin_recurrent(part->cache, layer, &chunk);
    return (lq_conv_sequence){.bcx = s->bcx + row * 3 * n_embd,
                              .before = held.state,
                              .bx = held.rows != NULL ? held.rows : s->bx + row * n_embd,
                              .y = s->y + row * n_embd,
                              .n_tokens = part->n_tokens};
}

static void end_part(const lq_pass_part *part, uint32_t layer, const lq_conv_sequence *sequence) {
    lq_kv_chunk chunk = lq_pass_chunk(part);
    lq_kv_cache_end_recurrent(part->cache, layer, &chunk, sequence->bx);
}

/* Convolves all parts. After a stop it returns without ending the layer: a half-done result must not become a state. */
static void convolve(const lq_pass *f, uint32_t layer, const conv_weights *w, const activations *s) {
    const lq_config *c = &f->model->config;
    lq_conv_sequence sequences[MAX_SEQUENCES];
    size_t row = 0;
    for (uint32_t first = 0; first < f->n_parts; first += MAX_SEQUENCES) {
        const lq_pass_part *parts = &f->parts[first];
        uint32_t n = f->n_parts - first < MAX_SEQUENCES ? f->n_parts - first : MAX_SEQUENCES;
        lq_short_conv args = {w->kernel, c->n_embd, c->layers[layer].n_taps, n, sequences};
        for (uint32_t i = 0; i < n; row += parts[i++].n_tokens) sequences[i] = begin_part(f, &parts[i], layer, s, row);
        f->ops->short_conv(f->backend, &args);
        if (lq_pass_is_stopped(f)) return;
        for (uint32_t i = 0; i < n; i++) end_part(&parts[i], layer, &sequences[i]);
    }
}

static void run(lq_pass *f, uint32_t layer, const void *weights, const float *x) {
    const conv_weights *w = weights;
    lq_arena arena = lq_pass_arena(f);
    activations s = take(f->model, f->n_tokens, &arena);
    const lq_projection in = {&w->in, s.bcx}, out = {&w->out, f->s->branch};
    lq_project(f, &in, 1, x, f->n_tokens);
    convolve(f, layer, w, &s);
    if (layer + 1 == f->model->config.n_layers) lq_keep_logit_rows(f, s.y, f->model->config.n_embd);
    if (f->n_tokens != 0) lq_project(f, &out, 1, s.y, f->n_tokens);
}

static lq_kv_layer_spec state(const lq_config *config, const lq_layer_shape *shape) {
    return (lq_kv_layer_spec){.state_rows = shape->n_taps - 1, .state_cols = config->n_embd};
}

const lq_block lq_block_short_conv = {sizeof(conv_weights), load, scratch, run, state};
