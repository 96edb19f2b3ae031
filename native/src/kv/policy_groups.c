/* policy_groups.c - of each eight neighbours the four that have received most attention so far stay, of equal ones the
 * older. */
#include "kv/policy.h"

#include <string.h>

#define HALF 4u

static void keep(uint32_t window, const float *received, uint32_t *tokens) {
    for (uint32_t n_kept = 0; n_kept < window; n_kept += HALF) {
        uint32_t *group = tokens + 2 * (size_t)n_kept;
        lq_kv_policy_heaviest.keep(HALF, received, group);
        memmove(tokens + n_kept, group, HALF * sizeof *tokens);
    }
}

const lq_kv_policy lq_kv_policy_groups = {.name = "groups", .needs_received = true, .keep = keep};
