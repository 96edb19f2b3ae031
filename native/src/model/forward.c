/* forward.c - the one forward pass. Architectures differ by values in lq_arch and by which weights are there. */
#include <math.h>
#include <string.h>

#include "core/checked.h"
#include "core/system.h"
#include "model/model.h"

/* Rows of logits at once: enough to read the head matrix once for several tokens, little enough to be kept. */
#define LOGIT_ROWS 16

/* ---- scratch */

/* Hands out parts of the block; with a NULL base it only counts, so plan and creation are the same code. */
typedef struct carver {
    uint8_t *base;
    uint64_t n_bytes;
} carver;

static float *carve(carver *c, uint64_t n_floats) {
    uint64_t at = c->n_bytes;
    c->n_bytes += (n_floats * sizeof(float) + 63) & ~63ull;
    return c->base != NULL ? (float *)(void *)(c->base + at) : NULL;
}

static void carve_experts(const lq_config *p, uint64_t n_tokens, carver *c, lq_activations *s) {
    uint64_t n_choices = n_tokens * p->n_experts_used;
    s->router = carve(c, n_tokens * p->n_experts);
    s->expert_x = carve(c, n_choices * p->n_embd);
    s->expert_gate = carve(c, n_choices * p->n_ff_expert);
    s->expert_up = carve(c, n_choices * p->n_ff_expert);
    s->choice = (lq_expert_choice){.n_experts = p->n_experts, .n_used = p->n_experts_used, .router = s->router};
    s->choice.first = (uint32_t *)(void *)carve(c, p->n_experts + 1);
    s->choice.token = (uint32_t *)(void *)carve(c, n_choices);
    s->choice.weight = carve(c, n_choices);
}

/* What layers need beyond the residual stream. */
static void carve_layers(const lq_model *model, uint64_t n, carver *c, lq_activations *s) {
    const lq_config *p = &model->config;
    uint64_t q = (uint64_t)p->n_heads * p->head_dim, kv = (uint64_t)p->n_kv_heads * p->head_dim;
    s->branch = carve(c, n * p->n_embd);
    s->q = carve(c, n * q);
    s->k = carve(c, n * kv);
    s->v = carve(c, n * kv);
    s->attn = carve(c, n * q);
    s->gate = carve(c, p->n_experts == 0 ? n * p->n_ff : 0);
    s->up = carve(c, p->n_experts == 0 ? n * p->n_ff : 0);
    if (p->n_experts != 0) carve_experts(p, n, c, s);
    s->rotations_global = carve(c, n * p->n_rot);
    s->rotations_sliding = carve(c, model->rope_sliding.frequencies != NULL ? n * p->n_rot : 0);
}

static uint32_t widest_input(const lq_config *p) {
    uint32_t q = p->n_heads * p->head_dim, widest = p->n_ff > p->n_embd ? p->n_ff : p->n_embd;
    if (p->n_ff_expert > widest) widest = p->n_ff_expert;
    return q > widest ? q : widest;
}

/* No overflow: every factor was bounded by load.c to 2^31 elements a tensor row, and n_chunk by the session to 65536.
 */
static void carve_place(const lq_model *model, uint32_t place, uint32_t n_received, const lq_run_state *state,
                        carver *c, lq_activations *s) {
    const lq_config *p = &model->config;
    const lq_place *at = &model->places[place];
    bool has_layers = at->end_layer > at->first_layer, has_head = place == model->head_place;
    lq_scratch_spec spec = {.n_tokens = state->n_chunk,
                            .n_cols = widest_input(p),
                            .n_heads = p->n_heads,
                            .n_kv_heads = p->n_kv_heads,
                            .head_dim = p->head_dim,
                            .n_received = n_received,
                            .n_used = p->n_experts_used,
                            .n_together = state->n_parts,
                            .has_halves = model->has_halves};
    s->x = carve(c, (uint64_t)state->n_chunk * p->n_embd);
    s->norm = carve(c, has_layers || has_head ? (uint64_t)state->n_chunk * p->n_embd : 0);
    if (has_layers) carve_layers(model, state->n_chunk, c, s);
    s->logits = carve(c, has_head ? (uint64_t)state->n_logit_rows * p->n_vocab : 0);
    uint64_t scratch = has_layers || has_head ? at->backend->ops->scratch_bytes(at->backend, &spec) : 0;
    s->scratch = carve(c, (scratch + sizeof(float) - 1) / sizeof(float));
}

static lq_run_state sizes_only(uint32_t n_chunk, uint32_t n_parts) {
    return (lq_run_state){
        .n_chunk = n_chunk, .n_parts = n_parts, .n_logit_rows = n_chunk < LOGIT_ROWS ? n_chunk : LOGIT_ROWS};
}

static uint64_t rotation_bytes(const lq_model *model, uint32_t n_chunk) {
    return (uint64_t)n_chunk * model->config.n_rot * sizeof(float);
}

/* Those of parts of one token each are made at once, those of a tentative part likewise. */
static uint64_t n_attentions(uint32_t n_parts) { return n_parts > LQ_MAX_TENTATIVE ? n_parts : LQ_MAX_TENTATIVE; }

static uint64_t crossing_bytes(const lq_model *model, uint32_t n_chunk) {
    return model->n_places > 1 ? (uint64_t)n_chunk * model->config.n_embd * sizeof(float) : 0;
}

lq_status lq_run_state_plan(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_received,
                            uint64_t *n_bytes) {
    lq_run_state state = sizes_only(n_chunk, n_parts);
    for (uint32_t i = 0; i < model->n_places; i++) {
        carver c = {NULL, 0};
        carve_place(model, i, n_received, &state, &c, &state.at[i]);
        n_bytes[i] = c.n_bytes;
    }
    n_bytes[0] += rotation_bytes(model, n_chunk) + crossing_bytes(model, n_chunk) +
                  n_attentions(n_parts) * sizeof(lq_attention) + n_chunk * sizeof(int32_t);
    return LQ_OK;
}

static lq_status create_place(const lq_model *model, uint32_t place, uint32_t n_received, lq_run_state *state) {
    lq_backend *backend = model->places[place].backend;
    lq_activations *s = &state->at[place];
    void *memory;
    carver c = {NULL, 0};
    carve_place(model, place, n_received, state, &c, s);
    uint64_t n_bytes = c.n_bytes;
    LQ_TRY(backend->ops->alloc(backend, n_bytes, "activations", &memory));
    c = (carver){memory, 0};
    carve_place(model, place, n_received, state, &c, s);
    s->block = memory;
    s->block_bytes = n_bytes;
    return LQ_OK;
}

static lq_status create_host(const lq_model *model, lq_run_state *state) {
    void *memory;
    LQ_TRY(lq_alloc(rotation_bytes(model, state->n_chunk), "rotations", &memory));
    state->rotations_host = memory;
    LQ_TRY(lq_alloc(n_attentions(state->n_parts) * sizeof(lq_attention), "activations", &memory));
    state->attention = memory;
    LQ_TRY(lq_alloc(state->n_chunk * sizeof(int32_t), "activations", &memory));
    state->tokens = memory;
    if (model->n_places == 1) return LQ_OK;
    LQ_TRY(lq_alloc(crossing_bytes(model, state->n_chunk), "activations", &memory));
    state->crossing = memory;
    return LQ_OK;
}

lq_status lq_run_state_create(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_received,
                              lq_run_state *out) {
    *out = sizes_only(n_chunk, n_parts);
    lq_status status = create_host(model, out);
    for (uint32_t i = 0; i < model->n_places && status == LQ_OK; i++) status = create_place(model, i, n_received, out);
    if (status != LQ_OK) lq_run_state_free(model, out);
    return status;
}

void lq_run_state_free(const lq_model *model, lq_run_state *state) {
    for (uint32_t i = 0; i < model->n_places; i++) {
        lq_backend *backend = model->places[i].backend;
        backend->ops->release(backend, state->at[i].block, state->at[i].block_bytes);
    }
    lq_free(state->rotations_host);
    lq_free(state->crossing);
    lq_free(state->attention);
    lq_free(state->tokens);
    memset(state, 0, sizeof *state);
}

/* Always in the order of places, so that two sessions never wait for each other. */
void lq_model_begin(const lq_model *model, const lq_run_state *state) {
    for (uint32_t i = 0; i < model->n_places; i++) {
        lq_backend *backend = model->places[i].backend;
        backend->ops->begin(backend, state->at[i].scratch);
    }
}

void lq_model_end(const lq_model *model) {
    for (uint32_t i = model->n_places; i-- > 0;) {
        lq_backend *backend = model->places[i].backend;
        backend->ops->end(backend);
    }
}

/* ---- the pass */

typedef struct pass {
    lq_model *model;
    lq_run_state *state;
    uint32_t place; /* where x is, and of the next three */
    lq_backend *backend;
    const lq_backend_ops *ops;
    lq_activations *s;
    const lq_pass_part *parts;
    uint32_t n_parts;
    uint32_t n_tokens; /* rows: one for each token of all parts, in their order; then padding */
    bool is_tentative; /* some part is */
    bool is_watched;   /* operations may be left out once it is cancelled */
} pass;

static void set_place(pass *f, uint32_t place) {
    f->place = place;
    f->backend = f->model->places[place].backend;
    f->ops = f->backend->ops;
    f->s = &f->state->at[place];
}

/* The pass goes on at a place: of all activations only the residual stream lives on. */
static void go_to(pass *f, uint32_t place) {
    if (place == f->place) return;
    size_t n_bytes = (size_t)f->n_tokens * f->model->config.n_embd * sizeof(float);
    f->ops->download(f->backend, f->state->crossing, f->s->x, n_bytes);
    set_place(f, place);
    f->ops->upload(f->backend, f->s->x, f->state->crossing, n_bytes);
}

/* Products of few rows take another way, with other rounding: what a tentative token gives must not depend on how many it
 * came with. What padding rows hold is never used. */
static uint32_t padded_rows(const pass *f, uint32_t n_rows) {
    return f->is_tentative && n_rows != 0 && n_rows < LQ_LEAST_ALIKE ? LQ_LEAST_ALIKE : n_rows;
}

static void embed(const pass *f) {
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

/* Rotations of all rows, by one table for all parts or, with NULL, by each part's own. Angles in double: at position
 * 30,000 a float angle is off by up to 0.001. */
static void fill_rotations(const pass *f, const lq_rope_table *shared) {
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

/* To every place that has layers. */
static void upload_rotations(const pass *f) {
    const lq_model *model = f->model;
    size_t n_bytes = (size_t)f->n_tokens * model->config.n_rot * sizeof(float);
    bool slides = model->rope_sliding.frequencies != NULL;
    for (int sliding = 0; sliding <= slides; sliding++) {
        fill_rotations(f, sliding ? &model->rope_sliding : NULL);
        for (uint32_t i = 0; i < model->n_places; i++) {
            const lq_place *place = &model->places[i];
            const lq_activations *s = &f->state->at[i];
            if (place->end_layer == place->first_layer) continue;
            place->backend->ops->upload(place->backend, sliding ? s->rotations_sliding : s->rotations_global,
                                        f->state->rotations_host, n_bytes);
        }
    }
}

/* The RMS norm of x in dst; x itself where the architecture has no norm at this place. */
static const float *normed(const pass *f, float *dst, const float *x, const float *weight, uint32_t n_rows,
                           uint32_t n_cols) {
    if (weight == NULL) return x;
    f->ops->rms_norm(f->backend, dst, x, weight, n_rows, n_cols, f->model->config.norm_eps);
    return dst;
}

/* A block's output joins the residual stream. */
static void add_branch(const pass *f, const float *post_norm) {
    const lq_config *p = &f->model->config;
    const float *branch = normed(f, f->s->branch, f->s->branch, post_norm, f->n_tokens, p->n_embd);
    f->ops->add(f->backend, f->s->x, branch, p->residual_scale, (size_t)f->n_tokens * p->n_embd);
}

/* matmul(); with a tentative part in so many rows at once that none depends on the others. */
static void multiply_rows(const pass *f, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n) {
    uint32_t most = f->is_tentative ? f->ops->most_alike : n;
    for (uint32_t row = 0; row < n; row += most) {
        lq_matmul part[LQ_MATMUL_MAX_GROUP];
        for (uint32_t i = 0; i < n_group; i++) {
            part[i] = group[i];
            part[i].y += (size_t)row * group[i].weight->n_rows;
        }
        f->ops->matmul(f->backend, part, n_group, x + (size_t)row * group[0].weight->n_cols,
                       n - row < most ? n - row : most);
    }
}

/* The same with the factors of weights that have some. */
static void multiply(const pass *f, const lq_matmul *group, uint32_t n_group, const float *x) {
    multiply_rows(f, group, n_group, x, f->n_tokens);
    for (uint32_t i = 0; i < n_group; i++) {
        const lq_weight *w = group[i].weight;
        if (w->factors != NULL) f->ops->scale(f->backend, group[i].y, f->n_tokens, w->n_rows, w->factors, NULL);
    }
}

/* expert_matmul() likewise. */
static void multiply_experts(const pass *f, const lq_matmul *group, uint32_t n_group, const float *x) {
    const lq_expert_choice *choice = &f->s->choice;
    f->ops->expert_matmul(f->backend, group, n_group, x, choice);
    for (uint32_t i = 0; i < n_group; i++) {
        const lq_weight *w = group[i].weight;
        if (w->factors != NULL)
            f->ops->scale(f->backend, group[i].y, f->n_tokens * choice->n_used, w->n_rows, w->factors, choice);
    }
}

static void norm_heads(const pass *f, const lq_layer *layer) {
    const lq_config *p = &f->model->config;
    bool whole = f->model->arch->qk_norm == LQ_QK_NORM_TOKEN;
    uint32_t q = whole ? 1 : p->n_heads, k = whole ? 1 : p->n_kv_heads, n = f->n_tokens;
    normed(f, f->s->q, f->s->q, layer->q_norm, n * q, p->n_heads / q * p->head_dim);
    normed(f, f->s->k, f->s->k, layer->k_norm, n * k, p->n_kv_heads / k * p->head_dim);
}

static void rotate_heads(const pass *f, uint32_t index) {
    const lq_config *p = &f->model->config;
    const lq_arch *arch = f->model->arch;
    bool slides = p->slides[index] && f->model->rope_sliding.frequencies != NULL;
    const float *rotations = slides ? f->s->rotations_sliding : f->s->rotations_global;
    if (p->no_rope || (arch->no_rope_period != 0 && (index + 1) % arch->no_rope_period == 0)) return;
    f->ops->rope(f->backend, f->s->q, f->n_tokens, p->n_heads, p->head_dim, p->n_rot, rotations, arch->rope_style);
    f->ops->rope(f->backend, f->s->k, f->n_tokens, p->n_kv_heads, p->head_dim, p->n_rot, rotations, arch->rope_style);
}

static bool is_cancelled(const void *context) {
    const pass *f = context;
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (atomic_load_explicit(f->parts[i].cancel, memory_order_relaxed) != 0) return true;
    return false;
}

static bool is_stopped(const pass *f) { return f->is_watched && is_cancelled(f); }

static lq_kv_chunk chunk_of(const lq_pass_part *part) {
    return (lq_kv_chunk){.pos0 = part->pos0, .n_tokens = part->n_tokens, .tentative = part->tentative};
}

/* Its rows begin at `row`. Returns the number of args. */
static uint32_t begin_part(const pass *f, const lq_pass_part *part, uint32_t index, size_t row, lq_attention *args) {
    const lq_config *p = &f->model->config;
    size_t q_cols = (size_t)p->n_heads * p->head_dim, kv_cols = (size_t)p->n_kv_heads * p->head_dim;
    lq_kv_chunk chunk = chunk_of(part);
    *args = (lq_attention){.q = f->s->q + row * q_cols,
                           .out = f->s->attn + row * q_cols,
                           .n_tokens = part->n_tokens,
                           .pos0 = part->pos0,
                           .n_heads = p->n_heads,
                           .scale = p->attn_scale,
                           .softcap = p->attn_softcap};
    return lq_kv_cache_begin_layer(part->cache, index, &chunk, f->s->k + row * kv_cols, f->s->v + row * kv_cols, args);
}

static void end_part(const pass *f, const lq_pass_part *part, uint32_t index, const lq_attention *args) {
    lq_kv_chunk chunk = chunk_of(part);
    (void)f;
    lq_kv_cache_end_layer(part->cache, index, &chunk, args);
}

static bool is_lone(const lq_pass_part *part) { return part->n_tokens == 1 && !part->tentative; }

/* Parts of one token each attend their caches at once. */
static void attend_lone(const pass *f, uint32_t index) {
    lq_attention *args = f->state->attention;
    size_t row = 0;
    uint32_t n = 0, ended = 0;
    for (uint32_t i = 0; i < f->n_parts; row += f->parts[i++].n_tokens)
        if (is_lone(&f->parts[i])) n += begin_part(f, &f->parts[i], index, row, &args[n]);
    if (n == 0) return;
    f->ops->attention(f->backend, args, n);
    if (is_stopped(f)) return;
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (is_lone(&f->parts[i])) end_part(f, &f->parts[i], index, &args[ended++]);
}

/* Parts of many tokens do one after the other: they fill the device by themselves, and their caches share memory. A
 * tentative part attends token by token, each as if it were alone. What was left out half done must not choose which
 * tokens stay. */
static void attend(const pass *f, uint32_t index) {
    lq_attention *args = f->state->attention;
    size_t row = 0;
    attend_lone(f, index);
    for (uint32_t i = 0; i < f->n_parts; row += f->parts[i++].n_tokens) {
        if (is_lone(&f->parts[i])) continue;
        uint32_t n = begin_part(f, &f->parts[i], index, row, args);
        for (uint32_t k = 0; k < n; k++) f->ops->attention(f->backend, &args[k], 1);
        if (is_stopped(f)) return;
        end_part(f, &f->parts[i], index, args);
    }
}

/* After the last attention only rows whose logits are asked for are of use: they move to the front. */
static void keep_logit_rows(pass *f) {
    const lq_config *p = &f->model->config;
    size_t x_cols = p->n_embd, attn_cols = (size_t)p->n_heads * p->head_dim, row = 0, kept = 0;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const lq_pass_part *part = &f->parts[i];
        row += part->n_tokens - part->n_logits;
        for (uint32_t j = 0; j < part->n_logits; j++, row++, kept++) {
            if (row == kept) continue;
            f->ops->copy(f->backend, f->s->x + kept * x_cols, f->s->x + row * x_cols, x_cols * sizeof(float));
            f->ops->copy(f->backend, f->s->attn + kept * attn_cols, f->s->attn + row * attn_cols,
                         attn_cols * sizeof(float));
        }
    }
    f->n_tokens = padded_rows(f, (uint32_t)kept);
}

static void attention_block(pass *f, uint32_t index) {
    const lq_config *p = &f->model->config;
    const lq_layer *layer = &f->model->layers[index];
    lq_activations *s = f->s;
    lq_matmul qkv[3] = {
        {&layer->q, layer->q_bias, s->q}, {&layer->k, layer->k_bias, s->k}, {&layer->v, layer->v_bias, s->v}};
    lq_matmul out = {&layer->attn_out, layer->attn_out_bias, s->branch};
    multiply(f, qkv, 3, normed(f, s->norm, s->x, layer->attn_norm, f->n_tokens, p->n_embd));
    norm_heads(f, layer);
    rotate_heads(f, index);
    attend(f, index);
    if (index + 1 == p->n_layers) keep_logit_rows(f);
    if (f->n_tokens == 0) return;
    multiply(f, &out, 1, s->attn);
    add_branch(f, layer->post_attn_norm);
}

static void feed_forward(const pass *f, const lq_layer *layer, const float *x) {
    const lq_config *p = &f->model->config;
    lq_activations *s = f->s;
    lq_matmul gate_up[2] = {{&layer->gate, layer->gate_bias, s->gate}, {&layer->up, layer->up_bias, s->up}};
    lq_matmul down = {&layer->down, layer->down_bias, s->branch};
    multiply(f, gate_up, 2, x);
    f->ops->glu(f->backend, s->gate, s->up, (size_t)f->n_tokens * p->n_ff, f->model->arch->activation);
    multiply(f, &down, 1, s->gate);
}

static void mixture_of_experts(const pass *f, const lq_layer *layer, const float *x) {
    const lq_config *p = &f->model->config;
    lq_activations *s = f->s;
    size_t n_choices = (size_t)f->n_tokens * p->n_experts_used;
    lq_matmul router = {&layer->router, NULL, s->router};
    lq_matmul gate_up[2] = {{&layer->gate, NULL, s->expert_gate}, {&layer->up, NULL, s->expert_up}};
    lq_matmul down = {&layer->down, NULL, s->expert_x};
    s->choice.n_tokens = f->n_tokens;
    s->choice.apart = f->is_tentative;
    multiply(f, &router, 1, x);
    f->ops->route(f->backend, &s->choice);
    f->ops->expert_gather(f->backend, s->expert_x, x, &s->choice, p->n_embd);
    multiply_experts(f, gate_up, 2, s->expert_x);
    f->ops->glu(f->backend, s->expert_gate, s->expert_up, n_choices * p->n_ff_expert, f->model->arch->activation);
    multiply_experts(f, &down, 1, s->expert_gate);
    f->ops->expert_sum(f->backend, s->branch, s->expert_x, &s->choice, p->n_embd);
}

static void feed_forward_block(const pass *f, uint32_t index) {
    const lq_layer *layer = &f->model->layers[index];
    const float *x = normed(f, f->s->norm, f->s->x, layer->ffn_norm, f->n_tokens, f->model->config.n_embd);
    if (layer->router.data != NULL)
        mixture_of_experts(f, layer, x);
    else
        feed_forward(f, layer, x);
    add_branch(f, layer->post_ffn_norm);
}

/* Where a row of logits goes. */
typedef struct logits_out {
    float *to;
    bool on_device;
} logits_out;

/* Computes the logits of n rows from row first on, and hands them out. */
static void flush_logits(const pass *f, const logits_out *outs, uint32_t first, uint32_t n) {
    const lq_config *p = &f->model->config;
    lq_matmul head = {&f->model->head, NULL, f->s->logits};
    if (n == 0) return;
    uint32_t n_rows = padded_rows(f, n);
    f->ops->rms_norm(f->backend, f->s->norm, f->s->x + (size_t)first * p->n_embd, f->model->output_norm, n_rows,
                     p->n_embd, p->norm_eps);
    multiply_rows(f, &head, 1, f->s->norm, n_rows);
    if (p->final_softcap > 0.0f) f->ops->softcap(f->backend, f->s->logits, p->final_softcap, (size_t)n * p->n_vocab);
    for (uint32_t i = 0; i < n; i++) {
        const float *row = f->s->logits + (size_t)i * p->n_vocab;
        if (outs[i].on_device)
            f->ops->copy(f->backend, outs[i].to, row, p->n_vocab * sizeof(float));
        else
            f->ops->download(f->backend, outs[i].to, row, p->n_vocab * sizeof(float));
    }
}

/* The head matrix is the largest weight: only the tokens whose logits are asked for meet it, several at once. The rows
 * that are left are those. */
static void write_logits(const pass *f) {
    const lq_config *p = &f->model->config;
    logits_out outs[LOGIT_ROWS] = {{NULL, false}};
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

static bool can_undo(const pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++)
        if (!f->parts[i].can_undo && !lq_kv_cache_can_undo(f->parts[i].cache, f->parts[i].tentative)) return false;
    return true;
}

static void watch(const pass *f) {
    for (uint32_t i = 0; i < f->model->n_places; i++) {
        lq_backend *backend = f->model->places[i].backend;
        if (backend->ops->watch != NULL) backend->ops->watch(backend, is_cancelled, f);
    }
}

static bool is_abandoned(const pass *f) {
    return f->n_parts == 1 && (atomic_load_explicit(f->parts[0].cancel, memory_order_relaxed) & LQ_PASS_ABANDON) != 0;
}

static lq_status sync_all(const lq_model *model) {
    for (uint32_t i = 0; i < model->n_places; i++) {
        lq_backend *backend = model->places[i].backend;
        LQ_TRY(backend->ops->sync(backend));
    }
    return LQ_OK;
}

static lq_status cancelled(void) { return lq_fail(LQ_E_CANCELLED, "cancelled"); }

static lq_status run_layers(pass *f, bool may_stop) {
    for (uint32_t i = 0; i < f->model->config.n_layers; i++) {
        go_to(f, lq_model_layer_place(f->model, i));
        attention_block(f, i);
        if (f->n_tokens != 0) feed_forward_block(f, i);
        /* What is queued on a device cannot be stopped; to wait for it is nothing beside a layer of so many tokens. */
        if (f->is_watched && f->ops->watch == NULL) LQ_TRY(f->ops->sync(f->backend));
        if (may_stop ? is_cancelled(f) : is_abandoned(f)) return cancelled();
    }
    return LQ_OK;
}

static void count_rows(pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++) {
        f->n_tokens += f->parts[i].n_tokens;
        f->is_tentative = f->is_tentative || f->parts[i].tentative;
    }
    f->n_tokens = padded_rows(f, f->n_tokens);
}

static void end_parts(const pass *f) {
    for (uint32_t i = 0; i < f->n_parts; i++) {
        lq_kv_chunk chunk = chunk_of(&f->parts[i]);
        lq_kv_cache_end_chunk(f->parts[i].cache, &chunk);
    }
}

lq_status lq_forward(lq_model *model, lq_run_state *state, const lq_pass_part *parts, uint32_t n_parts) {
    pass f = {.model = model, .state = state, .parts = parts, .n_parts = n_parts};
    bool may_stop = can_undo(&f);

    LQ_TRY(lq_gguf_check_whole(model->gguf));
    count_rows(&f);
    f.is_watched = may_stop && f.n_tokens >= LQ_WATCHED_TOKENS;
    lq_model_begin(model, state);
    if (f.is_watched) watch(&f);
    upload_rotations(&f);
    set_place(&f, model->embed_place);
    embed(&f);
    lq_status status = run_layers(&f, may_stop);
    if (status == LQ_OK) {
        go_to(&f, model->head_place);
        write_logits(&f);
        status = sync_all(model);
        if (status == LQ_OK && is_stopped(&f)) status = cancelled();
    }
    if (status == LQ_OK) end_parts(&f);
    lq_model_end(model);
    return status;
}
