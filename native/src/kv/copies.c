/* copies.c - visits a cache's state as pieces of memory, for checkpoints and files, and copies it to a second cache,
 * which shares its pages. */
#include "core/system.h"
#include "kv/inside.h"

/* ---- the state as pieces of memory */

/* Visits a page's blocks in the order of layers, however many devices they are on. */
static lq_status walk_page(lq_kv_cache *cache, const lq_kv_frame *frame, lq_kv_visit visit, void *context) {
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        const lq_state *state = &cache->states[i];
        if (state->group == NULL) continue;
        uint8_t *block = lq_kv_frame_memory(frame, (uint32_t)(state->group - cache->groups));
        LQ_TRY(
            visit(context, state->backend, block + state->paged.pages.block_offset, state->group->paged.block_bytes));
    }
    return LQ_OK;
}

lq_status lq_kv_cache_walk(lq_kv_cache *cache, uint32_t n_tokens, uint32_t parts, lq_kv_visit visit, void *context) {
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        const lq_state *state = &cache->states[i];
        if (state->ops != NULL) LQ_TRY(state->ops->walk(cache, state, n_tokens, parts, visit, context));
    }
    uint32_t n_pages = (parts & LQ_KV_PART_PAGES) != 0 ? lq_kv_cache_end_page(cache, n_tokens) : 0;
    for (uint32_t page = cache->first_page; page < n_pages; page++)
        LQ_TRY(walk_page(cache, cache->frames[page % cache->max_pages], visit, context));
    return LQ_OK;
}

lq_status lq_kv_cache_check(const lq_kv_cache *cache, uint32_t n_tokens) {
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        const lq_state *state = &cache->states[i];
        if (state->ops != NULL && state->ops->check != NULL) LQ_TRY(state->ops->check(cache, state, n_tokens));
    }
    return LQ_OK;
}

void lq_kv_cache_restored(lq_kv_cache *cache, uint32_t n_tokens) {
    for (uint32_t i = 0; i < cache->spec.n_layers; i++) {
        lq_state *state = &cache->states[i];
        if (state->ops != NULL && state->ops->restored != NULL) state->ops->restored(cache, state, n_tokens);
    }
    lq_kv_cache_release_frames(cache, n_tokens);
    cache->n_tokens = n_tokens;
    cache->pending.n_tokens = 0;
}

/* ---- a second cache */

typedef struct piece {
    const uint8_t *memory;
    uint64_t n_bytes;
} piece;

typedef struct pieces {
    piece *list; /* NULL: note_piece() only counts */
    size_t n;
} pieces;

static lq_status note_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    pieces *all = context;
    (void)backend;
    if (all->list != NULL) all->list[all->n] = (piece){memory, n_bytes};
    all->n++;
    return LQ_OK;
}

static lq_status fill_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    pieces *all = context;
    const piece *from = &all->list[all->n++];
    if (from->n_bytes != n_bytes) return lq_fail(LQ_E_INTERNAL, "two caches of one kind differ in shape");
    if (n_bytes == 0) return LQ_OK;
    backend->ops->copy(backend, memory, from->memory, n_bytes);
    return LQ_OK;
}

static void share_frames(lq_kv_cache *cache, const lq_kv_cache *elder) {
    for (uint32_t page = elder->first_page; page < lq_kv_cache_end_page(elder, elder->n_tokens); page++) {
        lq_kv_frame *frame = elder->frames[page % elder->max_pages];
        lq_kv_frame_retain(frame);
        lq_kv_cache_set_frame(cache, page, frame);
    }
}

lq_status lq_kv_cache_copy(lq_kv_cache *cache, lq_kv_cache *elder) {
    uint32_t n_tokens = elder->n_tokens;
    pieces all = {NULL, 0};
    void *memory;
    lq_kv_cache_set_dropped(cache, elder->first_page, elder->drop_floor);
    LQ_TRY(lq_kv_cache_walk(elder, n_tokens, LQ_KV_PART_CELLS, note_piece, &all));
    LQ_TRY(lq_alloc(all.n * sizeof(piece), "KV cache", &memory));
    all = (pieces){memory, 0};
    lq_status status = lq_kv_cache_walk(elder, n_tokens, LQ_KV_PART_CELLS, note_piece, &all);
    all.n = 0;
    if (status == LQ_OK) status = lq_kv_cache_walk(cache, n_tokens, LQ_KV_PART_CELLS, fill_piece, &all);
    lq_free(memory);
    if (status != LQ_OK) return status;
    share_frames(cache, elder);
    lq_kv_cache_restored(cache, n_tokens);
    return LQ_OK;
}
