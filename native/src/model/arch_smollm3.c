/* arch_smollm3.c - SmolLM3 (Hugging Face 2025): every fourth layer has no rope (Yang et al. 2025, arXiv 2501.18795). */
#include "model/arch.h"

const lq_arch lq_arch_smollm3 = {
    .name = "smollm3",
    .rope_style = LQ_ROPE_PAIRS, /* GGUF stores q and k permuted for pairs, as for llama */
    .activation = LQ_ACT_SILU,
    .no_rope_period = 4,
    .rope_base = 2000000.0f,
};
