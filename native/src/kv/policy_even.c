/* policy_even.c - the paper's choice: every second token, whatever it holds. */
#include "kv/policy.h"

static bool keeps_younger(float received_older, float received_younger) {
    (void)received_older;
    (void)received_younger;
    return false;
}

const lq_kv_policy lq_kv_policy_even = {.name = "even", .needs_received = false, .keeps_younger = keeps_younger};
