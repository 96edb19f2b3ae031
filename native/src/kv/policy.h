/* policy.h - a KV cache type: what users name it, and the one question it answers, which tokens keep full precision.
 *
 * Storage (cache.c) asks the policy how many cells of full precision a layer needs, then stores and attends; it knows
 * no policy by name. */
#ifndef LQ_KV_POLICY_H
#define LQ_KV_POLICY_H

#include <stdint.h>

#include "core/status.h"

typedef struct lq_kv_policy {
    const char *name; /* "f16" */
    /* Full-precision cells that a layer holding the whole context needs for n_ctx tokens. */
    uint32_t (*n_full_cells)(uint32_t n_ctx);
} lq_kv_policy;

/* By name; NULL = the default. LQ_E_UNSUPPORTED with the list of what exists. */
lq_status lq_kv_policy_find(const char *name, const lq_kv_policy **out);

#endif
