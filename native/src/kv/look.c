/* look.c - reads a KV cache from outside (logquant_kv.h). Changes nothing; downloads what is in device memory. */
#include <string.h>

#include "core/half.h"
#include "core/system.h"
#include "formats/q4_0.h"
#include "kv/inside.h"

lq_status lq_kv_get_options(const lq_kv_cache *cache, lq_kv_options *options) {
    if (cache == NULL || options == NULL) return lq_fail(LQ_E_ARG, "cache and options must be given");
    lq_kv_recipe_describe(&cache->spec.recipe, options);
    return LQ_OK;
}

/* Counts the tokens of dropped pages that are not in the overlay, for the first head; other heads may have a few more
 * or less. */
static uint32_t count_dropped(const lq_kv_cache *cache) {
    uint32_t n_dropped = cache->first_page * LQ_PAGE_TOKENS, end = n_dropped + cache->spec.recipe.sinks, layer = 0;
    uint32_t n_overlay = lq_kv_paged_count(&cache->spec, cache->n_tokens).n_overlay, piece[LQ_KV_PAGED_PIECE];
    while (layer < cache->spec.n_layers && cache->states[layer].group == NULL) layer++;
    if (n_dropped == 0 || layer == cache->spec.n_layers) return n_dropped;
    const lq_state *state = &cache->states[layer];
    for (uint32_t first = 0, n; first < n_overlay; first += n) {
        n = lq_kv_paged_positions(&state->group->paged, &state->paged, 0, first, n_overlay, piece);
        for (uint32_t i = 0; i < n; i++) {
            if (piece[i] >= end) return n_dropped; /* positions rise: none of the others is in a dropped page */
            n_dropped--;
        }
    }
    return n_dropped;
}

void lq_kv_cache_usage(const lq_kv_cache *cache, lq_kv_usage *usage) {
    memset(usage, 0, sizeof *usage);
    usage->n_tokens = usage->n_full = cache->n_tokens;
    if (cache->spec.recipe.selects) {
        lq_kv_paged_counts counts = lq_kv_paged_count(&cache->spec, cache->n_tokens);
        usage->n_sinks = counts.n_sinks;
        usage->n_full = counts.n_overlay + counts.n_open;
        uint32_t n_others = cache->n_tokens - usage->n_sinks - usage->n_full;
        usage->n_dropped = cache->spec.recipe.evicts ? n_others : count_dropped(cache);
        usage->n_packed = n_others - usage->n_dropped;
        usage->n_pages = cache->spec.recipe.evicts ? 0 : counts.n_pages - cache->first_page;
    } else {
        usage->n_dropped = cache->first_page * LQ_PAGE_TOKENS;
        usage->n_full = cache->n_tokens - usage->n_dropped;
    }
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        const lq_state *state = &cache->states[i];
        if (state->ops != NULL) state->ops->add_usage(cache, state, usage);
    }
}

/* Enters the owner's guard, so that no other thread changes the cache while it is read. */
static lq_status enter(const lq_kv_cache *cache) {
    if (cache == NULL) return lq_fail(LQ_E_ARG, "cache must be given");
    return cache->guard != NULL ? lq_guard_enter(cache->guard, "KV cache") : LQ_OK;
}

static lq_status leave(const lq_kv_cache *cache, lq_status status) {
    if (cache->guard != NULL) lq_guard_leave(cache->guard);
    return status;
}

lq_status lq_kv_get_usage(const lq_kv_cache *cache, lq_kv_usage *usage) {
    if (usage == NULL) return lq_fail(LQ_E_ARG, "usage must be given");
    LQ_TRY(enter(cache));
    lq_kv_cache_usage(cache, usage);
    return leave(cache, LQ_OK);
}

static lq_status find_layer(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, const lq_state **out) {
    uint32_t n_layers = cache->spec.n_layers, n_kv_heads = layer < n_layers ? cache->spec.layers[layer].n_kv_heads : 0;
    if (layer < n_layers && n_kv_heads == 0)
        return lq_fail(LQ_E_ARG, "layer %u does not attend: it has no keys and values", (unsigned)layer);
    if (layer >= n_layers || kv_head >= n_kv_heads)
        return lq_fail(LQ_E_ARG, "layer %u, KV head %u: there are %u layers and %u KV heads", (unsigned)layer,
                       (unsigned)kv_head, (unsigned)n_layers,
                       (unsigned)(n_kv_heads != 0 ? n_kv_heads : cache->spec.layers[0].n_kv_heads));
    *out = &cache->states[layer];
    return LQ_OK;
}

static lq_status find_paged(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, const lq_state **out) {
    LQ_TRY(find_layer(cache, layer, kv_head, out));
    if ((*out)->group == NULL || cache->spec.recipe.evicts)
        return lq_fail(LQ_E_ARG, "layer %u has no pages", (unsigned)layer);
    return LQ_OK;
}

/* Uses the host's frames: a group's table of addresses is in device memory. */
static const uint8_t *cache_block(const lq_kv_cache *cache, const lq_state *state, uint32_t page) {
    const lq_kv_frame *frame = cache->frames[page % cache->max_pages];
    return lq_kv_frame_memory(frame, (uint32_t)(state->group - cache->groups)) + state->paged.pages.block_offset;
}

static lq_status get_page(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t page, uint8_t *record,
                          size_t n_bytes, size_t *record_bytes, uint64_t *mask) {
    const lq_state *state = NULL;
    LQ_TRY(find_paged(cache, layer, kv_head, &state));
    const lq_page_format *format = &state->group->paged.format;
    lq_backend *backend = state->backend;
    size_t wanted = (size_t)format->k_bytes + format->v_bytes + format->scale_bytes;
    uint32_t n_pages = lq_kv_paged_count(&cache->spec, cache->n_tokens).n_pages;
    if (page >= n_pages || page < cache->first_page)
        return lq_fail(LQ_E_ARG, "page %u: there are coded pages from %u to %u", (unsigned)page,
                       (unsigned)cache->first_page, (unsigned)n_pages);
    if (record_bytes != NULL) *record_bytes = wanted;
    if (mask != NULL)
        backend->ops->download(backend, mask, lq_kv_page_mask(&state->paged.pages, kv_head, page), sizeof *mask);
    if (record == NULL) return LQ_OK;
    if (n_bytes < wanted) return lq_fail(LQ_E_ARG, "room for %zu bytes, a page has %zu", n_bytes, wanted);
    lq_page_record at = lq_page_record_at(format, cache_block(cache, state, page), state->layer->n_kv_heads, kv_head);
    backend->ops->download(backend, record, at.k, format->k_bytes);
    backend->ops->download(backend, record + format->k_bytes, at.v, format->v_bytes);
    backend->ops->download(backend, record + format->k_bytes + format->v_bytes, at.scales, format->scale_bytes);
    return LQ_OK;
}

lq_status lq_kv_get_page(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t page, uint8_t *record,
                         size_t n_bytes, size_t *record_bytes, uint64_t *mask) {
    LQ_TRY(enter(cache));
    return leave(cache, get_page(cache, layer, kv_head, page, record, n_bytes, record_bytes, mask));
}

static lq_status get_order(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint16_t *order, size_t n) {
    const lq_state *state = NULL;
    LQ_TRY(find_paged(cache, layer, kv_head, &state));
    uint32_t head_dim = state->layer->head_dim;
    if (order == NULL || n < head_dim) return lq_fail(LQ_E_ARG, "room for %zu channels, there are %u", n, head_dim);
    if (lq_kv_paged_count(&cache->spec, cache->n_tokens).n_pages == 0)
        return lq_fail(LQ_E_ARG, "the order of channels is learnt with the first page; there is none yet");
    lq_backend *backend = state->backend;
    backend->ops->download(backend, order, state->paged.pages.order + (size_t)kv_head * head_dim,
                           head_dim * sizeof *order);
    return LQ_OK;
}

lq_status lq_kv_get_order(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint16_t *order, size_t n) {
    LQ_TRY(enter(cache));
    return leave(cache, get_order(cache, layer, kv_head, order, n));
}

/* Reads the cells of one head as floats. */
static lq_status read_cells(lq_backend *backend, const lq_attn_run *run, uint32_t head_dim, uint32_t kv_head, bool keys,
                            float *dst) {
    size_t cell_bytes = lq_cell_bytes(run->format, head_dim);
    void *memory;
    if (run->n_cells == 0 || dst == NULL) return LQ_OK;
    LQ_TRY(lq_alloc(run->n_cells * cell_bytes, "cells", &memory));
    const uint8_t *at = memory;
    backend->ops->download(backend, memory, (keys ? run->k : run->v) + kv_head * run->head_bytes,
                           run->n_cells * cell_bytes);
    for (size_t i = 0; i < (size_t)run->n_cells * head_dim; i++) {
        float unit = 1.0f;
        if (run->format == LQ_CELL_Q4_0) {
            if (i % head_dim % LQ_CELL_BLOCK == 0) {
                float block[LQ_CELL_BLOCK];
                uint32_t n = head_dim - (uint32_t)(i % head_dim);
                lq_dequantize_q4_0(block, at, LQ_CELL_BLOCK);
                memcpy(dst + i, block, (n < LQ_CELL_BLOCK ? n : LQ_CELL_BLOCK) * sizeof *dst);
                at += sizeof(lq_block_q4_0);
            }
        } else if (run->format == LQ_CELL_Q8_0) { /* a block begins with its scale d */
            if (i % head_dim % LQ_CELL_BLOCK == 0) at += 2;
            const uint8_t *d = at - i % head_dim % LQ_CELL_BLOCK - 2;
            unit = lq_half_to_float((uint16_t)(d[0] | d[1] << 8));
            dst[i] = unit * (float)(int8_t)*at++;
        } else {
            dst[i] = lq_half_to_float((uint16_t)(at[0] | at[1] << 8));
            at += 2;
        }
    }
    lq_free(memory);
    return LQ_OK;
}

/* Lists the runs of a layer's full-precision tokens, with the position of each run's first token; the overlay's
 * positions are in paged.positions. */
static uint32_t full_runs(const lq_kv_cache *cache, const lq_state *state, lq_attn_run runs[3]) {
    if (state->group != NULL) return lq_kv_paged_runs(&state->group->paged, &state->paged, cache->n_tokens, runs);
    uint32_t window = state->layer->window;
    uint32_t first = window != 0 && cache->n_tokens > window ? cache->n_tokens - window : 0;
    if (window == 0) first = lq_kv_cache_first_cell(cache, state);
    return lq_kv_cells_runs(state, first, cache->n_tokens, runs);
}

static lq_status get_full(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t *positions, float *k,
                          float *v, float *accumulated, size_t n, size_t *n_full) {
    const lq_state *state = NULL;
    lq_attn_run runs[3];
    size_t count = 0;
    LQ_TRY(find_layer(cache, layer, kv_head, &state));
    uint32_t n_runs = full_runs(cache, state, runs), head_dim = state->layer->head_dim;
    const lq_kv_paged_group *paged = state->group != NULL ? &state->group->paged : NULL;
    lq_backend *backend = state->backend;
    for (uint32_t i = 0; i < n_runs; i++) count += runs[i].n_cells;
    if (n_full != NULL) *n_full = count;
    if (positions == NULL && k == NULL && v == NULL && accumulated == NULL) return LQ_OK;
    if (n < count) return lq_fail(LQ_E_ARG, "room for %zu tokens, there are %zu", n, count);
    size_t at = 0;
    for (uint32_t i = 0; i < n_runs; at += runs[i++].n_cells) {
        if (positions != NULL && paged != NULL && i == 1)
            backend->ops->download(backend, positions + at,
                                   state->paged.positions + (size_t)kv_head * paged->max_overlay,
                                   runs[i].n_cells * sizeof *positions);
        else if (positions != NULL)
            for (uint32_t j = 0; j < runs[i].n_cells; j++) positions[at + j] = runs[i].pos0 + j;
        LQ_TRY(read_cells(backend, &runs[i], head_dim, kv_head, true, k != NULL ? k + at * head_dim : NULL));
        LQ_TRY(read_cells(backend, &runs[i], head_dim, kv_head, false, v != NULL ? v + at * head_dim : NULL));
    }
    if (accumulated == NULL) return LQ_OK;
    memset(accumulated, 0, count * sizeof *accumulated);
    if (paged != NULL && state->paged.accumulated != NULL) {
        size_t stride = cache->spec.recipe.sinks + paged->max_full;
        backend->ops->download(backend, accumulated, state->paged.accumulated + kv_head * stride,
                               count * sizeof *accumulated);
        memset(accumulated, 0, runs[0].n_cells * sizeof *accumulated); /* sinks report 0: they are never given up */
    }
    return LQ_OK;
}

lq_status lq_kv_get_full(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t *positions, float *k,
                         float *v, float *accumulated, size_t n, size_t *n_full) {
    LQ_TRY(enter(cache));
    return leave(cache, get_full(cache, layer, kv_head, positions, k, v, accumulated, n, n_full));
}

static lq_status get_attention(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, float *accumulated, size_t n,
                               uint32_t *first_position, size_t *n_cells) {
    const lq_state *state = NULL;
    LQ_TRY(find_layer(cache, layer, kv_head, &state));
    if (first_position == NULL || n_cells == NULL) return lq_fail(LQ_E_ARG, "first_position and n_cells must be given");
    if (state->watched.attention == NULL)
        return lq_fail(LQ_E_ARG, "attention is not watched; ask for it when the session is made (watch_attention)");
    const lq_kv_watched *watched = &state->watched;
    bool gone = watched->first_position + watched->n_cells != cache->n_tokens;
    *first_position = gone ? 0 : watched->first_position;
    *n_cells = gone ? 0 : watched->n_cells;
    if (accumulated == NULL || gone) return LQ_OK;
    if (n < watched->n_cells)
        return lq_fail(LQ_E_ARG, "room for %zu cells, there are %u", n, (unsigned)watched->n_cells);
    const float *at = state->watched.attention + (size_t)kv_head * watched->n_cells;
    lq_backend *backend = state->backend;
    backend->ops->download(backend, accumulated, at, watched->n_cells * sizeof *accumulated);
    return LQ_OK;
}

lq_status lq_kv_get_attention(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, float *accumulated, size_t n,
                              uint32_t *first_position, size_t *n_cells) {
    LQ_TRY(enter(cache));
    return leave(cache, get_attention(cache, layer, kv_head, accumulated, n, first_position, n_cells));
}

static lq_status get_window(const lq_kv_cache *cache, uint32_t layer, uint32_t *window) {
    const lq_state *state = NULL;
    LQ_TRY(find_layer(cache, layer, 0, &state));
    if (window == NULL) return lq_fail(LQ_E_ARG, "window must be given");
    *window = state->layer->window;
    return LQ_OK;
}

static lq_status get_heads(const lq_kv_cache *cache, uint32_t layer, uint32_t *n_kv_heads) {
    if (n_kv_heads == NULL) return lq_fail(LQ_E_ARG, "n_kv_heads must be given");
    if (layer >= cache->spec.n_layers)
        return lq_fail(LQ_E_ARG, "layer %u: there are %u layers", (unsigned)layer, (unsigned)cache->spec.n_layers);
    *n_kv_heads = cache->spec.layers[layer].n_kv_heads;
    return LQ_OK;
}

lq_status lq_kv_get_heads(const lq_kv_cache *cache, uint32_t layer, uint32_t *n_kv_heads) {
    LQ_TRY(enter(cache));
    return leave(cache, get_heads(cache, layer, n_kv_heads));
}

lq_status lq_kv_get_window(const lq_kv_cache *cache, uint32_t layer, uint32_t *window) {
    LQ_TRY(enter(cache));
    return leave(cache, get_window(cache, layer, window));
}
