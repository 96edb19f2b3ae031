/* cache.h - the KV cache of one session: per layer, keys (after rope) and values in device memory.
 *
 * Layers that see the whole context hold what their policy keeps; sliding layers hold a ring of their window plus one
 * chunk, f16 whatever the policy. Layout of a layer: [n_kv_heads][n_cells][head_dim], K and V apart. */
#ifndef LQ_KV_CACHE_H
#define LQ_KV_CACHE_H

#include "backends/backend.h"
#include "kv/policy.h"

typedef struct lq_kv_spec {
    const lq_kv_policy *policy;
    uint32_t n_layers;
    const uint32_t *windows; /* [n_layers]: 0 = sees the whole context */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_ctx;
    uint32_t n_chunk;
} lq_kv_spec;

typedef struct lq_kv_bytes {
    uint64_t global;
    uint64_t sliding;
} lq_kv_bytes;

typedef struct lq_kv_cache lq_kv_cache;

/* What a cache would reserve; LQ_E_MEMORY if sizes overflow. */
lq_status lq_kv_cache_plan(const lq_kv_spec *spec, lq_kv_bytes *out);
/* The backend must outlive the cache. */
lq_status lq_kv_cache_create(lq_backend *backend, const lq_kv_spec *spec, lq_kv_cache **out);
void lq_kv_cache_free(lq_kv_cache *cache);

/* Stores keys and values [n_tokens][n_kv_heads][head_dim] of a layer at positions pos0.., then attends queries at the
 * same positions; n_tokens <= n_chunk. args: q, out, n_tokens, pos0, n_heads, scale are set; the cache fills the rest.
 */
void lq_kv_cache_attend(lq_kv_cache *cache, uint32_t layer, const float *k, const float *v, lq_attention *args);
/* Every layer has n_tokens more, from here on they are history. */
void lq_kv_cache_end_chunk(lq_kv_cache *cache, uint32_t n_tokens);

/* Forgets all but the first n_keep tokens; returns how many remain: n_keep, or 0 where a ring has lost what the tokens
 * after n_keep would have to see. */
uint32_t lq_kv_cache_rewind(lq_kv_cache *cache, uint32_t n_keep);
/* Of the bytes reserved, what n_tokens tokens occupy. */
uint64_t lq_kv_cache_used_bytes(const lq_kv_cache *cache, uint32_t n_tokens);

#endif
