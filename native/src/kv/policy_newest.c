/* policy_newest.c - the newer half stays: a plain window, as KIVI (Liu et al. 2024) and StreamingLLM (Xiao et al. 2023)
 * have it. */
#include "kv/policy.h"

#include <stddef.h>
#include <string.h>

static void keep(uint32_t window, const float *accumulated, uint32_t *tokens) {
    (void)accumulated;
    memcpy(tokens, tokens + window, window * sizeof *tokens);
}

const lq_kv_policy lq_kv_policy_newest = {
    .name = "newest", .id = LQ_KV_POLICY_newest, .needs_accumulated = false, .keep = keep};
