/* block_experts.c - a mixture of experts: gated FFNs, of which a router chooses a few for each token. */
#include "model/load.h"
#include "model/pass.h"

typedef struct expert_weights {
    lq_linear router;   /* [n_experts][n_embd] */
    lq_linear gate, up; /* [n_experts][n_ff][n_embd] */
    lq_linear down;     /* [n_experts][n_embd][n_ff] */
} expert_weights;

typedef struct activations {
    lq_expert_choice choice;
    float *router;    /* [n_tokens][n_experts] */
    float *x;         /* [n_tokens * n_used][n_embd] in the order of the choice */
    float *gate, *up; /* [n_tokens * n_used][n_ff] */
} activations;

static lq_status load(lq_loader *l, const lq_layer_shape *shape, void *weights) {
    expert_weights *w = weights;
    uint32_t n_embd = l->model->config.n_embd;
    LQ_TRY(lq_load_linear(l, &w->router, l->model->config.n_experts, n_embd, "ffn_gate_inp", LQ_ABSENT));
    LQ_TRY(lq_load_stack(l, &w->gate, shape->n_ff, n_embd, "ffn_gate_exps"));
    LQ_TRY(lq_load_stack(l, &w->up, shape->n_ff, n_embd, "ffn_up_exps"));
    return lq_load_stack(l, &w->down, n_embd, shape->n_ff, "ffn_down_exps");
}

static activations take(const lq_config *c, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena) {
    uint64_t n = (uint64_t)n_tokens * c->n_experts_used;
    activations s = {.router = lq_arena_floats(arena, (uint64_t)n_tokens * c->n_experts),
                     .x = lq_arena_floats(arena, n * c->n_embd),
                     .gate = lq_arena_floats(arena, n * shape->n_ff),
                     .up = lq_arena_floats(arena, n * shape->n_ff)};
    s.choice = (lq_expert_choice){.n_tokens = n_tokens,
                                  .n_experts = c->n_experts,
                                  .n_used = c->n_experts_used,
                                  .router = s.router,
                                  .first = lq_arena_take(arena, c->n_experts + (uint64_t)1, sizeof(uint32_t)),
                                  .token = lq_arena_take(arena, n, sizeof(uint32_t)),
                                  .weight = lq_arena_floats(arena, n)};
    return s;
}

static void scratch(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec) {
    (void)spec;
    take(&model->config, shape, n_tokens, arena);
}

static void run(lq_pass *f, uint32_t layer, const void *weights, const float *x) {
    const lq_config *c = &f->model->config;
    const lq_layer_shape *shape = &c->layers[layer];
    const expert_weights *w = weights;
    lq_arena arena = lq_pass_arena(f);
    activations s = take(c, shape, f->n_tokens, &arena);
    size_t n_choices = (size_t)f->n_tokens * c->n_experts_used;
    const lq_projection router = {&w->router, s.router}, down = {&w->down, s.x};
    const lq_projection gate_up[] = {{&w->gate, s.gate}, {&w->up, s.up}};
    s.choice.apart = f->is_tentative;
    lq_project(f, &router, 1, x, f->n_tokens);
    f->ops->route(f->backend, &s.choice);
    f->ops->expert_gather(f->backend, s.x, x, &s.choice, c->n_embd);
    lq_project_experts(f, gate_up, 2, s.x, &s.choice);
    f->ops->glu(f->backend, s.gate, s.up, n_choices * shape->n_ff, f->model->arch->activation);
    lq_project_experts(f, &down, 1, s.gate, &s.choice);
    f->ops->expert_sum(f->backend, f->s->branch, s.x, &s.choice, c->n_embd);
}

const lq_block lq_block_experts = {sizeof(expert_weights), load, scratch, run, NULL};
