/* arch_qwen2.c - Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671): biases on q, k and v. */
#include "model/arch.h"

const lq_arch lq_arch_qwen2 = {
    .name = "qwen2",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .qkv_bias = LQ_REQUIRED,
    .rope_base = 10000.0f,
};
