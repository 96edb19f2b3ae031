/* cache.h - the KV cache of one session: per layer, keys (after rope) and values in device memory.
 *
 * Layers that see the whole context are stored as the recipe says; sliding layers are a ring of their window plus one
 * chunk, f16 whatever the recipe. */
#ifndef LQ_KV_CACHE_H
#define LQ_KV_CACHE_H

#include "backends/backend.h"
#include "core/guard.h"
#include "kv/log.h"
#include "kv/spec.h"
#include "logquant_kv.h"

typedef struct lq_kv_bytes {
    uint64_t global;
    uint64_t sliding;
    uint64_t work; /* one chunk of one layer on its way into pages */
} lq_kv_bytes;

/* What a cache would reserve at each of spec's places, out[n_places]. LQ_E_MEMORY if sizes overflow, LQ_E_UNSUPPORTED
 * if heads cannot be stored. */
lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out);
/* Most cells whose received attention a layer will ask for; 0 = never. */
uint32_t lq_kv_cache_n_received(const lq_kv_spec *spec);
/* The places' backends must outlive the cache; spec is copied, its windows must outlive the cache. elder: NULL, or a
 * cache of the same spec with which to share memory that is used within a chunk only. */
lq_status lq_kv_cache_create(const lq_kv_spec *spec, const lq_kv_cache *elder, lq_kv_cache **out);
void lq_kv_cache_free(lq_kv_cache *cache);
/* Sees to the memory that n_tokens more (at most a chunk) take, which must be done before they come; where n_ctx would
 * be exceeded the oldest pages go. LQ_E_MEMORY: nothing else has changed. */
lq_status lq_kv_cache_reserve(lq_kv_cache *cache, uint32_t n_tokens);
/* Pages that went to make room, and how many tokens had come when the last of them did. */
uint32_t lq_kv_cache_first_page(const lq_kv_cache *cache);
uint32_t lq_kv_cache_drop_floor(const lq_kv_cache *cache);
/* Of an empty cache that is about to be filled with such a state. */
void lq_kv_cache_set_dropped(lq_kv_cache *cache, uint32_t first_page, uint32_t drop_floor);
/* LQ_E_ARG if a cache that drops its oldest pages needs a longer context than this. */
lq_status lq_kv_cache_check_dropping(const lq_kv_spec *spec);

/* A layer attends a chunk in three steps: begin, its backend's attention with the args that this fills, end. The chunk
 * is at positions pos0.. (all tokens held so far precede them), n_tokens <= n_chunk; its keys and values [n_tokens]
 * [n_kv_heads][head_dim] are taken in; k, v and args->q may be changed. args: q, out, n_tokens, pos0, n_heads, scale
 * are set. With chunks of one token each, several caches may have begun before they are attended, whatever they share.
 */
void lq_kv_cache_begin_layer(lq_kv_cache *cache, uint32_t layer, float *k, float *v, lq_attention *args);
void lq_kv_cache_end_layer(lq_kv_cache *cache, uint32_t layer, const lq_attention *args);
/* Every layer has n_tokens more, from here on they are history. */
void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens);
/* True if a chunk that some layers have taken in and others have not can be forgotten: it is then as if it had never
 * been, but that pages which made room for it stay gone. Where this is false a chunk that was begun must be finished.
 */
bool lq_kv_cache_can_undo(const lq_kv_cache *cache);

/* Forgets all but the first n_keep tokens; returns how many remain: n_keep, or 0 where that state is lost. Between the
 * backends' begin() and end(). */
uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep);
/* Whether it would be n_keep; n_keep at most the tokens held. */
bool lq_kv_cache_can_rewind(const lq_kv_cache *cache, uint32_t n_keep);
uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache);
/* What lets one thread at a time into the cache's owner, for those who look in from outside (logquant_kv.h). */
void lq_kv_cache_set_guard(lq_kv_cache *cache, lq_guard *guard);
/* lq_kv_get_usage() without it. */
void lq_kv_cache_usage(const lq_kv_cache *cache, lq_kv_usage *usage);

/* ---- the state as pieces of memory (state.c); between the backends' begin() and end() */

/* Parts of the state that do not change once they are written, which a checkpoint need not hold. */
enum { LQ_KV_PART_CELLS = 1, LQ_KV_PART_PAGES = 2 };

/* Visits the state at n_tokens (those held; or to be written, room being reserved): sinks, overlay, open page, what
 * belongs to them, and rings; and the parts asked for. Same settings and n_tokens: the same pieces in the same order.
 */
lq_status lq_kv_cache_walk(lq_kv_cache *cache, uint32_t n_tokens, uint32_t parts, lq_kv_visit visit, void *context);
/* LQ_E_FORMAT if what a walk wrote cannot be the state of n_tokens. */
lq_status lq_kv_cache_check(const lq_kv_cache *cache, uint32_t n_tokens);
/* After a walk that wrote it: the cache holds these n_tokens. */
void lq_kv_cache_settle(lq_kv_cache *cache, uint32_t n_tokens);
/* Gives an empty cache the contents of an elder of the same spec; pages are shared, all else is copied. */
lq_status lq_kv_cache_copy(lq_kv_cache *cache, lq_kv_cache *elder);

#endif
