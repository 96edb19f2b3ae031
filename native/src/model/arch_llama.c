/* arch_llama.c - Llama 1 to 3, SmolLM2, TinyLlama, Mistral (Touvron et al. 2023, arXiv 2302.13971), and Mixtral's
 * mixture of experts (Jiang et al. 2024, arXiv 2401.04088). */
#include "model/arch.h"

const lq_arch lq_arch_llama = {
    .name = "llama",
    .rope_style = LQ_ROPE_PAIRS, /* GGUF stores q and k permuted for pairs */
    .activation = LQ_ACT_SILU,
    .qkv_bias = LQ_OPTIONAL,
    .attn_out_bias = LQ_OPTIONAL,
    .ffn_bias = LQ_OPTIONAL,
    .experts = LQ_OPTIONAL,
    .rope_factors = LQ_OPTIONAL,
    .multipliers = true,
    .rope_base = 10000.0f,
};
