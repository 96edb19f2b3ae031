/* spec.h - the shape of a session's KV cache. */
#ifndef LQ_KV_SPEC_H
#define LQ_KV_SPEC_H

#include "backends/backend.h"
#include "kv/recipe.h"

#define LQ_KV_DROP_SINKS 4 /* first tokens, which types of cells keep when they drop the oldest */

#define LQ_MAX_DEVICES 2

/* A device and its layers, first_layer to end_layer - 1, perhaps none. Each device begins where the one before it ends,
 * so that devices are in the order of their layers. */
typedef struct lq_device_layers {
    lq_backend *backend;
    uint32_t first_layer;
    uint32_t end_layer;
} lq_device_layers;

/* Most tokens of a tentative chunk. */
#define LQ_MAX_TENTATIVE 64

/* The shape of a layer's state: keys and values, if it attends; or recurrent rows; or nothing. */
typedef struct lq_kv_layer_spec {
    uint32_t n_kv_heads; /* 0: the layer does not attend */
    uint32_t head_dim;
    uint32_t window;     /* tokens that a query sees, its own included; 0 = the whole context */
    uint32_t state_rows; /* recurrent state: [state_rows][state_cols] floats; 0: the layer has none */
    uint32_t state_cols;
} lq_kv_layer_spec;

typedef struct lq_kv_spec {
    lq_kv_recipe recipe;
    lq_device_layers devices[LQ_MAX_DEVICES];
    uint32_t n_devices;
    uint32_t n_layers;
    const lq_kv_layer_spec *layers; /* [n_layers]; outlives whatever is made from the spec */
    uint32_t n_ctx;                 /* tokens it holds */
    uint32_t n_limit;       /* tokens appended, at most; beyond n_ctx the oldest pages are dropped to make room */
    uint32_t n_chunk;       /* tokens of one chunk, at most */
    uint32_t max_tentative; /* tokens of a tentative chunk, at most (up to LQ_MAX_TENTATIVE); 0 = none */
    bool watches;           /* keep the attention that the last chunk's queries gave, for every layer; f16 cells only */
} lq_kv_spec;

#endif
