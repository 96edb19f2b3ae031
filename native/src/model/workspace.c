/* workspace.c - the memory of a pass: activations and the backends' scratch on each device, and some host memory. */
#include <string.h>

#include "core/system.h"
#include "model/block.h"
#include "model/pass.h"

/* The sizes that the model's operations have in general; blocks then set those of their own. */
static lq_scratch_spec scratch_of_model(const lq_model *model, uint32_t n_accumulated, const lq_run_state *state) {
    const lq_config *c = &model->config;
    return (lq_scratch_spec){.n_tokens = state->n_chunk,
                             .n_cols = model->widest_input,
                             .n_heads = c->n_heads,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim,
                             .n_accumulated = n_accumulated,
                             .n_used = c->n_experts_used,
                             .n_together = state->n_parts};
}

/* Blocks run one after the other, and so do operations: each needs as much memory as the one that needs most. */
typedef struct needs {
    uint64_t block_bytes;
    uint64_t scratch_bytes;
} needs;

static void raise(uint64_t *most, uint64_t n_bytes) {
    if (n_bytes > *most) *most = n_bytes;
}

static needs needs_of(const lq_model *model, const lq_device_layers *at, const lq_scratch_spec *of_model) {
    needs most = {0, at->backend->ops->scratch_bytes(at->backend, of_model)};
    for (uint32_t i = at->first_layer; i < at->end_layer; i++) {
        const lq_layer_shape *shape = &model->config.layers[i];
        const lq_block *blocks[] = {lq_mixers[shape->mixer], lq_ffns[shape->ffn]};
        for (size_t j = 0; j < sizeof blocks / sizeof blocks[0]; j++) {
            lq_scratch_spec spec = *of_model;
            lq_arena arena = {0};
            blocks[j]->scratch(model, shape, spec.n_tokens, &arena, &spec);
            raise(&most.block_bytes, arena.n_bytes);
            raise(&most.scratch_bytes, at->backend->ops->scratch_bytes(at->backend, &spec));
        }
    }
    return most;
}

/* Allocates a device's activations. No size overflows: every factor is below 2^31 (config.c, tensors.c), and a session
 * bounds n_chunk to 65536. */
static void allocate_from(lq_arena *arena, const lq_model *model, uint32_t device, uint32_t n_accumulated,
                          const lq_run_state *state, lq_activations *s) {
    const lq_config *c = &model->config;
    const lq_device_layers *at = &model->devices[device];
    bool has_layers = at->end_layer > at->first_layer, has_head = device == model->head_device;
    lq_scratch_spec spec = scratch_of_model(model, n_accumulated, state);
    needs most = has_layers || has_head ? needs_of(model, at, &spec) : (needs){0, 0};
    uint64_t n = state->n_chunk, x = n * c->n_embd, rotations = n * c->n_rot;
    s->x = lq_arena_floats(arena, x);
    s->norm = lq_arena_floats(arena, has_layers || has_head ? x : 0);
    s->branch = lq_arena_floats(arena, has_layers ? x : 0);
    s->rotations_global = lq_arena_floats(arena, has_layers ? rotations : 0);
    s->rotations_sliding =
        lq_arena_floats(arena, has_layers && model->rope_sliding.frequencies != NULL ? rotations : 0);
    s->block = lq_arena_take(arena, most.block_bytes, 1);
    s->logits = lq_arena_floats(arena, has_head ? (uint64_t)state->n_logit_rows * c->n_vocab : 0);
    s->scratch = lq_arena_take(arena, most.scratch_bytes, 1);
}

static lq_run_state sizes_only(uint32_t n_chunk, uint32_t n_parts) {
    return (lq_run_state){
        .n_chunk = n_chunk, .n_parts = n_parts, .n_logit_rows = n_chunk < LQ_LOGIT_ROWS ? n_chunk : LQ_LOGIT_ROWS};
}

static uint64_t rotation_bytes(const lq_model *model, uint32_t n_chunk) {
    return (uint64_t)n_chunk * model->config.n_rot * sizeof(float);
}

/* How many attentions are described at once: those of all parts of a single token, or those of one tentative part. */
static uint64_t n_attentions(uint32_t n_parts) { return n_parts > LQ_MAX_TENTATIVE ? n_parts : LQ_MAX_TENTATIVE; }

static uint64_t crossing_bytes(const lq_model *model, uint32_t n_chunk) {
    return model->n_devices > 1 ? (uint64_t)n_chunk * model->config.n_embd * sizeof(float) : 0;
}

lq_status lq_run_state_plan(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                            uint64_t *n_bytes) {
    lq_run_state state = sizes_only(n_chunk, n_parts);
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_arena arena = {0};
        allocate_from(&arena, model, i, n_accumulated, &state, &state.at[i]);
        n_bytes[i] = arena.n_bytes;
    }
    n_bytes[0] += rotation_bytes(model, n_chunk) + crossing_bytes(model, n_chunk) +
                  n_attentions(n_parts) * sizeof(lq_attention) + n_chunk * sizeof(int32_t);
    return LQ_OK;
}

static lq_status create_device(const lq_model *model, uint32_t device, uint32_t n_accumulated, lq_run_state *state) {
    lq_backend *backend = model->devices[device].backend;
    lq_activations *s = &state->at[device];
    void *memory;
    lq_arena arena = {0};
    allocate_from(&arena, model, device, n_accumulated, state, s);
    uint64_t n_bytes = arena.n_bytes;
    LQ_TRY(backend->ops->alloc(backend, n_bytes, "activations", &memory));
    arena = (lq_arena){.base = memory};
    allocate_from(&arena, model, device, n_accumulated, state, s);
    s->memory = memory;
    s->memory_bytes = n_bytes;
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
    if (model->n_devices == 1) return LQ_OK;
    LQ_TRY(lq_alloc(crossing_bytes(model, state->n_chunk), "activations", &memory));
    state->crossing = memory;
    return LQ_OK;
}

lq_status lq_run_state_create(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                              lq_run_state *out) {
    *out = sizes_only(n_chunk, n_parts);
    lq_status status = create_host(model, out);
    for (uint32_t i = 0; i < model->n_devices && status == LQ_OK; i++)
        status = create_device(model, i, n_accumulated, out);
    if (status != LQ_OK) lq_run_state_free(model, out);
    return status;
}

void lq_run_state_free(const lq_model *model, lq_run_state *state) {
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        backend->ops->release(backend, state->at[i].memory, state->at[i].memory_bytes);
    }
    lq_free(state->rotations_host);
    lq_free(state->crossing);
    lq_free(state->attention);
    lq_free(state->tokens);
    memset(state, 0, sizeof *state);
}

/* Begins devices always in the same order, so that two sessions never wait for each other. */
void lq_model_begin(const lq_model *model, const lq_run_state *state) {
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        backend->ops->begin(backend, state->at[i].scratch);
    }
}

void lq_model_end(const lq_model *model) {
    for (uint32_t i = model->n_devices; i-- > 0;) {
        lq_backend *backend = model->devices[i].backend;
        backend->ops->end(backend);
    }
}
