/* block_gated.c - a gated FFN (Shazeer 2020, arXiv 2002.05202): down (act(gate x) * up x). */
#include "model/load.h"
#include "model/pass.h"

typedef struct gated_weights {
    lq_linear gate, up; /* [n_ff][n_embd] */
    lq_linear down;     /* [n_embd][n_ff] */
} gated_weights;

typedef struct activations {
    float *gate, *up; /* [n_tokens][n_ff] */
} activations;

static lq_status load(lq_loader *l, const lq_layer_shape *shape, void *weights) {
    gated_weights *w = weights;
    uint32_t n_embd = l->model->config.n_embd, n_ff = shape->n_ff;
    lq_presence bias = l->arch->ffn_bias;
    if (l->arch->fused) {
        const lq_slice slices[] = {{&w->gate, n_ff}, {&w->up, n_ff}};
        LQ_TRY(lq_load_fused(l, slices, 2, n_embd, "ffn_up"));
    } else {
        LQ_TRY(lq_load_linear(l, &w->gate, n_ff, n_embd, "ffn_gate", bias));
        LQ_TRY(lq_load_linear(l, &w->up, n_ff, n_embd, "ffn_up", bias));
    }
    return lq_load_linear(l, &w->down, n_embd, n_ff, "ffn_down", bias);
}

static activations take(const lq_layer_shape *shape, uint64_t n_tokens, lq_arena *arena) {
    uint64_t n = n_tokens * shape->n_ff;
    return (activations){.gate = lq_arena_floats(arena, n), .up = lq_arena_floats(arena, n)};
}

static void scratch(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec) {
    (void)model, (void)spec;
    take(shape, n_tokens, arena);
}

static void run(lq_pass *f, uint32_t layer, const void *weights, const float *x) {
    const lq_layer_shape *shape = &f->model->config.layers[layer];
    const gated_weights *w = weights;
    lq_arena arena = lq_pass_arena(f);
    activations s = take(shape, f->n_tokens, &arena);
    const lq_projection gate_up[] = {{&w->gate, s.gate}, {&w->up, s.up}}, down = {&w->down, f->s->branch};
    lq_project(f, gate_up, 2, x, f->n_tokens);
    f->ops->glu(f->backend, s.gate, s.up, (size_t)f->n_tokens * shape->n_ff, f->model->arch->activation);
    lq_project(f, &down, 1, s.gate, f->n_tokens);
}

const lq_block lq_block_gated = {sizeof(gated_weights), load, scratch, run, NULL};
