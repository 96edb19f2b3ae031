/* state.h - the state of one layer: what its kinds (cells, ring, paged, recurrent) have in common, and what a cache
 * knows of them.
 *
 * A chunk of tokens goes through a layer in steps: begin() stores it, so that its queries can be answered; end()
 * follows when they were. Unless the chunk is tentative, end() also takes it in: from there on its tokens are history.
 * A tentative chunk changes no history until commit() takes its first n tokens in, 0 to all; what commit(n) leaves
 * depends on these n tokens alone. */
#ifndef LQ_KV_STATE_H
#define LQ_KV_STATE_H

#include "kv/spec.h"
#include "logquant.h"

typedef struct lq_kv_cache lq_kv_cache;
typedef struct lq_state lq_state;

/* Tokens at positions pos0 .. pos0 + n_tokens - 1. */
typedef struct lq_kv_chunk {
    uint32_t pos0;
    uint32_t n_tokens;
    bool tentative;
} lq_kv_chunk;

/* Sees one piece of a state: n_bytes of device memory, perhaps none. The first failure ends the walk. */
typedef lq_status (*lq_kv_visit)(void *context, lq_backend *backend, void *memory, uint64_t n_bytes);

/* Parts of the state that do not change once they are written, which a checkpoint need not hold. */
enum { LQ_KV_PART_CELLS = 1, LQ_KV_PART_PAGES = 2 };

typedef struct lq_state_ops {
    const char *name;
    /* A chunk that was not ended can be forgotten: state after state it is as if it had never begun. Where this is
     * false, that holds for tentative chunks and for an empty cache only. */
    bool can_undo;
    /* Memory of a layer; LQ_E_MEMORY if sizes overflow. */
    lq_status (*plan)(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, uint64_t *n_bytes);
    /* state->layer and state->backend are set. free() works after a create() that failed, too. */
    lq_status (*create)(lq_kv_cache *cache, lq_state *state);
    void (*free)(lq_kv_cache *cache, lq_state *state);
    /* Attention only. Stores the chunk's keys (after rope) and values, [n_tokens][n_kv_heads][head_dim], and completes
     * args[0], in which q, out, pos0, n_tokens, n_heads, scale and softcap are set; for a tentative chunk it makes one
     * of each token. k, v and q may be rotated in place. Returns the number of args: 1, or n_tokens. */
    uint32_t (*begin)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, float *k, float *v,
                      lq_attention *args);
    /* They were attended. */
    void (*end)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, const lq_attention *args);
    /* The first n_tokens of a tentative chunk are history. */
    void (*commit)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, uint32_t n_tokens);
    /* Whether the state of n_keep tokens, 0 to those held, can be restored exactly from that of those held. */
    bool (*can_rewind)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_keep);
    void (*rewind)(lq_kv_cache *cache, lq_state *state, uint32_t n_keep);
    /* Visits the state at n_tokens; LQ_KV_PART_CELLS in parts: cells of the whole context, too. */
    lq_status (*walk)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens, uint32_t parts,
                      lq_kv_visit visit, void *context);
    /* LQ_E_FORMAT if what came from outside cannot be the state of n_tokens. */
    lq_status (*check)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens);
    /* After a walk that wrote the state of n_tokens: the rest, which follows from it. */
    void (*restored)(lq_kv_cache *cache, lq_state *state, uint32_t n_tokens);
    /* Adds the layer's bytes. */
    void (*add_usage)(const lq_kv_cache *cache, const lq_state *state, lq_kv_usage *usage);
} lq_state_ops;

extern const lq_state_ops lq_state_cells, lq_state_ring, lq_state_paged, lq_state_recurrent;

/* The kind of a layer; NULL: it has no state. */
const lq_state_ops *lq_state_kind(const lq_kv_spec *spec, const lq_kv_layer_spec *layer);

#endif
