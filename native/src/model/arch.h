/* arch.h - a model architecture as a declaration: values that load.c and forward.c read, never a second forward pass.
 */
#ifndef LQ_MODEL_ARCH_H
#define LQ_MODEL_ARCH_H

#include "backends/backend.h"

/* Whether a tensor must, may or must not be there. */
typedef enum lq_presence { LQ_ABSENT = 0, LQ_OPTIONAL, LQ_REQUIRED } lq_presence;

typedef struct lq_arch {
    const char *name; /* general.architecture, and the prefix of its keys */
    lq_rope_style rope_style;
    lq_activation activation;
    lq_presence qkv_bias;      /* blk.N.attn_{q,k,v}.bias */
    lq_presence attn_out_bias; /* blk.N.attn_output.bias */
    lq_presence qk_norm;       /* blk.N.attn_{q,k}_norm.weight: RMS norm over each head, before rope */
    lq_presence post_norms;    /* blk.N.post_attention_norm, post_ffw_norm: of a block's output, before the residual */
    lq_presence rope_factors;  /* rope_freqs.weight: divides the rotation frequencies */
    bool scale_embedding;      /* embeddings times sqrt(n_embd) */
    /* Sliding windows: layer i sees the whole context if (i + 1) % global_period == 0, others attention.sliding_window
     * tokens. 0 = every layer sees the whole context and the key is not read. */
    uint32_t global_period;
    float rope_base;         /* where the file does not say */
    float rope_base_sliding; /* of sliding layers, where the file does not say */
} lq_arch;

/* LQ_E_UNSUPPORTED with the list of what exists. name is not NUL-terminated. */
lq_status lq_arch_find(const char *name, size_t name_bytes, const lq_arch **out);

#endif
