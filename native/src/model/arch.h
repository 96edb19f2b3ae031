/* arch.h - a model architecture as a declaration: values that load.c and forward.c read, never a second forward pass.
 * What is zero is what a plain Llama does. */
#ifndef LQ_MODEL_ARCH_H
#define LQ_MODEL_ARCH_H

#include "backends/backend.h"

/* Whether a tensor or key must, may or must not be there. */
typedef enum lq_presence { LQ_ABSENT = 0, LQ_OPTIONAL, LQ_REQUIRED } lq_presence;

/* Where a block's RMS norms are: of its input (attn_norm, ffn_norm), of its output before the residual is added
 * (post_attention_norm, post_ffw_norm), or both. */
typedef enum lq_norm_place { LQ_NORM_INPUT = 0, LQ_NORM_OUTPUT, LQ_NORM_BOTH } lq_norm_place;

/* blk.N.attn_{q,k}_norm, before rope: over each head, or over all heads of a token at once. */
typedef enum lq_qk_norm { LQ_QK_NORM_NONE = 0, LQ_QK_NORM_HEAD, LQ_QK_NORM_TOKEN } lq_qk_norm;

/* What a layer does to mix tokens, and then to each token alone: the kinds of blocks of mixers.def and ffns.def. */
typedef enum lq_mixer {
#define LQ_MIXER(NAME, suffix) LQ_MIXER_##NAME,
#include "model/mixers.def"
#undef LQ_MIXER
} lq_mixer;

typedef enum lq_ffn {
#define LQ_FFN(NAME, suffix) LQ_FFN_##NAME,
#include "model/ffns.def"
#undef LQ_FFN
} lq_ffn;

/* Every layer slides, none sees the whole context. */
#define LQ_NEVER_GLOBAL UINT32_MAX

typedef struct lq_arch {
    const char *name; /* general.architecture, and the prefix of its keys */
    lq_rope_style rope_style;
    lq_activation activation;
    lq_norm_place norms;
    lq_qk_norm qk_norm;
    bool fused;                /* attn_qkv holds q, k and v, ffn_up the gate and up */
    lq_presence qkv_bias;      /* blk.N.attn_{q,k,v}.bias */
    lq_presence attn_out_bias; /* blk.N.attn_output.bias */
    lq_presence ffn_bias;      /* blk.N.ffn_{gate,up,down}.bias */
    lq_presence experts;       /* key expert_count; with it blk.N.ffn_gate_inp, ffn_{gate,up,down}_exps for ffn_* */
    lq_presence rope_factors;  /* rope_freqs.weight, or rope_factors_{long,short}.weight: divide the frequencies */
    bool scale_embedding;      /* embeddings times sqrt(n_embd) */
    bool multipliers;          /* keys embedding_scale, residual_scale, logit_scale (it divides) */
    bool short_conv;           /* layers without KV heads have a short convolution, key shortconv.l_cache */
    bool softcaps;             /* keys attn_logit_softcapping, final_logit_softcapping */
    float attn_softcap;        /* where the file has no such key; 0 = none */
    float final_softcap;
    /* Sliding windows: layer i sees the whole context if (i + 1) % global_period == 0, others attention.sliding_window
     * tokens, unless the file says which slide. 0 = every layer sees the whole context. */
    uint32_t global_period;
    uint32_t window;           /* where the file does not say; 0 = then every layer sees the whole context */
    bool scale_sliding;        /* rope scaling is for sliding layers, too */
    bool rope_switch;          /* key rope.scaling.finetuned: false = no layer has rope */
    uint32_t no_rope_period;   /* layer i has no rope if (i + 1) % no_rope_period == 0; 0 = all have it */
    uint32_t wide_scale_depth; /* with this many layers scores are scaled as if heads had n_embd / n_heads values */
    const char *output_norm;   /* another name that output_norm.weight may have; NULL = none */
    float rope_base;           /* where the file does not say */
    float rope_base_sliding;   /* of sliding layers, where the file does not say; 0 = as the others */
} lq_arch;

/* LQ_E_UNSUPPORTED with the list of what exists. name is not NUL-terminated. */
lq_status lq_arch_find(const char *name, size_t name_bytes, const lq_arch **out);

#endif
