/* cache.h - the KV cache of one session: the state of every layer, in device memory.
 *
 * Layers that see the whole context are stored as the recipe says; sliding layers are a ring buffer of their window
 * plus one chunk, f16 whatever the recipe; recurrent layers keep a few rows. */
#ifndef LQ_KV_CACHE_H
#define LQ_KV_CACHE_H

#include "core/guard.h"
#include "kv/state.h"
#include "logquant_kv.h"

/* Work memory for one layer at a time. An owner of many caches has one for all of them, as large as the largest of them
 * needs. It may move while nobody computes. */
typedef struct lq_kv_work {
    void *device[LQ_MAX_DEVICES];
} lq_kv_work;

typedef struct lq_kv_bytes {
    uint64_t global;
    uint64_t sliding;
    uint64_t recurrent;
    uint64_t other; /* tables, watched attention, and what the token of a one-token chunk gave */
    uint64_t work;  /* of lq_kv_work, on this device */
} lq_kv_bytes;

/* Computes what a cache would reserve at each of spec's devices, out[n_devices]. LQ_E_MEMORY if sizes overflow,
 * LQ_E_UNSUPPORTED if heads cannot be stored, or layers have too many shapes. */
lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out);
/* Returns the most cells for which a layer will request accumulated attention; 0 = never. */
uint32_t lq_kv_cache_n_accumulated(const lq_kv_spec *spec);
/* The devices' backends and work must outlive the cache; spec is copied, its layers must outlive the cache. */
lq_status lq_kv_cache_create(const lq_kv_spec *spec, const lq_kv_work *work, lq_kv_cache **out);
void lq_kv_cache_free(lq_kv_cache *cache);
/* Allocates the memory of n_tokens more tokens (at most a chunk), before they are appended; where n_ctx would be
 * exceeded, drops the oldest pages. LQ_E_MEMORY: nothing else has changed. */
lq_status lq_kv_cache_reserve(lq_kv_cache *cache, uint32_t n_tokens);
/* Pages that were dropped to make room, and how many tokens had been appended when the last of them was. */
uint32_t lq_kv_cache_first_page(const lq_kv_cache *cache);
uint32_t lq_kv_cache_drop_floor(const lq_kv_cache *cache);
/* Sets both, in an empty cache that is about to be filled with a state that has dropped pages. */
void lq_kv_cache_set_dropped(lq_kv_cache *cache, uint32_t first_page, uint32_t drop_floor);
/* LQ_E_ARG if a cache that drops its oldest pages needs a longer context than spec's. */
lq_status lq_kv_cache_check_dropping(const lq_kv_spec *spec);

/* ---- a chunk (state.h): every layer begins and ends it; then lq_kv_cache_end_chunk() ends it as a whole. Its
 * positions are n_tokens..; it has at most n_chunk tokens, a tentative one at most max_tentative. */

/* For an attention layer: completes args (begin() in state.h), for the backend's attention(). Chunks of one token may
 * begin in several caches before any of them is attended, even if the caches share lq_kv_work. Returns the number of
 * args. */
uint32_t lq_kv_cache_begin_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, float *k, float *v,
                                 lq_attention *args);
void lq_kv_cache_end_layer(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const lq_attention *args);

/* A recurrent layer's state before the chunk, [state_rows][state_cols], and for a tentative chunk the buffer for the
 * rows that its tokens leave, [n_tokens][state_cols]; NULL for any other chunk: the caller's own buffer holds them. */
typedef struct lq_kv_recurrent_rows {
    const float *state;
    float *rows;
} lq_kv_recurrent_rows;

lq_kv_recurrent_rows lq_kv_cache_begin_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk);
/* rows: [n_tokens][state_cols], left by the chunk's tokens. */
void lq_kv_cache_end_recurrent(lq_kv_cache *cache, uint32_t layer, const lq_kv_chunk *chunk, const float *rows);

/* Call it when every layer has ended the chunk: its tokens become history, or pending if it is tentative. */
void lq_kv_cache_end_chunk(lq_kv_cache *cache, const lq_kv_chunk *chunk);
/* Returns the tokens of the tentative chunk that waits for lq_kv_cache_commit(); 0 = there is none. */
uint32_t lq_kv_cache_n_pending(const lq_kv_cache *cache);
/* Makes the first n_tokens of it (0 to all) history and forgets the others. Call it between the backends' begin() and
 * end(). */
void lq_kv_cache_commit(lq_kv_cache *cache, uint32_t n_tokens);
/* True if a chunk that some layers have ended and others have not can be forgotten: the cache is then as if it had
 * never come, except that pages dropped to make room for it stay dropped. Where this is false such a chunk must be
 * finished. */
bool lq_kv_cache_can_undo(const lq_kv_cache *cache, bool tentative);

/* Forgets pending tokens and all but the first n_keep tokens; returns how many remain: n_keep, or 0 if that state is
 * lost. Call it between the backends' begin() and end(). */
uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep);
/* True if lq_kv_cache_rewind() would keep n_keep tokens; n_keep is at most the tokens held. */
bool lq_kv_cache_can_rewind(const lq_kv_cache *cache, uint32_t n_keep);
uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache);
/* Sets the guard of the cache's owner, which the functions that read the cache from outside (logquant_kv.h) enter. */
void lq_kv_cache_set_guard(lq_kv_cache *cache, lq_guard *guard);
/* lq_kv_get_usage() without entering the guard. */
void lq_kv_cache_usage(const lq_kv_cache *cache, lq_kv_usage *usage);

/* ---- the state as pieces of memory (copies.c); between the backends' begin() and end() */

/* Visits the state of n_tokens tokens: the tokens held, to read it; or, after lq_kv_cache_reserve(), to write it.
 * Visits every layer's changing state, and those unchanging parts (LQ_KV_PART_...) that are asked for. With the same
 * settings and n_tokens the pieces are the same, in the same order. */
lq_status lq_kv_cache_walk(lq_kv_cache *cache, uint32_t n_tokens, uint32_t parts, lq_kv_visit visit, void *context);
/* LQ_E_FORMAT if what a walk wrote cannot be the state of n_tokens tokens. */
lq_status lq_kv_cache_check(const lq_kv_cache *cache, uint32_t n_tokens);
/* Call it after a walk that wrote the state: from then on the cache holds these n_tokens. */
void lq_kv_cache_restored(lq_kv_cache *cache, uint32_t n_tokens);
/* Copies an elder of the same spec into an empty cache; pages are shared, all else is copied. */
lq_status lq_kv_cache_copy(lq_kv_cache *cache, lq_kv_cache *elder);

#endif
