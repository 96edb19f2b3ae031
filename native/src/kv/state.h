/* state.h - the interface of one layer's state, which its kinds (cells, ring, paged, recurrent) implement and through
 * which a cache uses them.
 *
 * A chunk of tokens goes through a layer in steps: begin() stores it, the backend's attention() answers its queries,
 * end() follows. Unless the chunk is tentative, end() also makes its tokens history. A tentative chunk changes no
 * history until commit() makes its first n tokens history, 0 to all; the state after commit(n) depends on these n
 * tokens alone. */
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

/* Visits one piece of a state: n_bytes of device memory, perhaps none. The first failure ends the walk. */
typedef lq_status (*lq_kv_visit)(void *context, lq_backend *backend, void *memory, uint64_t n_bytes);

/* Parts of the state that do not change once they are written, which a checkpoint need not hold. */
enum { LQ_KV_PART_CELLS = 1, LQ_KV_PART_PAGES = 2 };

/* free, commit, rewind, check and restored are NULL where a kind has nothing to do then, can_rewind where it always
 * can. */
typedef struct lq_state_ops {
    const char *name;
    /* True if a chunk that was not ended can be forgotten, layer by layer, as if it had never begun. Where this is
     * false, only tentative chunks and chunks of an empty cache can be. */
    bool can_undo;
    /* Computes the memory of a layer; LQ_E_MEMORY if sizes overflow. */
    lq_status (*plan)(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, uint64_t *n_bytes);
    /* Allocates the state; layer and backend are set. free() works after a create() that failed, too. */
    lq_status (*create)(lq_kv_cache *cache, lq_state *state);
    void (*free)(lq_kv_cache *cache, lq_state *state);
    /* Attention only. Stores the chunk's keys (after rope) and values, [n_tokens][n_kv_heads][head_dim], and completes
     * args[0], in which q, out, pos0, n_tokens, n_heads, scale and softcap are set; for a tentative chunk it makes one
     * of args for each token. k, v and q may be rotated in place. Returns the number of args: 1, or n_tokens. */
    uint32_t (*begin)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, float *k, float *v,
                      lq_attention *args);
    /* Attention only, after the backend's attention(): may rotate args->out back in place. */
    void (*end)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, const lq_attention *args);
    /* Makes the first n_tokens of a tentative chunk history. */
    void (*commit)(lq_kv_cache *cache, lq_state *state, const lq_kv_chunk *chunk, uint32_t n_tokens);
    /* True if the state of n_keep tokens, 0 to those held, can be restored exactly from the present one. */
    bool (*can_rewind)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_keep);
    void (*rewind)(lq_kv_cache *cache, lq_state *state, uint32_t n_keep);
    /* Visits the state of n_tokens tokens; with LQ_KV_PART_CELLS in parts, also cells of the whole context. */
    lq_status (*walk)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens, uint32_t parts,
                      lq_kv_visit visit, void *context);
    /* LQ_E_FORMAT if a state that came from outside cannot be that of n_tokens tokens. */
    lq_status (*check)(const lq_kv_cache *cache, const lq_state *state, uint32_t n_tokens);
    /* Follows a walk that wrote the state of n_tokens tokens: sets the rest, which follows from it. */
    void (*restored)(lq_kv_cache *cache, lq_state *state, uint32_t n_tokens);
    /* Adds the layer's bytes. */
    void (*add_usage)(const lq_kv_cache *cache, const lq_state *state, lq_kv_usage *usage);
} lq_state_ops;

extern const lq_state_ops lq_state_cells, lq_state_ring, lq_state_paged, lq_state_recurrent;

/* The kind of a layer; NULL: it has no state. */
const lq_state_ops *lq_state_kind(const lq_kv_spec *spec, const lq_kv_layer_spec *layer);

#endif
