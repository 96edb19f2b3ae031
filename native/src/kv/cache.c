/* cache.c - creates, runs and frees a KV cache, whose layers each have a state of their kind. */
#include "kv/cache.h"

#include "core/checked.h"
#include "core/system.h"
#include "kv/inside.h"

const lq_state_ops *lq_state_kind(const lq_kv_spec *spec, const lq_kv_layer_spec *layer) {
    if (layer->state_rows != 0) return &lq_state_recurrent;
    if (layer->n_kv_heads == 0) return NULL;
    if (layer->window != 0) return &lq_state_ring;
    return spec->recipe.selects ? &lq_state_paged : &lq_state_cells;
}

static lq_status too_large(const lq_kv_spec *spec) {
    return lq_fail(LQ_E_MEMORY, "a KV cache of %u tokens is beyond any memory", (unsigned)spec->n_ctx);
}

static uint64_t table_bytes(const lq_kv_paged_group *paged) { return (uint64_t)paged->max_pages * sizeof(uint8_t *); }

static bool is_paged(const lq_kv_spec *spec, uint32_t layer) {
    return lq_state_kind(spec, &spec->layers[layer]) == &lq_state_paged;
}

/* ---- groups: paged layers of one shape on one device */

typedef struct group_shape {
    uint32_t device;
    const lq_kv_layer_spec *layer; /* the group's first layer */
    uint32_t n_layers;
} group_shape;

/* Returns the index of a paged layer's group among the n found so far; n: the layer begins another. */
static uint32_t find_group(const group_shape *shapes, uint32_t n, uint32_t device, const lq_kv_layer_spec *layer) {
    uint32_t i = 0;
    while (i < n && (shapes[i].device != device || shapes[i].layer->n_kv_heads != layer->n_kv_heads ||
                     shapes[i].layer->head_dim != layer->head_dim))
        i++;
    return i;
}

static lq_status list_groups(const lq_kv_spec *spec, group_shape shapes[LQ_KV_MAX_GROUPS], uint32_t *n) {
    *n = 0;
    for (uint32_t device = 0; device < spec->n_devices; device++) {
        for (uint32_t i = spec->devices[device].first_layer; i < spec->devices[device].end_layer; i++) {
            if (!is_paged(spec, i)) continue;
            uint32_t group = find_group(shapes, *n, device, &spec->layers[i]);
            if (group == LQ_KV_MAX_GROUPS)
                return lq_fail(LQ_E_UNSUPPORTED, "KV cache type '%s' cannot store layers of more than %d shapes",
                               spec->recipe.name, LQ_KV_MAX_GROUPS);
            if (group == *n) shapes[(*n)++] = (group_shape){device, &spec->layers[i], 0};
            shapes[group].n_layers++;
        }
    }
    return LQ_OK;
}

/* ---- sizes */

/* Bytes of a layer's watched attention: for every head, floats for as many cells as the context has tokens. */
static uint64_t watch_bytes(const lq_kv_spec *spec, const lq_kv_layer_spec *layer) {
    return (uint64_t)layer->n_kv_heads * spec->n_ctx * sizeof(float);
}

static lq_status plan_device(const lq_kv_spec *spec, const lq_device_layers *device, lq_kv_bytes *sum) {
    for (uint32_t i = device->first_layer; i < device->end_layer; i++) {
        const lq_kv_layer_spec *layer = &spec->layers[i];
        const lq_state_ops *kind = lq_state_kind(spec, layer);
        uint64_t n_bytes;
        if (kind == NULL) continue;
        if (layer->n_kv_heads != 0) LQ_TRY(lq_kv_recipe_check_head(&spec->recipe, layer->head_dim));
        LQ_TRY(kind->plan(spec, layer, &n_bytes));
        uint64_t *total = layer->window == 0 ? &sum->global : &sum->sliding;
        if (kind == &lq_state_recurrent) total = &sum->recurrent;
        if (!lq_add_u64(*total, n_bytes, total)) return too_large(spec);
        if (spec->watches && !lq_add_u64(sum->other, watch_bytes(spec, layer), &sum->other)) return too_large(spec);
    }
    return LQ_OK;
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out) {
    group_shape shapes[LQ_KV_MAX_GROUPS];
    uint32_t n_groups;
    for (uint32_t i = 0; i < spec->n_devices; i++) {
        out[i] = (lq_kv_bytes){0};
        LQ_TRY(plan_device(spec, &spec->devices[i], &out[i]));
    }
    LQ_TRY(list_groups(spec, shapes, &n_groups));
    for (uint32_t i = 0; i < n_groups; i++) {
        lq_kv_bytes *at = &out[shapes[i].device];
        lq_kv_paged_group paged;
        LQ_TRY(lq_kv_paged_plan(spec, shapes[i].layer, &paged));
        at->other += paged.lone_bytes + table_bytes(&paged) +
                     (i == 0 ? table_bytes(&paged) : 0); /* the host's table of frames */
        at->work = larger(at->work, paged.stage_bytes);
    }
    return LQ_OK;
}

uint32_t lq_kv_cache_n_accumulated(const lq_kv_spec *spec) {
    if (spec->watches) return spec->n_ctx;
    if (!spec->recipe.selects || !spec->recipe.policy->needs_accumulated) return 0;
    for (uint32_t i = 0; i < spec->n_layers; i++) {
        lq_kv_paged_group paged;
        if (!is_paged(spec, i) || lq_kv_paged_plan(spec, &spec->layers[i], &paged) != LQ_OK) continue;
        return paged.max_columns; /* the same for all shapes */
    }
    return 0; /* lq_kv_cache_plan() reports what is wrong */
}

/* ---- life */

static lq_status create_group(lq_kv_cache *cache, lq_kv_group *group, const group_shape *shape) {
    lq_kv_paged_group *paged = &group->paged;
    const lq_backend_ops *ops = group->backend->ops;
    void *memory;
    group->device = shape->device;
    group->n_paged = shape->n_layers;
    LQ_TRY(lq_kv_paged_plan(&cache->spec, shape->layer, paged));
    paged->backend = group->backend;
    cache->max_pages = paged->max_pages; /* the same for all groups */
    LQ_TRY(ops->alloc(group->backend, paged->lone_bytes, "KV cache", &memory));
    paged->lone_accumulated = memory;
    LQ_TRY(ops->alloc(group->backend, group->n_paged * paged->layer_bytes, "KV cache", &group->paged_memory));
    LQ_TRY(ops->alloc(group->backend, table_bytes(paged), "KV cache", &memory));
    group->table = memory;
    if (cache->frames != NULL) return LQ_OK; /* an earlier group has allocated the host's table */
    LQ_TRY(lq_alloc(paged->max_pages * sizeof *cache->frames, "KV cache", &memory));
    cache->frames = memory;
    return LQ_OK;
}

static lq_status create_groups(lq_kv_cache *cache) {
    group_shape shapes[LQ_KV_MAX_GROUPS];
    uint32_t n;
    LQ_TRY(list_groups(&cache->spec, shapes, &n));
    for (uint32_t i = 0; i < n; i++) {
        cache->n_groups = i + 1;
        cache->groups[i].backend = cache->spec.devices[shapes[i].device].backend;
        LQ_TRY(create_group(cache, &cache->groups[i], &shapes[i]));
    }
    for (uint32_t device = 0; device < cache->spec.n_devices; device++)
        for (uint32_t i = cache->spec.devices[device].first_layer; i < cache->spec.devices[device].end_layer; i++)
            if (is_paged(&cache->spec, i))
                cache->states[i].group = &cache->groups[find_group(shapes, n, device, &cache->spec.layers[i])];
    return LQ_OK;
}

static lq_status create_state(lq_kv_cache *cache, lq_state *state) {
    void *memory;
    if (state->ops == NULL) return LQ_OK;
    LQ_TRY(state->ops->create(cache, state));
    if (!cache->spec.watches || state->layer->n_kv_heads == 0) return LQ_OK;
    LQ_TRY(state->backend->ops->alloc(state->backend, watch_bytes(&cache->spec, state->layer), "attention", &memory));
    state->watched.attention = memory;
    return LQ_OK;
}

static lq_status create_all(lq_kv_cache *cache) {
    const lq_kv_spec *spec = &cache->spec;
    /* Set these first: lq_kv_cache_free reads them even after a failed create. */
    for (uint32_t device = 0; device < spec->n_devices; device++) {
        for (uint32_t i = spec->devices[device].first_layer; i < spec->devices[device].end_layer; i++) {
            lq_state *state = &cache->states[i];
            state->layer = &spec->layers[i];
            state->backend = spec->devices[device].backend;
            state->ops = lq_state_kind(spec, state->layer);
        }
    }
    LQ_TRY(create_groups(cache));
    for (uint32_t i = 0; i < spec->n_layers; i++) LQ_TRY(create_state(cache, &cache->states[i]));
    return LQ_OK;
}

lq_status lq_kv_cache_create(const lq_kv_spec *spec, const lq_kv_work *work, lq_kv_cache **out) {
    lq_kv_cache *cache;
    lq_kv_bytes bytes[LQ_MAX_DEVICES];
    void *memory;
    *out = NULL;
    LQ_TRY(lq_kv_cache_plan(spec, bytes));
    LQ_TRY(lq_alloc(sizeof *cache + (uint64_t)spec->n_layers * sizeof cache->states[0], "KV cache", &memory));
    cache = memory;
    cache->spec = *spec;
    cache->work = work;
    lq_status status = create_all(cache);
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
        lq_state *state = &cache->states[i];
        if (state->ops == NULL) continue;
        if (state->watched.attention != NULL)
            state->backend->ops->release(state->backend, state->watched.attention,
                                         watch_bytes(&cache->spec, state->layer));
        if (state->ops->free != NULL) state->ops->free(cache, state);
    }
    for (uint32_t page = 0; cache->frames != NULL && page < cache->max_pages; page++)
        lq_kv_frame_release(cache->frames[page]);
    for (uint32_t i = 0; i < cache->n_groups; i++) {
        lq_kv_group *group = &cache->groups[i];
        const lq_backend_ops *ops = group->backend->ops;
        ops->release(group->backend, group->table, table_bytes(&group->paged));
        ops->release(group->backend, group->paged_memory, group->n_paged * group->paged.layer_bytes);
        ops->release(group->backend, group->paged.lone_accumulated, group->paged.lone_bytes);
    }
    lq_free(cache->frames);
    lq_free(cache);
}

/* ---- frames of pages */

uint32_t lq_kv_cache_end_page(const lq_kv_cache *cache, uint32_t n_tokens) {
    return cache->frames == NULL || cache->max_pages == 0 ? 0 : lq_kv_paged_count(&cache->spec, n_tokens).n_pages;
}

void lq_kv_cache_set_frame(lq_kv_cache *cache, uint32_t page, lq_kv_frame *frame) {
    uint32_t slot = page % cache->max_pages;
    lq_kv_frame_release(cache->frames[slot]);
    cache->frames[slot] = frame;
    for (uint32_t i = 0; i < cache->n_groups; i++) {
        const lq_kv_group *group = &cache->groups[i];
        uint8_t *memory = frame != NULL ? lq_kv_frame_memory(frame, i) : NULL;
        group->backend->ops->upload(group->backend, group->table + slot, &memory, sizeof memory);
    }
}

/* Sets the first page of all layers; releases no frames. */
void lq_kv_cache_set_dropped(lq_kv_cache *cache, uint32_t first_page, uint32_t drop_floor) {
    cache->first_page = first_page;
    cache->drop_floor = drop_floor;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) cache->states[i].paged.pages.first_page = first_page;
}

uint32_t lq_kv_cache_first_page(const lq_kv_cache *cache) { return cache->first_page; }
uint32_t lq_kv_cache_drop_floor(const lq_kv_cache *cache) { return cache->drop_floor; }

lq_status lq_kv_cache_check_dropping(const lq_kv_spec *spec) {
    uint32_t least = 4 * LQ_PAGE_TOKENS;
    if (spec->recipe.selects && !spec->recipe.evicts) least += 3 * spec->recipe.window + spec->recipe.sinks;
    if (spec->n_limit <= spec->n_ctx || spec->n_ctx >= least) return LQ_OK;
    return lq_fail(LQ_E_ARG,
                   "to drop the oldest tokens, KV cache type '%s' needs a context of at least %u; this one is %u",
                   spec->recipe.name, (unsigned)least, (unsigned)spec->n_ctx);
}

/* Drops as many of the oldest complete pages as n_tokens more tokens need. Types that evict tokens never need this. */
static void make_room(lq_kv_cache *cache, uint32_t n_tokens) {
    uint32_t held = cache->n_tokens - cache->first_page * LQ_PAGE_TOKENS, n_ctx = cache->spec.n_ctx;
    if (cache->spec.recipe.evicts || cache->spec.n_limit <= n_ctx || held + n_tokens <= n_ctx) return;
    uint32_t n_pages = (held + n_tokens - n_ctx + LQ_PAGE_TOKENS - 1) / LQ_PAGE_TOKENS;
    lq_kv_cache_set_dropped(cache, cache->first_page + n_pages, cache->n_tokens);
    lq_kv_cache_release_frames(cache, cache->n_tokens);
}

lq_status lq_kv_cache_reserve(lq_kv_cache *cache, uint32_t n_tokens) {
    make_room(cache, n_tokens);
    uint32_t end = lq_kv_cache_end_page(cache, cache->n_tokens + n_tokens);
    uint32_t first = lq_kv_cache_end_page(cache, cache->n_tokens);
    lq_kv_frame_shape shapes[LQ_KV_MAX_GROUPS];
    for (uint32_t i = 0; i < cache->n_groups; i++)
        shapes[i] =
            (lq_kv_frame_shape){cache->groups[i].backend, cache->groups[i].n_paged, cache->groups[i].paged.block_bytes};
    for (uint32_t page = first > cache->first_page ? first : cache->first_page; page < end; page++) {
        lq_kv_frame *frame;
        if (cache->frames[page % cache->max_pages] != NULL) continue;
        LQ_TRY(lq_kv_frame_create(shapes, cache->n_groups, &frame));
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

uint32_t lq_kv_cache_first_cell(const lq_kv_cache *cache, const lq_state *state) {
    return cache->first_page != 0 ? state->cells.n_sinks + cache->first_page * LQ_PAGE_TOKENS : 0;
}

/* ---- a chunk */

uint32_t lq_kv_cache_begin_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, float *k, float *v,
                                 lq_attention *args) {
    lq_state *state = &cache->states[layer];
    args->n_kv_heads = state->layer->n_kv_heads;
    args->head_dim = state->layer->head_dim;
    args->window = state->layer->window;
    args->pages = NULL;
    args->accumulated = NULL;
    return state->ops->begin(cache, state, chunk, k, v, args);
}

void lq_kv_cache_end_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const lq_attention *args) {
    cache->states[layer].ops->end(cache, &cache->states[layer], chunk, args);
}

void lq_kv_cache_end_chunk(lq_kv_cache *cache, const lq_kv_chunk *chunk) {
    if (chunk->tentative)
        cache->pending = *chunk;
    else
        cache->n_tokens += chunk->n_tokens;
}

uint32_t lq_kv_cache_n_pending(const lq_kv_cache *cache) { return cache->pending.n_tokens; }

void lq_kv_cache_commit(lq_kv_cache *cache, uint32_t n_tokens) {
    for (uint32_t i = 0; i < cache->spec.n_layers && n_tokens != 0; i++) {
        lq_state *state = &cache->states[i];
        if (state->ops != NULL && state->ops->commit != NULL)
            state->ops->commit(cache, state, &cache->pending, n_tokens);
    }
    cache->n_tokens += n_tokens;
    cache->pending.n_tokens = 0;
}

bool lq_kv_cache_can_undo(const lq_kv_cache *cache, bool tentative) {
    if (tentative || cache->n_tokens == 0) return true;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++)
        if (cache->states[i].ops != NULL && !cache->states[i].ops->can_undo) return false;
    return true;
}

/* ---- going back */

bool lq_kv_cache_can_rewind(const lq_kv_cache *cache, uint32_t n_keep) {
    if (cache->drop_floor != 0 && n_keep != 0 && n_keep <= cache->drop_floor) return false;
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        const lq_state *state = &cache->states[i];
        if (state->ops != NULL && state->ops->can_rewind != NULL && !state->ops->can_rewind(cache, state, n_keep))
            return false;
    }
    return true;
}

uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep) {
    cache->pending.n_tokens = 0;
    if (n_keep >= cache->n_tokens) return cache->n_tokens;
    if (!lq_kv_cache_can_rewind(cache, n_keep)) n_keep = 0;
    if (n_keep == 0) lq_kv_cache_set_dropped(cache, 0, 0);
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        lq_state *state = &cache->states[i];
        if (state->ops != NULL && state->ops->rewind != NULL) state->ops->rewind(cache, state, n_keep);
    }
    lq_kv_cache_release_frames(cache, n_keep);
    cache->n_tokens = n_keep;
    return n_keep;
}

void lq_kv_cache_set_guard(lq_kv_cache *cache, lq_guard *guard) { cache->guard = guard; }

uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache) { return cache->n_tokens; }
