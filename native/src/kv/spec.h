/* spec.h - the shape of a session's KV cache. */
#ifndef LQ_KV_SPEC_H
#define LQ_KV_SPEC_H

#include "backends/backend.h"
#include "kv/recipe.h"

#define LQ_KV_DROP_SINKS 4 /* tokens that types of cells keep for ever when others are dropped */

#define LQ_MAX_DEVICES 2

/* Layers first_layer to end_layer - 1, perhaps none, and the device they are on. Of several devices each begins where
 * the one before it ends, so that the order of devices is the order of layers. */
typedef struct lq_device_layers {
    lq_backend *backend;
    uint32_t first_layer;
    uint32_t end_layer;
} lq_device_layers;

/* Most tokens that a chunk may leave tentative. */
#define LQ_MAX_TENTATIVE 64

/* What a layer remembers of the tokens before: keys and values, if it attends; or a recurrent state; or nothing. */
typedef struct lq_kv_layer_spec {
    uint32_t n_kv_heads; /* 0: the layer does not attend */
    uint32_t head_dim;
    uint32_t window;     /* tokens that a query sees, its own included; 0 = the whole context */
    uint32_t state_rows; /* of a recurrent state: [state_rows][state_cols] floats; 0: it has none */
    uint32_t state_cols;
} lq_kv_layer_spec;

typedef struct lq_kv_spec {
    lq_kv_recipe recipe;
    lq_device_layers devices[LQ_MAX_DEVICES];
    uint32_t n_devices;
    uint32_t n_layers;
    const lq_kv_layer_spec *layers; /* [n_layers]; outlives whatever is made from the spec */
    uint32_t n_ctx;                 /* tokens it holds */
    uint32_t n_limit;               /* tokens that may come; more than n_ctx: the oldest pages go to make room */
    uint32_t n_chunk;               /* tokens that may come at once */
    uint32_t max_tentative;         /* of which a chunk can be tentative, up to LQ_MAX_TENTATIVE; 0 = none */
    bool watches; /* keeps the attention that the last chunk's queries gave, of every layer; f16 cells only */
} lq_kv_spec;

#endif
