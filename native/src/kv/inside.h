/* inside.h - what a KV cache is made of; for cache.c, which runs it, and look.c, which reads it. */
#ifndef LQ_KV_INSIDE_H
#define LQ_KV_INSIDE_H

#include "kv/cache.h"
#include "kv/cells.h"
#include "kv/log.h"

typedef struct lq_kv_layer_store {
    bool is_log;
    lq_kv_cells cells; /* if not */
    lq_kv_log_layer log;
} lq_kv_layer_store;

struct lq_kv_cache {
    lq_backend *backend;
    lq_kv_spec spec;
    lq_kv_log_shared log; /* if the recipe has pages */
    uint32_t n_tokens;
    uint32_t ring_floor; /* positions below it may have been overwritten in some ring */
    uint32_t min_ring;   /* cells of the smallest ring that is smaller than the context; 0 = none */
    uint32_t max_window; /* of such rings */
    lq_kv_layer_store layers[];
};

#endif
