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

/* A choice is made when the list has 3W tokens: W that were chosen before (at first the oldest W), then 2W consecutive
 * ones. Only the oldest 2W can leave, so until the last choice kept holds no more than these. */
void lq_kv_select(const lq_kv_policy *policy, uint32_t window, uint32_t n, const float *accumulated, uint32_t *kept) {
    uint32_t n_give_ups = lq_kv_n_give_ups(n, window), n_kept = n - n_give_ups * window, n_chosen = 0;
    for (uint32_t round = 0; round < n_give_ups; round++, n_chosen = window) {
        for (uint32_t i = n_chosen; i < 2 * window; i++) kept[i] = round * window + i;
        policy->keep(window, accumulated, kept);
    }
    for (uint32_t i = n_chosen; i < n_kept; i++) kept[i] = n_give_ups * window + i;
}
