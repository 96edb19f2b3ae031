/* cache.h - the KV cache of one session: per layer, keys (after rope) and values in device memory.
 *
 * Layers that see the whole context are stored as the recipe says; sliding layers are a ring of their window plus one
 * chunk, f16 whatever the recipe. */
#ifndef LQ_KV_CACHE_H
#define LQ_KV_CACHE_H

#include "backends/backend.h"
#include "kv/spec.h"
#include "logquant_kv.h"

typedef struct lq_kv_bytes {
    uint64_t global;
    uint64_t sliding;
    uint64_t work; /* one chunk of one layer on its way into pages */
} lq_kv_bytes;

/* What a cache would reserve. LQ_E_MEMORY if sizes overflow, LQ_E_UNSUPPORTED if heads cannot be stored. */
lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out);
/* Most cells whose received attention a layer will ask for; 0 = never. */
uint32_t lq_kv_cache_n_received(const lq_kv_spec *spec);
/* The backend must outlive the cache; spec is copied, its windows must outlive the cache. */
lq_status lq_kv_cache_create(lq_backend *backend, const lq_kv_spec *spec, lq_kv_cache **out);
void lq_kv_cache_free(lq_kv_cache *cache);

/* Attends queries of a chunk at positions pos0.. (all tokens held so far precede them) and takes its keys and values
 * [n_tokens][n_kv_heads][head_dim] in; n_tokens <= n_chunk; k, v and args->q may be changed. args: q, out, n_tokens,
 * pos0, n_heads, scale are set; the cache fills the rest. */
void lq_kv_cache_attend(lq_kv_cache *cache, uint32_t layer, float *k, float *v, lq_attention *args);
/* Every layer has n_tokens more, from here on they are history. */
void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens);
/* True if a chunk that some layers have taken in and others have not can be forgotten: it is then as if it had never
 * been. Where this is false a chunk that was begun must be finished. */
bool lq_kv_cache_can_undo(const lq_kv_cache *cache);

/* Forgets all but the first n_keep tokens; returns how many remain: n_keep, or 0 where that state is lost. Between the
 * backend's begin() and end(). */
uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep);
uint32_t lq_kv_cache_n_tokens(const lq_kv_cache *cache);

#endif
