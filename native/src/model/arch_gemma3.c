/* arch_gemma3.c - Gemma 3 text models (Gemma team 2025, arXiv 2503.19786): five sliding layers, then a global one; the
 * two kinds differ in their rope base. GGUF stores norm weights with Gemma's +1 already added. */
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
    .wide_scale_depth = 62, /* the 27B model: 5376 / 32 = 168, though heads have 128 values */
    .rope_base = 1000000.0f,
    .rope_base_sliding = 10000.0f,
};
