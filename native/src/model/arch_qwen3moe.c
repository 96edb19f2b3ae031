/* arch_qwen3moe.c - Qwen 3 as a mixture of experts (arXiv 2505.09388). */
#include "model/arch.h"

const lq_arch lq_arch_qwen3moe = {
    .name = "qwen3moe",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .qk_norm = LQ_QK_NORM_HEAD,
    .experts = LQ_REQUIRED,
    .rope_base = 1000000.0f,
};
