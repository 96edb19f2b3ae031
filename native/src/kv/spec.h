/* spec.h - the shape of a session's KV cache. */
#ifndef LQ_KV_SPEC_H
#define LQ_KV_SPEC_H

#include "backends/backend.h"
#include "kv/recipe.h"

#define LQ_KV_DROP_SINKS 4 /* tokens that types of cells keep for ever when others are dropped */

#define LQ_MAX_PLACES 2

/* Layers first_layer to end_layer - 1, perhaps none, and the device they are on. Of several places each begins where
 * the one before it ends, so that the order of places is the order of layers. */
typedef struct lq_place {
    lq_backend *backend;
    uint32_t first_layer;
    uint32_t end_layer;
} lq_place;

typedef struct lq_kv_spec {
    lq_kv_recipe recipe;
    lq_place places[LQ_MAX_PLACES];
    uint32_t n_places;
    uint32_t n_layers;
    const uint32_t *windows; /* [n_layers]: 0 = sees the whole context */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_ctx;   /* tokens it holds */
    uint32_t n_limit; /* tokens that may come; more than n_ctx: the oldest pages go to make room */
    uint32_t n_chunk;
    bool watches; /* keeps the attention that the last chunk's queries gave, of every layer; f16 cells only */
} lq_kv_spec;

#endif
