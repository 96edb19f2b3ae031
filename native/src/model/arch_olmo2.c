/* arch_olmo2.c - OLMo 2 (Walsh et al. 2025, arXiv 2501.00656): norms follow each block, and span all query or key heads
 * of a token. OLMo 3 files carry the same name, and have three sliding layers for each global one. */
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
