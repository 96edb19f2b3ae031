/* log.h - a layer's LogQuant cache: sinks, overlay and open page in full precision, packed pages for all the rest; or
 * nothing for the rest, where the type drops tokens.
 *
 * How many tokens are where follows from the number of tokens alone (lq_kv_log_counts), which ones from the policy. */
#ifndef LQ_KV_LOG_H
#define LQ_KV_LOG_H

#include "backends/backend.h"
#include "kv/spec.h"

/* Sees one piece of a cache's state: n_bytes of host or device memory, perhaps none. The first failure ends the walk.
 */
typedef lq_status (*lq_kv_visit)(void *context, lq_backend *backend, void *memory, uint64_t n_bytes, bool on_host);

/* What all layers of a cache share: the format, and the memory that only the layer being evaluated uses. */
typedef struct lq_kv_log_shared {
    lq_backend *backend;
    const lq_kv_spec *spec;
    lq_page_format format;
    uint32_t max_pages;
    uint32_t max_overlay;      /* cells */
    uint32_t max_full;         /* 3W, or what the context can hold */
    uint32_t max_columns;      /* sinks, full tokens and a chunk */
    uint64_t layer_bytes;      /* device memory of one layer, pages apart */
    uint64_t host_bytes;       /* positions of one layer */
    uint64_t block_bytes;      /* one page of one layer */
    uint64_t lone_bytes;       /* device memory of lone_received */
    uint64_t stage_bytes;      /* device memory below */
    uint64_t work_bytes;       /* host memory below */
    struct lq_kv_stage *stage; /* holds what follows; caches with the same settings share it */
    uint8_t *chunk_k;          /* [n_kv_heads][n_chunk] f16 cells: the chunk being evaluated, if more than one token */
    uint8_t *chunk_v;
    float *received;         /* [n_kv_heads][columns] what the chunk's queries gave */
    float *lone_received;    /* the same for a chunk of one token; of this cache alone */
    float *host_received[2]; /* [max_columns] of one head: so far, by this chunk */
    uint32_t *kept;          /* [max_columns] */
    uint32_t *columns;       /* [n_kv_heads][max_overlay or n_chunk] */
    uint32_t *tokens;        /* [n_kv_heads][max_overlay] */
} lq_kv_log_shared;

typedef struct lq_kv_log_layer {
    uint8_t *sinks_k, *sinks_v;     /* [n_kv_heads][sinks] f16 cells */
    uint8_t *open_k, *open_v;       /* [n_kv_heads][64] f16 cells */
    uint8_t *overlay_k, *overlay_v; /* [n_kv_heads][max_overlay] cells, by rising position */
    float *received;     /* [n_kv_heads][sinks + max_full]: sinks, overlay, open page; NULL if the policy needs none */
    uint32_t *positions; /* host: [n_kv_heads][max_overlay] of the overlay's cells */
    lq_kv_pages pages;
} lq_kv_log_layer;

/* Where n_tokens tokens are. */
typedef struct lq_kv_log_counts {
    uint32_t n_sinks;
    uint32_t n_overlay;
    uint32_t n_open;
    uint32_t n_pages;
} lq_kv_log_counts;

/* Sizes only; LQ_E_MEMORY if they overflow. spec must outlive shared. */
lq_status lq_kv_log_plan(const lq_kv_spec *spec, lq_kv_log_shared *shared);
/* After a plan: the shared memory; with an elder of the same spec, that one's. */
lq_status lq_kv_log_create(lq_backend *backend, lq_kv_log_shared *shared, const lq_kv_log_shared *elder);
void lq_kv_log_free(lq_kv_log_shared *shared);
/* Sets a layer up in zeroed device memory of layer_bytes and host memory of host_bytes; its pages have no frames yet.
 */
void lq_kv_log_layer_place(const lq_kv_log_shared *shared, void *memory, void *host, lq_kv_log_layer *layer);

lq_kv_log_counts lq_kv_log_count(const lq_kv_spec *spec, uint32_t n_tokens);

/* A chunk at positions n_held.. is stored, and args tells what its queries see. v is rotated in place where the type
 * rotates values. A chunk of one token touches nothing but the layer's memory until the other half is called, so that
 * many caches can be attended at once. */
void lq_kv_log_begin(lq_kv_log_shared *shared, lq_kv_log_layer *layer, const float *k, float *v, lq_attention *args);
/* It was attended and is taken in: pages that are complete are coded, tokens are given up. */
void lq_kv_log_end(lq_kv_log_shared *shared, lq_kv_log_layer *layer, const lq_attention *args);

/* The layer's full-precision tokens: sinks, overlay (its positions are layer->positions), open page. Returns 3. */
uint32_t lq_kv_log_runs(const lq_kv_log_shared *shared, const lq_kv_log_layer *layer, uint32_t n_tokens,
                        lq_attn_run runs[3]);

/* True if the state of n_keep tokens can be restored from that of n_held exactly. */
bool lq_kv_log_can_rewind(const lq_kv_spec *spec, uint32_t n_held, uint32_t n_keep);
/* Restores it; must be possible. The backend is between begin() and end(). */
void lq_kv_log_rewind(lq_kv_log_shared *shared, lq_kv_log_layer *layer, uint32_t n_held, uint32_t n_keep);

/* Visits the layer's state at n_tokens, pages apart, in pieces of memory. Masks follow from it and are left out. */
lq_status lq_kv_log_walk(const lq_kv_log_shared *shared, const lq_kv_log_layer *layer, uint32_t n_tokens,
                         lq_kv_visit visit, void *context);
/* LQ_E_FORMAT if a state that came from outside cannot be that of n_tokens. */
lq_status lq_kv_log_check(const lq_kv_log_shared *shared, const lq_kv_log_layer *layer, uint32_t n_tokens);
/* After a walk that wrote the state of n_tokens: the rest that follows from it. Between begin() and end(). */
void lq_kv_log_settle(lq_kv_log_shared *shared, lq_kv_log_layer *layer, uint32_t n_tokens);

/* Adds one layer's bytes. */
void lq_kv_log_add_usage(const lq_kv_log_shared *shared, const lq_kv_log_layer *layer, uint32_t n_tokens,
                         lq_kv_usage *usage);

#endif
