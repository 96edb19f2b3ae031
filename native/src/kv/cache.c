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

static uint64_t table_bytes(const lq_kv_log_shared *log) { return (uint64_t)log->max_pages * sizeof(uint8_t *); }

/* Of one layer, with every page that there may be. */
static uint64_t log_bytes(const lq_kv_log_shared *log) {
    return log->layer_bytes + log->host_bytes + log->max_pages * log->block_bytes;
}

static uint32_t place_layers(const lq_place *place) { return place->end_layer - place->first_layer; }

static bool add_watch_bytes(const lq_kv_spec *spec, const lq_place *place, uint64_t *total) {
    uint64_t layer, all;
    if (!spec->watches) return true;
    return lq_mul_u64(lq_kv_watch_floats(spec), sizeof(float), &layer) &&
           lq_mul_u64(place_layers(place), layer + sizeof(lq_kv_watched), &all) && lq_add_u64(*total, all, total);
}

static lq_status plan_place(const lq_kv_spec *spec, const lq_place *place, lq_kv_bytes *out) {
    lq_kv_bytes sum = {0, 0, 0};
    lq_kv_log_shared log = {0};
    if (spec->recipe.selects && place_layers(place) != 0) {
        LQ_TRY(lq_kv_log_plan(spec, &log));
        sum.work = log.stage_bytes + log.lone_bytes + log.work_bytes + 2 * table_bytes(&log);
    }
    for (uint32_t i = place->first_layer; i < place->end_layer; i++) {
        lq_kv_cells cells = {0};
        uint64_t *total = spec->windows[i] == 0 ? &sum.global : &sum.sliding;
        if (!has_log(spec, i)) LQ_TRY(lq_kv_cells_plan(spec, spec->windows[i], &cells));
        if (!lq_add_u64(*total, has_log(spec, i) ? log_bytes(&log) : 2 * cells.bytes, total)) return too_large(spec);
    }
    if (!add_watch_bytes(spec, place, &sum.work)) return too_large(spec);
    *out = sum;
    return LQ_OK;
}

lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out) {
    LQ_TRY(lq_kv_recipe_check_head(&spec->recipe, spec->head_dim));
    for (uint32_t i = 0; i < spec->n_places; i++) LQ_TRY(plan_place(spec, &spec->places[i], &out[i]));
    return LQ_OK;
}

uint32_t lq_kv_cache_n_received(const lq_kv_spec *spec) {
    lq_kv_log_shared log;
    if (spec->watches) return spec->n_ctx;
    if (!spec->recipe.selects || !spec->recipe.policy->needs_received) return 0;
    return lq_kv_log_plan(spec, &log) == LQ_OK ? log.max_columns : 0; /* the cache's own plan reports what is wrong */
}

static lq_status create_logs(lq_kv_cache *cache, uint32_t place, const lq_kv_cache *elder) {
    lq_kv_part *part = &cache->parts[place];
    lq_kv_log_shared *log = &part->log;
    const lq_place *layers = &cache->spec.places[place];
    void *memory;
    LQ_TRY(lq_kv_log_plan(&cache->spec, log));
    cache->max_pages = log->max_pages;
    LQ_TRY(lq_kv_log_create(part->backend, log, elder != NULL ? &elder->parts[place].log : NULL));
    for (uint32_t i = layers->first_layer; i < layers->end_layer; i++) part->n_logs += has_log(&cache->spec, i);
    if (part->n_logs == 0) return LQ_OK;
    const lq_backend_ops *ops = part->backend->ops;
    LQ_TRY(ops->alloc(part->backend, part->n_logs * log->layer_bytes, "KV cache", &part->log_memory));
    LQ_TRY(lq_alloc(part->n_logs * log->host_bytes, "KV cache", &part->log_host));
    LQ_TRY(ops->alloc(part->backend, table_bytes(log), "KV cache", &memory));
    part->table = memory;
    if (cache->frames != NULL) return LQ_OK; /* another place's layers have pages, too */
    LQ_TRY(lq_alloc(log->max_pages * sizeof *cache->frames, "KV cache", &memory));
    cache->frames = memory;
    return LQ_OK;
}

static void place_log(lq_kv_layer_store *layer, uint32_t index) {
    lq_kv_part *part = layer->part;
    uint8_t *memory = part->log_memory, *host = part->log_host;
    lq_kv_log_layer_place(&part->log, memory + index * part->log.layer_bytes, host + index * part->log.host_bytes,
                          &layer->log);
    layer->log.pages.frames = part->table;
    layer->log.pages.block_offset = index * lq_kv_part_stride(part);
}

static uint64_t watch_bytes(const lq_kv_cache *cache, uint32_t place) {
    return place_layers(&cache->spec.places[place]) * lq_kv_watch_floats(&cache->spec) * sizeof(float);
}

static lq_status create_watch(lq_kv_cache *cache, uint32_t place) {
    lq_kv_part *part = &cache->parts[place];
    void *memory;
    LQ_TRY(part->backend->ops->alloc(part->backend, watch_bytes(cache, place), "attention", &memory));
    part->watch = memory;
    return LQ_OK;
}

static lq_status create_cells(lq_kv_cache *cache, lq_kv_layer_store *layer, uint32_t window) {
    LQ_TRY(lq_kv_cells_plan(&cache->spec, window, &layer->cells));
    LQ_TRY(lq_kv_cells_create(layer->part->backend, &layer->cells));
    if (window == 0 || layer->cells.n_cells >= cache->spec.n_limit) return LQ_OK;
    if (cache->min_ring == 0 || layer->cells.n_cells < cache->min_ring) cache->min_ring = layer->cells.n_cells;
    if (window > cache->max_window) cache->max_window = window;
    return LQ_OK;
}

/* The layers at one place. */
static lq_status create_part(lq_kv_cache *cache, uint32_t place, const lq_kv_cache *elder) {
    const lq_kv_spec *spec = &cache->spec;
    uint32_t n_placed = 0;
    if (place_layers(&spec->places[place]) == 0) return LQ_OK;
    if (spec->watches) LQ_TRY(create_watch(cache, place));
    if (spec->recipe.selects) LQ_TRY(create_logs(cache, place, elder));
    for (uint32_t i = spec->places[place].first_layer; i < spec->places[place].end_layer; i++) {
        lq_kv_layer_store *layer = &cache->layers[i];
        if (has_log(spec, i)) {
            layer->is_log = true;
            place_log(layer, n_placed++);
        } else {
            LQ_TRY(create_cells(cache, layer, spec->windows[i]));
        }
    }
    return LQ_OK;
}

static lq_status create_parts(lq_kv_cache *cache, const lq_kv_cache *elder) {
    const lq_kv_spec *spec = &cache->spec;
    void *memory;
    for (uint32_t place = 0; place < spec->n_places; place++) { /* before anything can fail: freeing goes by them */
        cache->parts[place].backend = spec->places[place].backend;
        for (uint32_t i = spec->places[place].first_layer; i < spec->places[place].end_layer; i++)
            cache->layers[i].part = &cache->parts[place];
    }
    if (spec->watches) {
        LQ_TRY(lq_alloc((uint64_t)spec->n_layers * sizeof(lq_kv_watched), "attention", &memory));
        cache->watched = memory;
    }
    for (uint32_t place = 0; place < spec->n_places; place++) LQ_TRY(create_part(cache, place, elder));
    return LQ_OK;
}

lq_status lq_kv_cache_create(const lq_kv_spec *spec, const lq_kv_cache *elder, lq_kv_cache **out) {
    lq_kv_cache *cache;
    void *memory;
    *out = NULL;
    LQ_TRY(lq_kv_recipe_check_head(&spec->recipe, spec->head_dim));
    LQ_TRY(lq_alloc(sizeof *cache + (uint64_t)spec->n_layers * sizeof cache->layers[0], "KV cache", &memory));
    cache = memory;
    cache->spec = *spec;
    lq_status status = create_parts(cache, elder);
    if (status != LQ_OK) {
        lq_kv_cache_free(cache);
        return status;
    }
    *out = cache;
    return LQ_OK;
}

/* ---- frames of pages */

uint32_t lq_kv_cache_end_page(const lq_kv_cache *cache, uint32_t n_tokens) {
    return cache->frames == NULL || cache->max_pages == 0 ? 0 : lq_kv_log_count(&cache->spec, n_tokens).n_pages;
}

void lq_kv_cache_set_frame(lq_kv_cache *cache, uint32_t page, lq_kv_frame *frame) {
    uint32_t slot = page % cache->max_pages;
    lq_kv_frame_release(cache->frames[slot]);
    cache->frames[slot] = frame;
    for (uint32_t i = 0; i < cache->spec.n_places; i++) {
        const lq_kv_part *part = &cache->parts[i];
        uint8_t *memory = frame != NULL ? lq_kv_frame_memory(frame, i) : NULL;
        if (part->n_logs != 0) part->backend->ops->upload(part->backend, part->table + slot, &memory, sizeof memory);
    }
}

/* Sets the first page of all layers, without letting go of any. */
void lq_kv_cache_set_dropped(lq_kv_cache *cache, uint32_t first_page, uint32_t drop_floor) {
    cache->first_page = first_page;
    cache->drop_floor = drop_floor;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++)
        if (cache->layers[i].is_log) cache->layers[i].log.pages.first_page = first_page;
}

uint32_t lq_kv_cache_first_page(const lq_kv_cache *cache) { return cache->first_page; }
uint32_t lq_kv_cache_drop_floor(const lq_kv_cache *cache) { return cache->drop_floor; }

lq_status lq_kv_cache_check_dropping(const lq_kv_spec *spec) {
    uint32_t least = 4 * LQ_PAGE_TOKENS;
    if (spec->recipe.selects && !spec->recipe.drops) least += 3 * spec->recipe.window + spec->recipe.sinks;
    if (spec->n_limit <= spec->n_ctx || spec->n_ctx >= least) return LQ_OK;
    return lq_fail(LQ_E_ARG,
                   "to drop the oldest tokens, KV cache type '%s' needs a context of at least %u; this one is %u",
                   spec->recipe.name, (unsigned)least, (unsigned)spec->n_ctx);
}

/* The oldest complete pages go, as many as it takes; types that drop tokens by themselves have no need. */
static void make_room(lq_kv_cache *cache, uint32_t n_tokens) {
    uint32_t held = cache->n_tokens - cache->first_page * LQ_PAGE_TOKENS, n_ctx = cache->spec.n_ctx;
    if (cache->spec.recipe.drops || cache->spec.n_limit <= n_ctx || held + n_tokens <= n_ctx) return;
    uint32_t n_pages = (held + n_tokens - n_ctx + LQ_PAGE_TOKENS - 1) / LQ_PAGE_TOKENS;
    lq_kv_cache_set_dropped(cache, cache->first_page + n_pages, cache->n_tokens);
    lq_kv_cache_release_frames(cache, cache->n_tokens);
}

lq_status lq_kv_cache_reserve(lq_kv_cache *cache, uint32_t n_tokens) {
    make_room(cache, n_tokens);
    uint32_t end = lq_kv_cache_end_page(cache, cache->n_tokens + n_tokens);
    uint32_t first = lq_kv_cache_end_page(cache, cache->n_tokens);
    lq_kv_frame_shape shapes[LQ_MAX_PLACES];
    for (uint32_t i = 0; i < cache->spec.n_places; i++)
        shapes[i] = (lq_kv_frame_shape){cache->parts[i].n_logs, cache->parts[i].log.block_bytes};
    for (uint32_t page = first > cache->first_page ? first : cache->first_page; page < end; page++) {
        lq_kv_frame *frame;
        if (cache->frames[page % cache->max_pages] != NULL) continue;
        LQ_TRY(lq_kv_frame_create(cache->spec.places, cache->spec.n_places, shapes, &frame));
        lq_kv_cache_set_frame(cache, page, frame);
    }
    return LQ_OK;
}

void lq_kv_cache_release_frames(lq_kv_cache *cache, uint32_t n_tokens) {
    uint32_t end = lq_kv_cache_end_page(cache, n_tokens), n_slots = cache->max_pages;
    uint32_t n_held = end > cache->first_page ? end - cache->first_page : 0;
    for (uint32_t i = n_held; cache->frames != NULL && i < n_slots; i++) /* slots after those of the pages held */
        if (cache->frames[(cache->first_page + i) % n_slots] != NULL)
            lq_kv_cache_set_frame(cache, cache->first_page + i, NULL);
}

void lq_kv_cache_free(lq_kv_cache *cache) {
    if (cache == NULL) return;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++)
        if (!cache->layers[i].is_log) lq_kv_cells_free(cache->layers[i].part->backend, &cache->layers[i].cells);
    for (uint32_t page = 0; cache->frames != NULL && page < cache->max_pages; page++)
        lq_kv_frame_release(cache->frames[page]);
    for (uint32_t i = 0; i < cache->spec.n_places; i++) {
        lq_kv_part *part = &cache->parts[i];
        const lq_backend_ops *ops = part->backend->ops;
        ops->release(part->backend, part->table, table_bytes(&part->log));
        ops->release(part->backend, part->log_memory, part->n_logs * part->log.layer_bytes);
        ops->release(part->backend, part->watch, watch_bytes(cache, i));
        lq_free(part->log_host);
        lq_kv_log_free(&part->log);
    }
    lq_free(cache->watched);
    lq_free(cache->frames);
    lq_free(cache);
}

/* Raised when cells are written, not when the chunk ends: a cancelled chunk has overwritten them all the same. */
static void raise_ring_floor(lq_kv_cache *cache, uint32_t end) {
    if (cache->min_ring != 0 && end > cache->min_ring && end - cache->min_ring > cache->ring_floor)
        cache->ring_floor = end - cache->min_ring;
}

/* Runs of cells follow each other by position. */
static void note_watched(lq_kv_cache *cache, uint32_t layer, const lq_attention *args) {
    if (cache->watched == NULL) return;
    lq_kv_watched *watched = &cache->watched[layer];
    watched->first_position = args->runs[0].pos0;
    watched->n_cells = 0;
    for (uint32_t i = 0; i < args->n_runs; i++) watched->n_cells += args->runs[i].n_cells;
}

void lq_kv_cache_begin_layer(lq_kv_cache *cache, uint32_t layer_index, float *k, float *v, lq_attention *args) {
    lq_kv_layer_store *layer = &cache->layers[layer_index];
    args->n_kv_heads = cache->spec.n_kv_heads;
    args->head_dim = cache->spec.head_dim;
    args->window = cache->spec.windows[layer_index];
    args->pages = NULL;
    args->received = NULL;
    if (layer->is_log) {
        lq_kv_log_begin(&layer->part->log, &layer->log, k, v, args);
    } else {
        uint32_t first = cache->first_page != 0 ? layer->cells.n_sinks + cache->first_page * LQ_PAGE_TOKENS : 0;
        if (cache->watched != NULL) args->received = lq_kv_cache_watch(cache, layer_index);
        lq_kv_cells_begin(layer->part->backend, &cache->spec, &layer->cells, first, k, v, args);
        note_watched(cache, layer_index, args);
        raise_ring_floor(cache, args->pos0 + args->n_tokens);
    }
}

void lq_kv_cache_end_layer(lq_kv_cache *cache, uint32_t layer_index, const lq_attention *args) {
    lq_kv_layer_store *layer = &cache->layers[layer_index];
    if (layer->is_log)
        lq_kv_log_end(&layer->part->log, &layer->log, args);
    else
        lq_kv_cells_end(layer->part->backend, &cache->spec, args);
}

void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens) { cache->n_tokens += n_tokens; }

bool lq_kv_cache_can_undo(const lq_kv_cache *cache) { return !cache->spec.recipe.selects || cache->n_tokens == 0; }

bool lq_kv_cache_can_rewind(const lq_kv_cache *cache, uint32_t n_keep) {
    /* The next token, at position n_keep, looks back to n_keep - window + 1. */
    uint32_t oldest_seen = n_keep >= cache->max_window ? n_keep - cache->max_window + 1 : 0;
    if (cache->ring_floor > oldest_seen || (cache->drop_floor != 0 && n_keep != 0 && n_keep <= cache->drop_floor))
        return false;
    return !cache->spec.recipe.selects || lq_kv_log_can_rewind(&cache->spec, cache->n_tokens, n_keep);
}

uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep) {
    if (n_keep >= cache->n_tokens) return cache->n_tokens;
    if (!lq_kv_cache_can_rewind(cache, n_keep)) n_keep = 0;
    if (n_keep == 0) {
        cache->ring_floor = 0;
        lq_kv_cache_set_dropped(cache, 0, 0);
    }
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        lq_kv_layer_store *layer = &cache->layers[i];
        if (layer->is_log) lq_kv_log_rewind(&layer->part->log, &layer->log, cache->n_tokens, n_keep);
    }
    lq_kv_cache_release_frames(cache, n_keep);
    cache->n_tokens = n_keep;
    return n_keep;
}

void lq_kv_cache_set_guard(lq_kv_cache *cache, lq_guard *guard) { cache->guard = guard; }

uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache) { return cache->n_tokens; }
