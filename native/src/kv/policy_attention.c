/* policy_attention.c - of each two neighbours, the one that has received more attention so far stays; the older one if
 * both have received the same. */
#include "kv/policy.h"

static void keep(uint32_t window, const float *received, uint32_t *tokens) {
    for (uint32_t pair = 0; pair < window; pair++) {
        uint32_t older = tokens[2 * (size_t)pair], younger = tokens[2 * (size_t)pair + 1];
        tokens[pair] = received[younger] > received[older] ? younger : older;
    }
}

const lq_kv_policy lq_kv_policy_attention = {.name = "attention", .needs_received = true, .keep = keep};
