/* recurrent.c - layers whose state is a fixed number of rows. */
#include "kv/recurrent.h"

#include "core/checked.h"
#include "kv/inside.h"

static uint64_t row_bytes(const lq_kv_layer_spec *layer) { return layer->state_cols * sizeof(float); }

static lq_status plan(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, uint64_t *n_bytes) {
    if (!lq_mul_u64(layer->state_rows + (uint64_t)spec->max_tentative, row_bytes(layer), n_bytes) ||
        *n_bytes > (uint64_t)1 << 60)
        return lq_fail(LQ_E_MEMORY, "a recurrent state is beyond any memory");
    return LQ_OK;
}

static lq_status create(lq_kv_cache *cache, lq_state *state) {
    lq_kv_recurrent *r = &state->recurrent;
    void *memory;
    LQ_TRY(plan(&cache->spec, state->layer, &r->bytes));
    LQ_TRY(state->backend->ops->alloc(state->backend, r->bytes, "recurrent state", &memory));
    r->rows = memory;
    r->pending = r->rows + (uint64_t)state->layer->state_rows * state->layer->state_cols;
    return LQ_OK;
}

static void free_memory(lq_kv_cache *cache, lq_state *state) {
    (void)cache;
    state->backend->ops->release(state->backend, state->recurrent.rows, state->recurrent.bytes);
}

/* Appends n rows and keeps the newest state_rows. Copies towards the front, in order, so that each row is read before
 * it is overwritten. */
static void take_rows(const lq_state *state, const float *more, uint32_t n) {
    const lq_backend_ops *ops = state->backend->ops;
    uint32_t n_rows = state->layer->state_rows;
    uint64_t cols = state->layer->state_cols;
    for (uint32_t i = 0; i < n_rows && n != 0; i++) {
        uint64_t from = (uint64_t)i + n;
        const float *row = from < n_rows ? state->recurrent.rows + from * cols : more + (from - n_rows) * cols;
        ops->copy(state->backend, state->recurrent.rows + i * cols, row, row_bytes(state->layer));
    }
}

static void clear(const lq_state *state) {
    static const float zeros[256];
    uint64_t n = (uint64_t)state->layer->state_rows * state->layer->state_cols;
    for (uint64_t at = 0; at < n; at += 256)
        state->backend->ops->upload(state->backend, state->recurrent.rows + at, zeros,
                                    (size_t)(n - at < 256 ? n - at : 256) * sizeof(float));
}

lq_kv_recurrent_rows lq_kv_cache_begin_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk) {
    lq_state *state = &cache->states[layer];
    if (chunk->pos0 == 0) clear(state); /* removes what a cancelled or rewound beginning left */
    return (lq_kv_recurrent_rows){state->recurrent.rows, chunk->tentative ? state->recurrent.pending : NULL};
}

void lq_kv_cache_end_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const float *rows) {
    if (!chunk->tentative) take_rows(&cache->states[layer], rows, chunk->n_tokens);
}

static void commit(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, uint32_t n_tokens) {
    (void)cache, (void)chunk;
    take_rows(state, state->recurrent.pending, n_tokens);
}

static bool can_rewind(const lq_kv_cache *cache, const lq_state *state, uint32_t n_keep) {
    (void)state;
    return n_keep == 0 || n_keep == cache->n_tokens;
}

static lq_status walk(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens, uint32_t parts,
                      lq_kv_visit visit, void *context) {
    (void)cache, (void)n_tokens, (void)parts;
    return visit(context, state->backend, state->recurrent.rows, state->layer->state_rows * row_bytes(state->layer));
}

static void add_usage(const lq_kv_cache *cache, const lq_state *state, lq_kv_usage *usage) {
    (void)cache;
    usage->recurrent_bytes += state->layer->state_rows * row_bytes(state->layer);
}

const lq_state_ops lq_state_recurrent = {
    .name = "recurrent",
    .can_undo = false,
    .plan = plan,
    .create = create,
    .free = free_memory,
    .commit = commit,
    .can_rewind = can_rewind,
    .walk = walk,
    .add_usage = add_usage,
};
