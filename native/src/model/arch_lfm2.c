/* arch_lfm2.c - LFM2 and LFM2.5 (Liquid AI 2025, arXiv 2511.23404): most layers have a short convolution in place of
 * attention. */
#include "model/arch.h"

const lq_arch lq_arch_lfm2 = {
    .name = "lfm2",
    .rope_style = LQ_ROPE_HALVES,
    .activation = LQ_ACT_SILU,
    .qk_norm = LQ_QK_NORM_HEAD,
    .short_conv = true,
    .output_norm = "token_embd_norm.weight",
    .rope_base = 1000000.0f,
};
