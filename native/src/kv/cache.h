/* cache.h - the state of one session: of each layer what it remembers of the tokens before, in device memory.
 *
 * Layers that see the whole context are stored as the recipe says; sliding layers are a ring of their window plus one
 * chunk, f16 whatever the recipe; recurrent layers are a few rows. */
#ifndef LQ_KV_CACHE_H
#define LQ_KV_CACHE_H

#include "core/guard.h"
#include "kv/state.h"
#include "logquant_kv.h"

/* Memory that one layer at a time computes in: the owner of many caches has one for all of them, as large as the
 * largest of them needs. It may move while nobody computes. */
typedef struct lq_kv_work {
    void *device[LQ_MAX_DEVICES];
} lq_kv_work;

typedef struct lq_kv_bytes {
    uint64_t global;
    uint64_t sliding;
    uint64_t recurrent;
    uint64_t other; /* tables, and what tokens of a chunk of one token gave */
    uint64_t work;  /* of lq_kv_work, here */
} lq_kv_bytes;

/* What a cache would reserve at each of spec's devices, out[n_devices]. LQ_E_MEMORY if sizes overflow, LQ_E_UNSUPPORTED
 * if heads cannot be stored, or layers have too many shapes. */
lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out);
/* Most cells whose accumulated attention a layer will ask for; 0 = never. */
uint32_t lq_kv_cache_n_accumulated(const lq_kv_spec *spec);
/* The devices' backends and work must outlive the cache; spec is copied, its layers must outlive the cache. */
lq_status lq_kv_cache_create(const lq_kv_spec *spec, const lq_kv_work *work, lq_kv_cache **out);
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

/* ---- a chunk (state.h): every layer begins and ends it; then it is ended as a whole. At positions n_tokens.., at most
 * n_chunk tokens, of a tentative one at most max_tentative. */

/* Attention: completes args (state.h, begin), for the backend's attention(). Chunks of one token may have begun in
 * several caches before they are attended, whatever these share. Returns the number of args. */
uint32_t lq_kv_cache_begin_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, float *k, float *v,
                                 lq_attention *args);
void lq_kv_cache_end_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const lq_attention *args);

/* A recurrent layer's state before the chunk, [state_rows][state_cols], and where the rows that a tentative chunk's
 * tokens leave are kept, [n_tokens][state_cols]; NULL: of another chunk they are the layer's own. */
typedef struct lq_kv_recurrent_rows {
    const float *state;
    float *rows;
} lq_kv_recurrent_rows;

lq_kv_recurrent_rows lq_kv_cache_begin_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk);
/* rows: those that the chunk's tokens left. */
void lq_kv_cache_end_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const float *rows);

/* Every layer has ended the chunk: its tokens are history, or pending if it is tentative. */
void lq_kv_cache_end_chunk(lq_kv_cache *cache, const lq_kv_chunk *chunk);
/* Tokens of the tentative chunk that waits for lq_kv_cache_commit(). */
uint32_t lq_kv_cache_n_pending(const lq_kv_cache *cache);
/* The first n_tokens of it (0 to all) are history, the others are forgotten. Between the backends' begin() and end().
 */
void lq_kv_cache_commit(lq_kv_cache *cache, uint32_t n_tokens);
/* True if a chunk that some layers have ended and others have not can be forgotten: it is then as if it had never been,
 * but that pages which made room for it stay gone. Where this is false such a chunk must be finished. */
bool lq_kv_cache_can_undo(const lq_kv_cache *cache, bool tentative);

/* Forgets all but the first n_keep tokens, and what is pending; returns how many remain: n_keep, or 0 where that state
 * is lost. Between the backends' begin() and end(). */
uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep);
/* Whether it would be n_keep; n_keep at most the tokens held. */
bool lq_kv_cache_can_rewind(const lq_kv_cache *cache, uint32_t n_keep);
uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache);
/* What lets one thread at a time into the cache's owner, for those who look in from outside (logquant_kv.h). */
void lq_kv_cache_set_guard(lq_kv_cache *cache, lq_guard *guard);
/* lq_kv_get_usage() without it. */
void lq_kv_cache_usage(const lq_kv_cache *cache, lq_kv_usage *usage);

/* ---- the state as pieces of memory (copies.c); between the backends' begin() and end() */

/* Visits the state at n_tokens (those held; or to be written, room being reserved): of every layer what changes, and
 * the parts asked for. Same settings and n_tokens: the same pieces in the same order. */
lq_status lq_kv_cache_walk(lq_kv_cache *cache, uint32_t n_tokens, uint32_t parts, lq_kv_visit visit, void *context);
/* LQ_E_FORMAT if what a walk wrote cannot be the state of n_tokens. */
lq_status lq_kv_cache_check(const lq_kv_cache *cache, uint32_t n_tokens);
/* After a walk that wrote it: the cache holds these n_tokens. */
void lq_kv_cache_restored(lq_kv_cache *cache, uint32_t n_tokens);
/* Gives an empty cache the contents of an elder of the same spec; pages are shared, all else is copied. */
lq_status lq_kv_cache_copy(lq_kv_cache *cache, lq_kv_cache *elder);

#endif
