/* policy.c - the table of KV cache types. */
#include "kv/policy.h"

#include <stddef.h>
#include <string.h>

#define LQ_POLICY(name) extern const lq_kv_policy lq_kv_policy_##name;
#include "kv/policies.def"
#undef LQ_POLICY

static const lq_kv_policy *const policies[] = {
#define LQ_POLICY(name) &lq_kv_policy_##name,
#include "kv/policies.def"
#undef LQ_POLICY
};

/* ",f16,..." made by the preprocessor; the first comma is skipped. */
static const char names[] =
#define LQ_POLICY(name) "," #name
#include "kv/policies.def"
#undef LQ_POLICY
    ;

const char *lq_kv_names(void) { return names + 1; }

lq_status lq_kv_policy_find(const char *name, const lq_kv_policy **out) {
    if (name == NULL) name = policies[0]->name;
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++) {
        if (strcmp(policies[i]->name, name) == 0) {
            *out = policies[i];
            return LQ_OK;
        }
    }
    return lq_fail(LQ_E_UNSUPPORTED, "KV cache type '%.40s' does not exist; this build has: %s", name, lq_kv_names());
}
