/* policy.c - the table of policies, and the rule they all follow. */
#include "kv/policy.h"

#include <stddef.h>
#include <string.h>

static const lq_kv_policy *const policies[] = {
#define LQ_POLICY(name) &lq_kv_policy_##name,
#include "kv/policies.def"
#undef LQ_POLICY
};

lq_status lq_kv_policy_find(const char *name, const lq_kv_policy **out) {
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++) {
        if (strcmp(policies[i]->name, name) == 0) {
            *out = policies[i];
            return LQ_OK;
        }
    }
    /* made by the preprocessor: ", 'even', 'newest', ..."; the first two characters are skipped */
    static const char names[] =
#define LQ_POLICY(name) ", '" #name "'"
#include "kv/policies.def"
#undef LQ_POLICY
        ;
    return lq_fail(LQ_E_ARG, "KV selection '%.40s' does not exist; there are %s", name, names + 2);
}

uint32_t lq_kv_n_give_ups(uint32_t n_tokens, uint32_t window) {
    return n_tokens < 3 * window ? 0 : n_tokens / window - 2;
}

uint32_t lq_kv_n_full(uint32_t n_tokens, uint32_t window) {
    return n_tokens - lq_kv_n_give_ups(n_tokens, window) * window;
}

uint32_t lq_kv_select(const lq_kv_policy *policy, uint32_t window, uint32_t n, const float *received, uint32_t *kept) {
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        kept[n_kept++] = i;
        if (n_kept < 3 * window) continue;
        policy->keep(window, received, kept);
        memmove(kept + window, kept + 2 * (size_t)window, window * sizeof *kept);
        n_kept -= window;
    }
    return n_kept;
}
