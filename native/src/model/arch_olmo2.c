/* arch_olmo2.c - OLMo 2 (Walsh et al. 2025, arXiv 2501.00656): norms of a block's output, and of all query and key
 * heads at once; OLMo 3 has the same name in its files, and three sliding layers to a global one. */
#include "model/arch.h"

const lq_arch lq_arch_olmo2 = {
    .name = "olmo2",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .norms = LQ_NORM_OUTPUT,
    .qk_norm = LQ_QK_NORM_TOKEN,
    .global_period = 4,
    .rope_base = 500000.0f,
};
