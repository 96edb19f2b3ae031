/* arch_qwen3.c - Qwen 3 (Qwen team 2025, arXiv 2505.09388): norms of each query and key head in place of biases. */
#include "model/arch.h"

const lq_arch lq_arch_qwen3 = {
    .name = "qwen3",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .qk_norm = LQ_QK_NORM_HEAD,
    .rope_base = 1000000.0f,
};
