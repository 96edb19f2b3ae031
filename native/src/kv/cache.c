/* cache.c - storage of the KV cache. */
#include "kv/cache.h"

#include "core/checked.h"
#include "core/system.h"

typedef struct kv_layer {
    uint32_t window;  /* 0 = sees the whole context */
    uint32_t n_cells; /* position p lives in cell p % n_cells */
    uint16_t *k;
    uint16_t *v;
    uint64_t bytes; /* of k, and of v */
} kv_layer;

struct lq_kv_cache {
    lq_backend *backend;
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_tokens;
    uint32_t ring_floor; /* positions below it may have been overwritten in some ring */
    uint32_t min_ring;   /* cells of the smallest ring that is smaller than the context; 0 = none */
    uint32_t max_window; /* of such rings */
    uint32_t n_ctx;
    kv_layer layers[];
};

/* A ring holds the window and a whole chunk, because a chunk is stored before its first query is answered. */
static uint32_t layer_cells(const lq_kv_spec *spec, uint32_t layer) {
    uint32_t window = spec->windows[layer];
    if (window == 0) return spec->policy->n_full_cells(spec->n_ctx);
    if (window >= spec->n_ctx || spec->n_ctx - window <= spec->n_chunk) return spec->n_ctx;
    return window + spec->n_chunk;
}

static lq_status layer_bytes(const lq_kv_spec *spec, uint32_t layer, uint64_t *out) {
    uint64_t cell = (uint64_t)spec->n_kv_heads * spec->head_dim * sizeof(uint16_t);
    if (!lq_mul_u64(cell, layer_cells(spec, layer), out) || *out > (uint64_t)1 << 60)
        return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
    return LQ_OK;
}

lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out) {
    lq_kv_bytes sum = {0, 0};
    for (uint32_t i = 0; i < spec->n_layers; i++) {
        uint64_t bytes = 0;
        uint64_t *total = spec->windows[i] == 0 ? &sum.global : &sum.sliding;
        LQ_TRY(layer_bytes(spec, i, &bytes));
        if (!lq_add_u64(*total, 2 * bytes, total))
            return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
    }
    *out = sum;
    return LQ_OK;
}

lq_status lq_kv_cache_create(lq_backend *backend, const lq_kv_spec *spec, lq_kv_cache **out) {
    lq_kv_cache *cache;
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof *cache + (uint64_t)spec->n_layers * sizeof cache->layers[0], "KV cache", &memory));
    cache = memory;
    cache->backend = backend;
    cache->n_layers = spec->n_layers;
    cache->n_kv_heads = spec->n_kv_heads;
    cache->head_dim = spec->head_dim;
    cache->n_ctx = spec->n_ctx;
    for (uint32_t i = 0; i < spec->n_layers; i++) {
        kv_layer *layer = &cache->layers[i];
        void *k = NULL, *v = NULL;
        layer->window = spec->windows[i];
        layer->n_cells = layer_cells(spec, i);
        lq_status status = layer_bytes(spec, i, &layer->bytes);
        if (status == LQ_OK) status = backend->ops->alloc(backend, layer->bytes, "KV cache", &k);
        layer->k = k;
        if (status == LQ_OK) status = backend->ops->alloc(backend, layer->bytes, "KV cache", &v);
        layer->v = v;
        if (status != LQ_OK) {
            lq_kv_cache_free(cache);
            return status;
        }
        if (layer->window != 0 && layer->n_cells < spec->n_ctx) {
            if (cache->min_ring == 0 || layer->n_cells < cache->min_ring) cache->min_ring = layer->n_cells;
            if (layer->window > cache->max_window) cache->max_window = layer->window;
        }
    }
    *out = cache;
    return LQ_OK;
}

void lq_kv_cache_free(lq_kv_cache *cache) {
    if (cache == NULL) return;
    for (uint32_t i = 0; i < cache->n_layers; i++) {
        cache->backend->ops->release(cache->backend, cache->layers[i].k, cache->layers[i].bytes);
        cache->backend->ops->release(cache->backend, cache->layers[i].v, cache->layers[i].bytes);
    }
    lq_free(cache);
}

/* Positions [first, end) as runs of neighbouring cells: one, or two where a ring wraps. */
static void add_runs(const lq_kv_cache *cache, const kv_layer *layer, uint32_t first, uint32_t end,
                     lq_attention *args) {
    while (first < end) {
        uint32_t cell = first % layer->n_cells;
        uint32_t n = layer->n_cells - cell < end - first ? layer->n_cells - cell : end - first;
        lq_attn_run *run = &args->runs[args->n_runs++];
        run->k = layer->k + (size_t)cell * cache->head_dim;
        run->v = layer->v + (size_t)cell * cache->head_dim;
        run->head_stride = (size_t)layer->n_cells * cache->head_dim;
        run->n_cells = n;
        run->pos0 = first;
        first += n;
    }
}

/* Raised when cells are written, not when the chunk ends: a cancelled chunk has overwritten them all the same. */
static void raise_ring_floor(lq_kv_cache *cache, uint32_t end) {
    if (cache->min_ring != 0 && end > cache->min_ring && end - cache->min_ring > cache->ring_floor)
        cache->ring_floor = end - cache->min_ring;
}

void lq_kv_cache_attend(lq_kv_cache *cache, uint32_t layer_index, const float *k, const float *v, lq_attention *args) {
    const kv_layer *layer = &cache->layers[layer_index];
    const lq_backend_ops *ops = cache->backend->ops;
    size_t head_stride = (size_t)layer->n_cells * cache->head_dim;
    uint32_t cell0 = args->pos0 % layer->n_cells;
    ops->kv_store(cache->backend, layer->k, k, args->n_tokens, cache->n_kv_heads, cache->head_dim, head_stride, cell0,
                  layer->n_cells);
    ops->kv_store(cache->backend, layer->v, v, args->n_tokens, cache->n_kv_heads, cache->head_dim, head_stride, cell0,
                  layer->n_cells);
    raise_ring_floor(cache, args->pos0 + args->n_tokens);
    args->n_kv_heads = cache->n_kv_heads;
    args->head_dim = cache->head_dim;
    args->window = layer->window;
    args->n_runs = 0;
    uint32_t first = layer->window != 0 && args->pos0 >= layer->window ? args->pos0 - layer->window + 1 : 0;
    add_runs(cache, layer, first, args->pos0 + args->n_tokens, args);
    ops->attention(cache->backend, args);
}

void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens) { cache->n_tokens += n_tokens; }

uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep) {
    if (n_keep >= cache->n_tokens) return cache->n_tokens;
    /* The next token, at position n_keep, looks back to n_keep - window + 1. */
    uint32_t oldest_seen = n_keep >= cache->max_window ? n_keep - cache->max_window + 1 : 0;
    if (cache->ring_floor > oldest_seen) n_keep = 0;
    if (n_keep == 0) cache->ring_floor = 0;
    cache->n_tokens = n_keep;
    return n_keep;
}

uint64_t lq_kv_cache_used_bytes(const lq_kv_cache *cache, uint32_t n_tokens) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < cache->n_layers; i++) {
        const kv_layer *layer = &cache->layers[i];
        uint64_t cells = n_tokens < layer->n_cells ? n_tokens : layer->n_cells;
        bytes += 2 * layer->bytes / layer->n_cells * cells;
    }
    return bytes;
}
