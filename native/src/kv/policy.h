/* policy.h - a policy answers one question: which W of the 2W oldest full tokens stay in full precision. The rule
 * around it, when and how many leave, is the same for all (docs/format.md, Which tokens stay). */
#ifndef LQ_KV_POLICY_H
#define LQ_KV_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

typedef enum lq_kv_policy_id {
#define LQ_POLICY(name) LQ_KV_POLICY_##name,
#include "kv/policies.def"
#undef LQ_POLICY
} lq_kv_policy_id;

typedef struct lq_kv_policy {
    const char *name;       /* "even" */
    lq_kv_policy_id id;     /* for devices, which cannot call keep() */
    bool needs_accumulated; /* keep() reads accumulated attention */
    /* tokens: [2 window] rising indices; moves the `window` ones that stay to the front, still rising. accumulated:
     * indexed by token, not negative unless the model's numbers are broken; NULL where needs_accumulated is false. */
    void (*keep)(uint32_t window, const float *accumulated, uint32_t *tokens);
} lq_kv_policy;

#define LQ_POLICY(name) extern const lq_kv_policy lq_kv_policy_##name;
#include "kv/policies.def"
#undef LQ_POLICY

/* Finds a policy by name. LQ_E_ARG, with a list of the names, if there is none. */
lq_status lq_kv_policy_find(const char *name, const lq_kv_policy **out);

/* Returns how many full tokens (sinks apart) there are after n_tokens tokens, with window W. Depends on nothing else.
 */
uint32_t lq_kv_n_full(uint32_t n_tokens, uint32_t window);
/* Returns how often W tokens have been given up by then. */
uint32_t lq_kv_n_give_ups(uint32_t n_tokens, uint32_t window);

/* n tokens in order of position join the list of full tokens one after the other; whenever it has 3W, W of its oldest
 * 2W are given up. kept: [lq_kv_n_full(n, window)], filled with the rising indices of those that stay. accumulated:
 * [n], or NULL where the policy does not need it. */
void lq_kv_select(const lq_kv_policy *policy, uint32_t window, uint32_t n, const float *accumulated, uint32_t *kept);

#endif
