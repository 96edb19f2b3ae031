/* block_attention.c - attention, over the whole context or within a sliding window. */
#include "model/load.h"
#include "model/pass.h"

typedef struct attention_weights {
    lq_linear q, k, v;            /* [n_heads|n_kv_heads x head_dim][n_embd] */
    const float *q_norm, *k_norm; /* [head_dim], or [n_heads|n_kv_heads x head_dim]; or NULL */
    lq_linear out;                /* [n_embd][n_heads x head_dim] */
} attention_weights;

typedef struct activations {
    float *q, *out; /* [n_tokens][n_heads][head_dim] */
    float *k, *v;   /* [n_tokens][n_kv_heads][head_dim] */
} activations;

static uint32_t q_cols(const lq_layer_shape *shape) { return shape->n_heads * shape->head_dim; }

static uint32_t kv_cols(const lq_layer_shape *shape) { return shape->n_kv_heads * shape->head_dim; }

static lq_status load_qkv(lq_loader *l, const lq_layer_shape *shape, attention_weights *w) {
    uint32_t n_embd = l->model->config.n_embd, q = q_cols(shape), kv = kv_cols(shape);
    lq_presence bias = l->arch->qkv_bias;
    if (l->arch->fused) {
        const lq_slice slices[] = {{&w->q, q}, {&w->k, kv}, {&w->v, kv}};
        return lq_load_fused(l, slices, 3, n_embd, "attn_qkv");
    }
    LQ_TRY(lq_load_linear(l, &w->q, q, n_embd, "attn_q", bias));
    LQ_TRY(lq_load_linear(l, &w->k, kv, n_embd, "attn_k", bias));
    return lq_load_linear(l, &w->v, kv, n_embd, "attn_v", bias);
}

static lq_status load(lq_loader *l, const lq_layer_shape *shape, void *weights) {
    attention_weights *w = weights;
    bool per_token = l->arch->qk_norm == LQ_QK_NORM_TOKEN;
    lq_presence qk_norm = l->arch->qk_norm == LQ_QK_NORM_NONE ? LQ_ABSENT : LQ_REQUIRED;
    uint32_t q = q_cols(shape), kv = kv_cols(shape);
    LQ_TRY(load_qkv(l, shape, w));
    LQ_TRY(lq_load_vector(l, qk_norm, &w->q_norm, per_token ? q : shape->head_dim, "attn_q_norm.weight"));
    LQ_TRY(lq_load_vector(l, qk_norm, &w->k_norm, per_token ? kv : shape->head_dim, "attn_k_norm.weight"));
    return lq_load_linear(l, &w->out, l->model->config.n_embd, q, "attn_output", l->arch->attn_out_bias);
}

static activations take(const lq_layer_shape *shape, uint64_t n_tokens, lq_arena *arena) {
    uint64_t q = n_tokens * q_cols(shape), kv = n_tokens * kv_cols(shape);
    return (activations){.q = lq_arena_floats(arena, q),
                         .k = lq_arena_floats(arena, kv),
                         .v = lq_arena_floats(arena, kv),
                         .out = lq_arena_floats(arena, q)};
}

static void scratch(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec) {
    (void)model;
    take(shape, n_tokens, arena);
    spec->n_heads = shape->n_heads;
    spec->n_kv_heads = shape->n_kv_heads;
    spec->head_dim = shape->head_dim;
}

static void norm_heads(const lq_pass *f, const lq_layer_shape *shape, const attention_weights *w,
                       const activations *s) {
    bool whole = f->model->arch->qk_norm == LQ_QK_NORM_TOKEN;
    uint32_t q = whole ? 1 : shape->n_heads, k = whole ? 1 : shape->n_kv_heads, n = f->n_tokens;
    lq_normed(f, s->q, s->q, w->q_norm, n * q, q_cols(shape) / q);
    lq_normed(f, s->k, s->k, w->k_norm, n * k, kv_cols(shape) / k);
}

static void rotate_heads(const lq_pass *f, const lq_layer_shape *shape, const activations *s) {
    uint32_t n_rot = f->model->config.n_rot;
    lq_rope_style style = f->model->arch->rope_style;
    bool slides = shape->mixer == LQ_MIXER_SLIDING && f->model->rope_sliding.frequencies != NULL;
    const float *rotations = slides ? f->s->rotations_sliding : f->s->rotations_global;
    if (!shape->has_rope) return;
    f->ops->rope(f->backend, s->q, f->n_tokens, shape->n_heads, shape->head_dim, n_rot, rotations, style);
    f->ops->rope(f->backend, s->k, f->n_tokens, shape->n_kv_heads, shape->head_dim, n_rot, rotations, style);
}

/* Begins the layer in the part's cache; `row` is the part's first row of activations. Returns how many args were set.
 */
static uint32_t begin_part(const lq_pass *f, const lq_pass_part *part, uint32_t index, const activations *s, size_t row,
                           lq_attention *args) {
    const lq_config *p = &f->model->config;
    const lq_layer_shape *shape = &p->layers[index];
    lq_kv_chunk chunk = lq_pass_chunk(part);
    *args = (lq_attention){.q = s->q + row * q_cols(shape),
                           .out = s->out + row * q_cols(shape),
                           .n_tokens = part->n_tokens,
                           .pos0 = part->pos0,
                           .n_heads = shape->n_heads,
                           .scale = p->attn_scale,
                           .softcap = p->attn_softcap};
    return lq_kv_cache_begin_layer(part->cache, index, &chunk, s->k + row * kv_cols(shape), s->v + row * kv_cols(shape),
                                   args);
}

static void end_part(const lq_pass_part *part, uint32_t index, const lq_attention *args) {
    lq_kv_chunk chunk = lq_pass_chunk(part);
    lq_kv_cache_end_layer(part->cache, index, &chunk, args);
}

static bool is_lone(const lq_pass_part *part) { return part->n_tokens == 1 && !part->tentative; }

/* Attends all parts of a single token in one operation, each over its own cache. */
static void attend_lone(const lq_pass *f, uint32_t index, const activations *s) {
    lq_attention *args = f->state->attention;
    size_t row = 0;
    uint32_t n = 0, ended = 0;
    for (uint32_t i = 0; i < f->n_parts; row += f->parts[i++].n_tokens)
        if (is_lone(&f->parts[i])) n += begin_part(f, &f->parts[i], index, s, row, &args[n]);
    if (n == 0) return;
    f->ops->attention(f->backend, args, n);
    if (lq_pass_is_stopped(f)) return;
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (is_lone(&f->parts[i])) end_part(&f->parts[i], index, &args[ended++]);
}

/* Attends parts of many tokens one after the other: each fills the device by itself, and their caches share a stage. A
 * tentative part attends token by token, each as if it were alone. After a stop it returns without ending the layer:
 * an operation that is half done must not choose which tokens stay in the cache. */
static void attend(const lq_pass *f, uint32_t index, const activations *s) {
    lq_attention *args = f->state->attention;
    size_t row = 0;
    attend_lone(f, index, s);
    for (uint32_t i = 0; i < f->n_parts; row += f->parts[i++].n_tokens) {
        if (is_lone(&f->parts[i])) continue;
        uint32_t n = begin_part(f, &f->parts[i], index, s, row, args);
        for (uint32_t k = 0; k < n; k++) f->ops->attention(f->backend, &args[k], 1);
        if (lq_pass_is_stopped(f)) return;
        end_part(&f->parts[i], index, args);
    }
}

static void run(lq_pass *f, uint32_t layer, const void *weights, const float *x) {
    const lq_layer_shape *shape = &f->model->config.layers[layer];
    const attention_weights *w = weights;
    lq_arena arena = lq_pass_arena(f);
    activations s = take(shape, f->n_tokens, &arena);
    const lq_projection qkv[] = {{&w->q, s.q}, {&w->k, s.k}, {&w->v, s.v}}, out = {&w->out, f->s->branch};
    lq_project(f, qkv, 3, x, f->n_tokens);
    norm_heads(f, shape, w, &s);
    rotate_heads(f, shape, &s);
    attend(f, layer, &s);
    if (layer + 1 == f->model->config.n_layers) lq_keep_logit_rows(f, s.out, q_cols(shape));
    if (f->n_tokens != 0) lq_project(f, &out, 1, s.out, f->n_tokens);
}

static lq_kv_layer_spec state(const lq_config *config, const lq_layer_shape *shape) {
    (void)config;
    return (lq_kv_layer_spec){.n_kv_heads = shape->n_kv_heads, .head_dim = shape->head_dim, .window = shape->window};
}

const lq_block lq_block_attention = {sizeof(attention_weights), load, scratch, run, state};
