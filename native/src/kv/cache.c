/* cache.c - the layers of a KV cache, each of its kind. */
#include "kv/cache.h"

#include "core/checked.h"
#include "core/system.h"
#include "kv/inside.h"

static bool has_log(const lq_kv_spec *spec, uint32_t layer) {
    return spec->recipe.selects && spec->windows[layer] == 0;
}

static lq_status too_large(const lq_kv_spec *spec) {
    return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
}

lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out) {
    lq_kv_bytes sum = {0, 0, 0};
    lq_kv_log_shared log = {0};
    LQ_TRY(lq_kv_recipe_check_head(&spec->recipe, spec->head_dim));
    if (spec->recipe.selects) {
        LQ_TRY(lq_kv_log_plan(spec, &log));
        sum.work = log.stage_bytes + log.work_bytes;
    }
    for (uint32_t i = 0; i < spec->n_layers; i++) {
        lq_kv_cells cells = {0};
        uint64_t *total = spec->windows[i] == 0 ? &sum.global : &sum.sliding;
        if (!has_log(spec, i)) LQ_TRY(lq_kv_cells_plan(spec, spec->windows[i], &cells));
        if (!lq_add_u64(*total, has_log(spec, i) ? log.layer_bytes + log.host_bytes : 2 * cells.bytes, total))
            return too_large(spec);
    }
    *out = sum;
    return LQ_OK;
}

uint32_t lq_kv_cache_n_received(const lq_kv_spec *spec) {
    lq_kv_log_shared log;
    if (!spec->recipe.selects || !spec->recipe.policy->needs_received) return 0;
    return lq_kv_log_plan(spec, &log) == LQ_OK ? log.max_columns : 0; /* the cache's own plan reports what is wrong */
}

static lq_status create_layers(lq_kv_cache *cache) {
    const lq_kv_spec *spec = &cache->spec;
    if (spec->recipe.selects) {
        LQ_TRY(lq_kv_log_plan(spec, &cache->log));
        LQ_TRY(lq_kv_log_create(cache->backend, &cache->log));
    }
    for (uint32_t i = 0; i < spec->n_layers; i++) {
        lq_kv_layer_store *layer = &cache->layers[i];
        layer->is_log = has_log(spec, i);
        if (layer->is_log) {
            LQ_TRY(lq_kv_log_layer_create(&cache->log, &layer->log));
            continue;
        }
        LQ_TRY(lq_kv_cells_plan(spec, spec->windows[i], &layer->cells));
        LQ_TRY(lq_kv_cells_create(cache->backend, &layer->cells));
        if (spec->windows[i] != 0 && layer->cells.n_cells < spec->n_ctx) {
            if (cache->min_ring == 0 || layer->cells.n_cells < cache->min_ring) cache->min_ring = layer->cells.n_cells;
            if (spec->windows[i] > cache->max_window) cache->max_window = spec->windows[i];
        }
    }
    return LQ_OK;
}

lq_status lq_kv_cache_create(lq_backend *backend, const lq_kv_spec *spec, lq_kv_cache **out) {
    lq_kv_cache *cache;
    void *memory;
    *out = NULL;
    LQ_TRY(lq_kv_recipe_check_head(&spec->recipe, spec->head_dim));
    LQ_TRY(lq_alloc(sizeof *cache + (uint64_t)spec->n_layers * sizeof cache->layers[0], "KV cache", &memory));
    cache = memory;
    cache->backend = backend;
    cache->spec = *spec;
    lq_status status = create_layers(cache);
    if (status != LQ_OK) {
        lq_kv_cache_free(cache);
        return status;
    }
    *out = cache;
    return LQ_OK;
}

void lq_kv_cache_free(lq_kv_cache *cache) {
    if (cache == NULL) return;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        lq_kv_layer_store *layer = &cache->layers[i];
        if (layer->is_log)
            lq_kv_log_layer_free(&cache->log, &layer->log);
        else
            lq_kv_cells_free(cache->backend, &layer->cells);
    }
    lq_kv_log_free(&cache->log);
    lq_free(cache);
}

/* Raised when cells are written, not when the chunk ends: a cancelled chunk has overwritten them all the same. */
static void raise_ring_floor(lq_kv_cache *cache, uint32_t end) {
    if (cache->min_ring != 0 && end > cache->min_ring && end - cache->min_ring > cache->ring_floor)
        cache->ring_floor = end - cache->min_ring;
}

void lq_kv_cache_attend(lq_kv_cache *cache, uint32_t layer_index, float *k, float *v, lq_attention *args) {
    lq_kv_layer_store *layer = &cache->layers[layer_index];
    args->n_kv_heads = cache->spec.n_kv_heads;
    args->head_dim = cache->spec.head_dim;
    args->window = cache->spec.windows[layer_index];
    args->pages = NULL;
    args->received = NULL;
    if (layer->is_log) {
        lq_kv_log_attend(&cache->log, &layer->log, k, v, args);
    } else {
        lq_kv_cells_attend(cache->backend, &cache->spec, &layer->cells, k, v, args);
        raise_ring_floor(cache, args->pos0 + args->n_tokens);
    }
}

void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens) { cache->n_tokens += n_tokens; }

bool lq_kv_cache_can_undo(const lq_kv_cache *cache) { return !cache->spec.recipe.selects || cache->n_tokens == 0; }

static bool can_rewind(const lq_kv_cache *cache, uint32_t n_keep) {
    /* The next token, at position n_keep, looks back to n_keep - window + 1. */
    uint32_t oldest_seen = n_keep >= cache->max_window ? n_keep - cache->max_window + 1 : 0;
    if (cache->ring_floor > oldest_seen) return false;
    return !cache->spec.recipe.selects || lq_kv_log_can_rewind(&cache->spec, cache->n_tokens, n_keep);
}

uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep) {
    if (n_keep >= cache->n_tokens) return cache->n_tokens;
    if (!can_rewind(cache, n_keep)) n_keep = 0;
    if (n_keep == 0) cache->ring_floor = 0;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++)
        if (cache->layers[i].is_log) lq_kv_log_rewind(&cache->log, &cache->layers[i].log, cache->n_tokens, n_keep);
    cache->n_tokens = n_keep;
    return n_keep;
}

uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache) { return cache->n_tokens; }
