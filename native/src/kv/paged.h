/* paged.h - a layer's LogQuant cache: sinks, overlay and open page in full precision, packed pages for all the rest; or
 * nothing for the rest, where the type drops tokens.
 *
 * The number of tokens alone determines how many are where (lq_kv_paged_counts); the policy decides which. */
#ifndef LQ_KV_PAGED_H
#define LQ_KV_PAGED_H

#include "kv/state.h"

/* What the layers of one shape on one device share: the format, and the memory that only the layer being evaluated
 * uses. */
typedef struct lq_kv_paged_group {
    lq_backend *backend;
    const lq_kv_spec *spec;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    lq_page_format format;
    uint32_t max_pages;
    uint32_t max_overlay; /* cells */
    uint32_t max_full;    /* 3W, or what the context can hold */
    uint32_t max_columns; /* sinks, full tokens and a chunk */
    uint32_t max_open;    /* cells of the open page, and of tentative tokens after it */
    uint32_t max_row;     /* sinks, full tokens and a tentative chunk */
    uint64_t layer_bytes; /* device memory of one layer, without its pages */
    uint64_t block_bytes; /* one page of one layer */
    uint64_t lone_bytes;  /* device memory of lone_accumulated */
    uint64_t stage_bytes; /* device memory of the stage (chunk_k, chunk_v, accumulated, columns), in lq_kv_work */
    uint8_t *chunk_k;     /* [n_kv_heads][n_chunk] f16 cells: the chunk being evaluated, if more than one token */
    uint8_t *chunk_v;
    float *accumulated;      /* [n_kv_heads][columns] attention that the chunk's queries gave */
    float *lone_accumulated; /* the same for a chunk of one token; not shared with other caches */
    uint32_t *columns;       /* [n_kv_heads][max_full] the source cells of the tokens that stay */
} lq_kv_paged_group;

typedef struct lq_kv_paged_layer {
    uint8_t *sinks_k, *sinks_v;     /* [n_kv_heads][sinks] f16 cells */
    uint8_t *open_k, *open_v;       /* [n_kv_heads][max_open] f16 cells: the open page, then tentative tokens */
    uint8_t *overlay_k, *overlay_v; /* [n_kv_heads][max_overlay] cells, by rising position */
    uint32_t *positions;            /* [n_kv_heads][max_overlay] of the overlay's cells */
    float *accumulated; /* [n_kv_heads][sinks + max_full]: sinks, overlay, open page; NULL if the policy needs none */
    float *rows; /* [max_tentative][n_kv_heads * max_row]: attention that each token of a tentative chunk gave; only
                    [n_kv_heads][its columns] are used; NULL if the policy needs none */
    lq_kv_pages pages;
} lq_kv_paged_layer;

/* How many of n_tokens tokens are where; n_pages: complete pages. */
typedef struct lq_kv_paged_counts {
    uint32_t n_sinks;
    uint32_t n_overlay;
    uint32_t n_open;
    uint32_t n_pages;
} lq_kv_paged_counts;

/* Computes sizes for layers of this shape; LQ_E_MEMORY if they overflow. spec must outlive shared. */
lq_status lq_kv_paged_plan(const lq_kv_spec *spec, const lq_kv_layer_spec *layer, lq_kv_paged_group *shared);
/* Sets a layer up in zeroed device memory of layer_bytes; its pages have no frames yet. */
void lq_kv_paged_layer_init(const lq_kv_paged_group *shared, void *memory, lq_kv_paged_layer *layer);

lq_kv_paged_counts lq_kv_paged_count(const lq_kv_spec *spec, uint32_t n_tokens);

/* Lists the layer's full-precision tokens: sinks, overlay (its positions are layer->positions), open page. Returns 3.
 */
uint32_t lq_kv_paged_runs(const lq_kv_paged_group *shared, const lq_kv_paged_layer *layer, uint32_t n_tokens,
                          lq_attn_run runs[3]);

#define LQ_KV_PAGED_PIECE 1024

/* Copies at most LQ_KV_PAGED_PIECE positions of a head's overlay to the host, from cell `first` (below n_overlay) on.
 * Returns how many. */
uint32_t lq_kv_paged_positions(const lq_kv_paged_group *shared, const lq_kv_paged_layer *layer, uint32_t head,
                               uint32_t first, uint32_t n_overlay, uint32_t piece[LQ_KV_PAGED_PIECE]);

#endif
