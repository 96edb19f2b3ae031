/* layer.c - one attention layer's KV cache without a model (logquant_kv.h). */
#include <math.h>
#include <string.h>

#include "core/guard.h"
#include "core/system.h"
#include "kv/cache.h"

#define DEFAULT_CHUNK 512

struct lq_kv_layer {
    lq_guard guard;
    lq_backend *backend;
    lq_kv_cache *cache;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_limit;
    uint32_t n_chunk;
    float scale;
    lq_kv_layer_spec shape;
    lq_kv_work work;
    uint64_t work_bytes;
    /* [n_chunk][heads][head_dim] copies: caches rotate in place, and the caller's arrays must not change */
    float *queries, *keys, *values;
    void *scratch;
};

void lq_kv_layer_options_init(lq_kv_layer_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
    lq_kv_options_init(&options->kv);
}

size_t lq_sizeof_kv_layer_options(void) { return sizeof(lq_kv_layer_options); }

static lq_status check_options(const lq_kv_layer_options *o) {
    if (o == NULL || o->struct_size != sizeof *o)
        return lq_fail(LQ_E_ARG, "KV layer options were not made by lq_kv_layer_options_init of this library");
    if (o->n_kv_heads == 0 || o->n_heads == 0 || o->n_heads % o->n_kv_heads != 0 || o->n_heads > 65536)
        return lq_fail(LQ_E_ARG, "%u query heads and %u KV heads do not fit each other", (unsigned)o->n_heads,
                       (unsigned)o->n_kv_heads);
    if (o->head_dim == 0 || o->head_dim > 65536)
        return lq_fail(LQ_E_ARG, "a head size of %u is not supported", (unsigned)o->head_dim);
    if (o->n_ctx == 0 || o->n_ctx > (uint32_t)1 << 28 || o->n_limit > (uint32_t)1 << 28 || o->n_chunk > 65536)
        return lq_fail(LQ_E_ARG, "a context of %u tokens in chunks of %u is not supported", (unsigned)o->n_ctx,
                       (unsigned)o->n_chunk);
    return LQ_OK;
}

/* Allocation only reserves memory: without this check, a layer that cannot fit would fail late, when it is used. */
static lq_status check_memory(lq_backend *backend, const lq_kv_spec *spec) {
    lq_kv_bytes bytes;
    char needed[32], free_text[32];
    LQ_TRY(lq_kv_cache_plan(spec, &bytes));
    uint64_t available = backend->ops->available(backend);
    uint64_t wanted = bytes.global + bytes.other + bytes.work;
    if (available == 0 || wanted <= available) return LQ_OK;
    lq_format_bytes(needed, wanted);
    lq_format_bytes(free_text, available);
    return lq_fail(LQ_E_MEMORY, "a KV layer of %u tokens needs %s, %s free; ask for a shorter context",
                   (unsigned)spec->n_ctx, needed, free_text);
}

static lq_status create_work(lq_kv_layer *layer, const lq_kv_spec *spec) {
    lq_kv_bytes bytes;
    LQ_TRY(lq_kv_cache_plan(spec, &bytes));
    LQ_TRY(layer->backend->ops->alloc(layer->backend, bytes.work, "KV cache", &layer->work.device[0]));
    layer->work_bytes = bytes.work;
    return LQ_OK;
}

static lq_status fill_layer(lq_kv_layer *layer, const lq_kv_layer_options *o) {
    lq_kv_spec spec = {.n_devices = 1,
                       .n_layers = 1,
                       .layers = &layer->shape,
                       .n_ctx = o->n_ctx,
                       .n_limit = layer->n_limit,
                       .n_chunk = layer->n_chunk};
    lq_scratch_spec scratch = {
        .n_tokens = layer->n_chunk, .n_heads = o->n_heads, .n_kv_heads = o->n_kv_heads, .head_dim = o->head_dim};
    void *memory;
    LQ_TRY(lq_kv_recipe_resolve(&o->kv, &spec.recipe));
    LQ_TRY(lq_kv_cache_check_dropping(&spec));
    LQ_TRY(lq_backend_cpu_create(o->n_threads, &layer->backend));
    spec.devices[0] = (lq_device_layers){layer->backend, 0, 1};
    LQ_TRY(check_memory(layer->backend, &spec));
    LQ_TRY(create_work(layer, &spec));
    LQ_TRY(lq_kv_cache_create(&spec, &layer->work, &layer->cache));
    lq_kv_cache_set_guard(layer->cache, &layer->guard);
    scratch.n_accumulated = lq_kv_cache_n_accumulated(&spec);
    uint64_t head_floats = (uint64_t)layer->n_chunk * o->head_dim;
    LQ_TRY(lq_alloc((o->n_heads + 2 * (uint64_t)o->n_kv_heads) * head_floats * sizeof(float), "tokens", &memory));
    layer->queries = memory;
    layer->keys = layer->queries + o->n_heads * head_floats;
    layer->values = layer->keys + o->n_kv_heads * head_floats;
    LQ_TRY(lq_alloc(layer->backend->ops->scratch_bytes(layer->backend, &scratch), "scratch", &memory));
    layer->scratch = memory;
    return LQ_OK;
}

lq_status lq_kv_layer_create(const lq_kv_layer_options *options, lq_kv_layer **out) {
    void *memory;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    LQ_TRY(check_options(options));
    LQ_TRY(lq_alloc(sizeof(lq_kv_layer), "KV layer", &memory));
    lq_kv_layer *layer = memory;
    lq_guard_init(&layer->guard);
    layer->n_heads = options->n_heads;
    layer->n_kv_heads = options->n_kv_heads;
    layer->head_dim = options->head_dim;
    layer->shape = (lq_kv_layer_spec){.n_kv_heads = options->n_kv_heads, .head_dim = options->head_dim};
    layer->n_limit = options->n_limit > options->n_ctx ? options->n_limit : options->n_ctx;
    layer->n_chunk = options->n_chunk != 0 ? options->n_chunk : DEFAULT_CHUNK;
    uint32_t longest = layer->n_limit > options->n_ctx ? options->n_ctx / 2 : options->n_ctx;
    if (layer->n_chunk > longest) layer->n_chunk = longest;
    layer->scale = options->scale != 0.0f ? options->scale : 1.0f / sqrtf((float)options->head_dim);
    lq_status status = fill_layer(layer, options);
    if (status != LQ_OK) {
        lq_kv_layer_close(&layer);
        return status;
    }
    *out = layer;
    return LQ_OK;
}

void lq_kv_layer_close(lq_kv_layer **layer) {
    if (layer == NULL || *layer == NULL) return;
    lq_kv_layer *held = *layer;
    *layer = NULL;
    if (!lq_guard_end(&held->guard)) return; /* a forked child leaves alone what a thread of its parent was changing */
    lq_kv_cache_free(held->cache);
    if (held->backend != NULL) {
        held->backend->ops->release(held->backend, held->work.device[0], held->work_bytes);
        held->backend->ops->free(held->backend);
    }
    lq_free(held->queries);
    lq_free(held->scratch);
    lq_free(held);
}

static lq_status attend(lq_kv_layer *layer, const float *q, const float *k, const float *v, uint32_t n_tokens,
                        float *out) {
    uint32_t held = lq_kv_cache_n_tokens(layer->cache);
    if (n_tokens == 0 || n_tokens > layer->n_chunk)
        return lq_fail(LQ_E_ARG, "%u tokens at once; there may be 1 to %u", (unsigned)n_tokens,
                       (unsigned)layer->n_chunk);
    if (n_tokens > layer->n_limit - held)
        return lq_fail(LQ_E_FULL, "the context of %u tokens is full: it holds %u and %u more do not fit",
                       (unsigned)layer->n_limit, (unsigned)held, (unsigned)n_tokens);
    const lq_backend_ops *ops = layer->backend->ops;
    lq_kv_chunk chunk = {.pos0 = held, .n_tokens = n_tokens};
    lq_attention args = {.q = layer->queries,
                         .out = out,
                         .n_tokens = n_tokens,
                         .pos0 = held,
                         .n_heads = layer->n_heads,
                         .scale = layer->scale};
    LQ_TRY(lq_kv_cache_reserve(layer->cache, n_tokens));
    memcpy(layer->queries, q, (size_t)n_tokens * layer->n_heads * layer->head_dim * sizeof *q);
    memcpy(layer->keys, k, (size_t)n_tokens * layer->n_kv_heads * layer->head_dim * sizeof *k);
    memcpy(layer->values, v, (size_t)n_tokens * layer->n_kv_heads * layer->head_dim * sizeof *v);
    ops->begin(layer->backend, layer->scratch);
    lq_kv_cache_begin_layer(layer->cache, 0, &chunk, layer->keys, layer->values, &args);
    ops->attention(layer->backend, &args, 1);
    lq_kv_cache_end_layer(layer->cache, 0, &chunk, &args);
    lq_status status = ops->sync(layer->backend);
    if (status == LQ_OK) lq_kv_cache_end_chunk(layer->cache, &chunk);
    ops->end(layer->backend);
    return status;
}

lq_status lq_kv_layer_attend(lq_kv_layer *layer, const float *q, const float *k, const float *v, uint32_t n_tokens,
                             float *out) {
    if (layer == NULL || q == NULL || k == NULL || v == NULL || out == NULL)
        return lq_fail(LQ_E_ARG, "layer, q, k, v and out must be given");
    LQ_TRY(lq_guard_enter(&layer->guard, "KV layer"));
    lq_status status = attend(layer, q, k, v, n_tokens, out);
    lq_guard_leave(&layer->guard);
    return status;
}

lq_status lq_kv_layer_rewind(lq_kv_layer *layer, uint32_t n_keep, uint32_t *n_kept) {
    if (layer == NULL || n_kept == NULL) return lq_fail(LQ_E_ARG, "layer and n_kept must be given");
    LQ_TRY(lq_guard_enter(&layer->guard, "KV layer"));
    layer->backend->ops->begin(layer->backend, layer->scratch);
    *n_kept = lq_kv_cache_rewind(layer->cache, n_keep);
    layer->backend->ops->end(layer->backend);
    lq_guard_leave(&layer->guard);
    return LQ_OK;
}

const lq_kv_cache *lq_kv_layer_cache(const lq_kv_layer *layer) { return layer != NULL ? layer->cache : NULL; }
