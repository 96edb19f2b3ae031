/* policy_f16.c - every token keeps full precision. */
#include "kv/policy.h"

static uint32_t n_full_cells(uint32_t n_ctx) { return n_ctx; }

const lq_kv_policy lq_kv_policy_f16 = {.name = "f16", .n_full_cells = n_full_cells};
