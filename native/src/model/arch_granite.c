/* arch_granite.c - Granite 3 dense models (IBM 2024): Llama with multipliers. */
#include "model/arch.h"

const lq_arch lq_arch_granite = {
    .name = "granite",
    .rope_style = LQ_ROPE_PAIRS, /* GGUF stores q and k permuted for pairs, as for llama */
    .activation = LQ_ACT_SILU,
    .qkv_bias = LQ_OPTIONAL,
    .attn_out_bias = LQ_OPTIONAL,
    .ffn_bias = LQ_OPTIONAL,
    .rope_factors = LQ_OPTIONAL,
    .multipliers = true,
    .rope_switch = true,
    .rope_base = 10000.0f,
};
