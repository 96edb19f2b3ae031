/* logquant_kv.h - looking into a KV cache, and using one without a model: for tests, research, and other runtimes.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h. Byte layouts: docs/format.md. Positions count from 0, layers, KV heads and pages too.
 */
#ifndef LOGQUANT_KV_H
#define LOGQUANT_KV_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- one attention layer without a model ------------------------------------------------------------------------ */

typedef struct lq_kv_cache lq_kv_cache;
typedef struct lq_kv_layer lq_kv_layer;

typedef struct lq_kv_layer_options {
    uint32_t struct_size;
    uint32_t n_heads; /* query heads, a multiple of n_kv_heads */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_ctx;     /* tokens that it can hold at once */
    uint32_t n_limit;   /* tokens appended in total, at most; beyond n_ctx the oldest pages are dropped; 0 = n_ctx */
    uint32_t n_chunk;   /* tokens of one chunk, at most; 0 = 512 */
    uint32_t n_threads; /* 0 = physical cores */
    float scale;        /* factor of the scores; 0 = 1 / sqrt(head_dim) */
    lq_kv_options kv;
} lq_kv_layer_options;

LQ_API void lq_kv_layer_options_init(lq_kv_layer_options *options);
/* Errors: LQ_E_ARG, LQ_E_UNSUPPORTED, LQ_E_MEMORY. */
LQ_API lq_status lq_kv_layer_create(const lq_kv_layer_options *options, lq_kv_layer **out);
LQ_API void lq_kv_layer_close(lq_kv_layer **layer);
/* Appends n_tokens (1..n_chunk) as one chunk and computes attention for their queries: they see each other in full
 * precision and the past as it is stored. Then tokens are given up (docs/format.md). q, out:
 * [n_tokens][n_heads][head_dim]; k (after rope), v: [n_tokens][n_kv_heads][head_dim]. Errors: LQ_E_ARG, LQ_E_FULL. One
 * thread at a time. */
LQ_API lq_status lq_kv_layer_attend(lq_kv_layer *layer, const float *q, const float *k, const float *v,
                                    uint32_t n_tokens, float *out);
/* Forgets all but the first n_keep tokens; *n_kept = n_keep, or fewer (often 0) if that state cannot be restored
 * exactly. */
LQ_API lq_status lq_kv_layer_rewind(lq_kv_layer *layer, uint32_t n_keep, uint32_t *n_kept);

/* ---- looking ---------------------------------------------------------------------------------------------------- */

/* These caches are borrowed, valid until the owner is closed or appends tokens. */
LQ_API const lq_kv_cache *lq_kv_layer_cache(const lq_kv_layer *layer);
LQ_API const lq_kv_cache *lq_session_kv_cache(const lq_session *session);

/* Gets the cache's type with all its settings, as in lq_session_info; strings are borrowed from the cache. */
LQ_API lq_status lq_kv_get_options(const lq_kv_cache *cache, lq_kv_options *options);
LQ_API lq_status lq_kv_get_usage(const lq_kv_cache *cache, lq_kv_usage *usage);
/* Reads one coded page of one KV head: its record (key codes, value codes, scales) and its mask (bit t: token t is read
 * in full precision). record: NULL, or a buffer of n_bytes, at least *record_bytes. Errors: LQ_E_ARG (no such page; the
 * layer has no pages). */
LQ_API lq_status lq_kv_get_page(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t page,
                                uint8_t *record, size_t n_bytes, size_t *record_bytes, uint64_t *mask);
/* Reads the page order of a head's key channels: order[i] is the channel at index i of a page. LQ_E_ARG before the
 * first page. */
LQ_API lq_status lq_kv_get_order(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint16_t *order, size_t n);
/* Reads the tokens held in full precision, by rising position: positions[n], k and v [n][head_dim] as stored (v rotated
 * where the type rotates values), accumulated[n] (accumulated attention; 0 for sinks and where it is not kept). Any
 * pointer may be NULL; n is the capacity of the arrays, in tokens. *n_full = how many tokens there are. */
LQ_API lq_status lq_kv_get_full(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, uint32_t *positions,
                                float *k, float *v, float *accumulated, size_t n, size_t *n_full);

/* Gets the number of KV heads of a layer; 0: the layer keeps no keys, and the other functions here refuse it. LQ_E_ARG:
 * no such layer. */
LQ_API lq_status lq_kv_get_heads(const lq_kv_cache *cache, uint32_t layer, uint32_t *n_kv_heads);
/* Gets how many positions a query of this layer sees, its own included; 0 = all before it. LQ_E_ARG: no such layer. */
LQ_API lq_status lq_kv_get_window(const lq_kv_cache *cache, uint32_t layer, uint32_t *window);
/* For a session created with watch_attention: reads how much attention the queries of the last chunk (at most n_chunk
 * tokens, as evaluated) gave each cell of a layer, for the positions from *first_position on: softmax probabilities,
 * summed over the chunk's tokens and the query heads of the group. After a chunk of one token it is the attention
 * distribution itself, summed over the heads of the group. *n_cells = 0 if the session has not evaluated its last token
 * since: before the first chunk, after going back, in a fork. accumulated: NULL, or a buffer of n = *n_cells floats.
 * Errors: LQ_E_ARG (not watched, no such layer or head, too small a buffer). */
LQ_API lq_status lq_kv_get_attention(const lq_kv_cache *cache, uint32_t layer, uint32_t kv_head, float *accumulated,
                                     size_t n, uint32_t *first_position, size_t *n_cells);

LQ_API size_t lq_sizeof_kv_layer_options(void);

#ifdef __cplusplus
}
#endif

#endif
