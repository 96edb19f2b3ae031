/* arch_phi3.c - Phi-3, 3.5 and 4 (Abdin et al. 2024, arXiv 2404.14219): fused projections, LongRoPE factors for long
 * contexts; in the short-context models every layer slides. */
#include "model/arch.h"

const lq_arch lq_arch_phi3 = {
    .name = "phi3",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .fused = true,
    .rope_factors = LQ_OPTIONAL,
    .global_period = LQ_NEVER_GLOBAL,
    .scale_sliding = true,
    .rope_base = 10000.0f,
};
