/* policy_even.c - of each two neighbours the older one stays (LogQuant, Chen et al. 2025). */
#include "kv/policy.h"

static void keep(uint32_t window, const float *accumulated, uint32_t *tokens) {
    (void)accumulated;
    for (uint32_t pair = 0; pair < window; pair++) tokens[pair] = tokens[2 * (size_t)pair];
}

const lq_kv_policy lq_kv_policy_even = {
    .name = "even", .id = LQ_KV_POLICY_even, .needs_accumulated = false, .keep = keep};
