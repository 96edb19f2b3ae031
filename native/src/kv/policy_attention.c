/* policy_attention.c - of two neighbours, the one that has received more attention so far stays. */
#include "kv/policy.h"

static bool keeps_younger(float received_older, float received_younger) { return received_younger > received_older; }

const lq_kv_policy lq_kv_policy_attention = {
    .name = "attention", .needs_received = true, .keeps_younger = keeps_younger};
