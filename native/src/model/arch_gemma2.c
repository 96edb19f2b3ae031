/* arch_gemma2.c - Gemma 2 (Gemma team 2024, arXiv 2408.00118): sliding and global layers in turn, scores and logits
 * soft-capped. */
#include "model/arch.h"

const lq_arch lq_arch_gemma2 = {
    .name = "gemma2",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_GELU_TANH,
    .norms = LQ_NORM_BOTH,
    .scale_embedding = true,
    .softcaps = true,
    .attn_softcap = 50.0f,
    .final_softcap = 30.0f,
    .global_period = 2,
    .window = 4096, /* files of the first weeks lack the key */
    .scale_sliding = true,
    .wide_scale_depth = 46, /* the 27B model: 4608 / 32 = 144, though heads have 128 values */
    .rope_base = 10000.0f,
};
