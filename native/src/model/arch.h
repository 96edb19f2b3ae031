/* arch.h - a model architecture as a declaration: values that load.c and forward.c read, never a second forward pass.
 * A field that is zero says what a plain Llama does. */
#ifndef LQ_MODEL_ARCH_H
#define LQ_MODEL_ARCH_H

#include "backends/backend.h"

/* Whether a tensor or key must, may or must not be there. */
typedef enum lq_presence { LQ_ABSENT = 0, LQ_OPTIONAL, LQ_REQUIRED } lq_presence;

/* Where a block applies RMS norms: to its input (attn_norm, ffn_norm), to its output before that joins the residual
 * stream (post_attention_norm, post_ffw_norm), or to both. */
typedef enum lq_norm_place { LQ_NORM_INPUT = 0, LQ_NORM_OUTPUT, LQ_NORM_BOTH } lq_norm_place;

/* What the norms blk.N.attn_{q,k}_norm, applied before rope, span: each head by itself, or all heads of a token. */
typedef enum lq_qk_norm { LQ_QK_NORM_NONE = 0, LQ_QK_NORM_HEAD, LQ_QK_NORM_TOKEN } lq_qk_norm;

/* The kinds of blocks: a layer's mixer combines tokens (mixers.def), then its FFN transforms each alone (ffns.def). */
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

/* A global_period with which every layer slides and none sees the whole context. */
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
    lq_presence experts;       /* key expert_count; if set, blk.N.ffn_gate_inp and ffn_{gate,up,down}_exps */
    lq_presence rope_factors;  /* rope_freqs.weight, or rope_factors_{long,short}.weight: divide the frequencies */
    bool scale_embedding;      /* embeddings times sqrt(n_embd) */
    bool multipliers;          /* keys embedding_scale, residual_scale, logit_scale (which divides) */
    bool short_conv;           /* layers without KV heads have a short convolution, key shortconv.l_cache */
    bool softcaps;             /* keys attn_logit_softcapping, final_logit_softcapping */
    float attn_softcap;        /* used if the file lacks the key; 0 = no cap; final_softcap likewise */
    float final_softcap;
    /* Sliding windows: layer i sees the whole context if (i + 1) % global_period == 0, the others see
     * attention.sliding_window tokens, unless the file lists the sliding layers. 0: no layer slides. */
    uint32_t global_period;
    uint32_t window;           /* used if the file gives none; 0 = no layer slides then */
    bool scale_sliding;        /* rope scaling applies to sliding layers, too */
    bool rope_switch;          /* key rope.scaling.finetuned: false = no layer has rope */
    uint32_t no_rope_period;   /* layer i has no rope if (i + 1) % no_rope_period == 0; 0 = all layers have it */
    uint32_t wide_scale_depth; /* with this many layers scores are scaled as if heads had n_embd / n_heads values */
    const char *output_norm;   /* another name that output_norm.weight may have; NULL = none */
    float rope_base;           /* used if the file gives none */
    float rope_base_sliding;   /* the same for sliding layers; 0 = they use the base of the others */
} lq_arch;

/* Finds an architecture by name, which is not NUL-terminated. LQ_E_UNSUPPORTED, with a list of what this build runs. */
lq_status lq_arch_find(const char *name, size_t name_bytes, const lq_arch **out);

#endif
