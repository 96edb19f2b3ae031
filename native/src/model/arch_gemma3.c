/* arch_gemma3.c - Gemma 3 text models (Gemma team 2025, arXiv 2503.19786): five sliding layers, then one global, with
 * rope bases of their own. GGUF stores norm weights with Gemma's +1 already added. */
#include "model/arch.h"

const lq_arch lq_arch_gemma3 = {
    .name = "gemma3",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_GELU_TANH,
    .norms = LQ_NORM_BOTH,
    .qk_norm = LQ_QK_NORM_HEAD,
    .scale_embedding = true,
    .softcaps = true,
    .global_period = 6,
    .wide_scale_depth = 62, /* 27B: 168 for a head of 128 */
    .rope_base = 1000000.0f,
    .rope_base_sliding = 10000.0f,
};
