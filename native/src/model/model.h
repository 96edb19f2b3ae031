/* model.h - a loaded model: hyperparameters, weights by role, and the scratch of one forward pass. */
#ifndef LQ_MODEL_H
#define LQ_MODEL_H

#include <stdatomic.h>

#include "gguf/gguf.h"
#include "kv/cache.h"
#include "model/arch.h"

#define LQ_MAX_LAYERS 4096

/* The blocks of a layer, and their sizes. */
typedef struct lq_layer_shape {
    lq_mixer mixer;
    lq_ffn ffn;
    uint32_t n_heads;    /* this and the next two: 0 where the mixer is not attention */
    uint32_t n_kv_heads; /* divides n_heads */
    uint32_t head_dim;
    uint32_t n_taps; /* tokens that a short convolution sees, its own included */
    uint32_t window; /* tokens that a sliding layer sees; 0 = all */
    bool has_rope;
    uint32_t n_ff; /* width of the FFN, or of each expert */
} lq_layer_shape;

/* Every value is checked against the real tensor shapes before it is used. */
typedef struct lq_config {
    uint32_t n_layers;
    lq_layer_shape *layers; /* [n_layers] */
    uint32_t n_vocab;
    uint32_t n_embd;
    uint32_t n_heads; /* this and the next two: of the first layer with attention */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_rot; /* leading values of each head that rope rotates; even */
    uint32_t n_ctx_train;
    uint32_t window;         /* tokens that sliding layers see; 0 = no such layers */
    uint32_t n_experts;      /* 0 = no layer has experts */
    uint32_t n_experts_used; /* of a token */
    uint32_t n_ctx_original; /* sessions with a longer context use the long rope factors, if there are any */
    float norm_eps;
    float attn_scale;                  /* usually 1 / sqrt(head_dim) */
    float attn_softcap, final_softcap; /* 0 = none */
    float embed_scale;
    float residual_scale; /* of a block's output */
    float logit_scale;
} lq_config;

/* Rotation of one kind of layer: pair i at position p is turned by p * frequencies[i] and stretched by magnitude. */
typedef struct lq_rope_table {
    float *frequencies; /* [n_rot / 2], host memory; NULL: there is no such table */
    float magnitude;
} lq_rope_table;

/* A matrix with its bias: y = W x + b. pass.h multiplies by it, load.h loads it. */
typedef struct lq_linear {
    lq_weight weight;
    const float *bias; /* [n_rows] in device memory, or NULL */
} lq_linear;

/* A block of a layer with the norms of its input and output, [n_embd] each, NULL where there is none. */
typedef struct lq_layer_block {
    const float *norm;
    void *weights; /* of a type that only the block's file knows */
    const float *post_norm;
} lq_layer_block;

typedef struct lq_layer {
    lq_layer_block mixer, ffn;
} lq_layer;

struct lq_model {
    atomic_uint n_refs; /* the caller's hold and every session's */
    uint32_t process;   /* that opened it: lq_process() */
    lq_gguf *gguf;
    uint32_t n_devices; /* 1: all of it on one device; or 2: the CPU with the first layers, a GPU with the last */
    lq_device_layers devices[LQ_MAX_DEVICES];
    uint32_t embed_device, head_device; /* where the embedding is, and the output head with its norm */
    uint32_t n_gpu_layers;
    uint32_t n_threads;    /* 0 where the CPU has no part in it */
    char device[16];       /* "cpu", "cuda:0" */
    char device_name[128]; /* of a GPU */
    char device_note[256]; /* why it is not one, where any would have done */
    char plan[256];        /* what is where, if some of it is on a GPU */
    char backends[16];     /* "cpu", "cuda", "cpu+cuda" */
    const lq_arch *arch;
    lq_config config;
    uint64_t n_params;
    uint64_t weight_bytes;
    uint32_t widest_input; /* columns of the widest matrix */
    lq_weight token_embd;  /* [n_vocab][n_embd] */
    lq_linear head;        /* [n_vocab][n_embd]; the embedding again if the file has no output.weight */
    const float *output_norm;
    lq_rope_table rope_global, rope_long, rope_sliding; /* rope_long: of global layers in long contexts */
    lq_kv_layer_spec *states, *states_far;              /* [n_layers] lq_model_states() */
    lq_layer *layers;                                   /* [n_layers] */
    float *vectors[LQ_MAX_DEVICES];                     /* one-dimensional tensors, in device memory */
    uint64_t vector_bytes[LQ_MAX_DEVICES];
    struct lq_workspace *workspace; /* session/workspace.h */
};

/* The device of a layer; of a model that has devices. */
static inline uint32_t lq_model_layer_device(const lq_model *model, uint32_t layer) {
    return model->n_devices > 1 && layer >= model->devices[1].first_layer ? 1 : 0;
}

/* placement.c: gives a model that has its gguf devices as the options say, and loads it there. path: of the file, for
 * errors. On failure lq_model_leave() still works. */
lq_status lq_model_place(lq_model *model, const lq_model_options *options, const char *path);
/* Back to a model that has its file and no more. */
void lq_model_leave(lq_model *model);
/* load.c: fills a zeroed model from its gguf at its devices. With n_devices 0 all is checked and weights stay in the
 * file: then only config, windows, and which weights there are can be used. On failure lq_model_unload() still works.
 */
lq_status lq_model_load(lq_model *model);
/* unused.c: LQ_E_UNSUPPORTED if the file has tensors that are not used [n tensors], with what they are for. */
lq_status lq_tensors_check(const lq_gguf *gguf, const bool *used, uint32_t n_layers, const char *arch);
/* tensors.c: the layer that a tensor is of by its name, or UINT32_MAX. */
uint32_t lq_tensor_layer(const lq_gguf_tensor_info *tensor);
/* What each layer remembers in a session of n_ctx tokens, [n_layers]. A window that hides nothing within the context
 * that the model was trained for is none, so that the layer's cache is like the others': Phi-3 files with 128k contexts
 * have one of 256k. */
static inline const lq_kv_layer_spec *lq_model_states(const lq_model *model, uint32_t n_ctx) {
    return n_ctx > model->config.n_ctx_train ? model->states_far : model->states;
}
/* config.c: hyperparameters; model->arch is set. */
lq_status lq_config_read(const lq_gguf *gguf, const lq_arch *arch, lq_config *out);
/* rope.c: the rope tables. Factors [n_rot / 2] divide the frequencies, NULL = none; long_factors those of long
 * contexts. */
lq_status lq_rope_load(lq_model *model, const float *factors, const float *long_factors);
/* rope.c: the table of global layers where n_ctx positions may come. */
const lq_rope_table *lq_rope_of_context(const lq_model *model, uint32_t n_ctx);
void lq_model_unload(lq_model *model);
/* damage.c: LQ_E_FORMAT, with the reason why no logit is a number. Reads all weights. */
lq_status lq_model_blame(const lq_model *model);
/* fingerprint.c: the same for the same file, and for nearly no other one. */
uint64_t lq_model_fingerprint(const lq_model *model);

/* Activations on one device: one piece of its memory. What a device without layers does not need is empty. */
typedef struct lq_activations {
    void *memory;
    uint64_t memory_bytes;
    float *x;                                    /* [n_chunk][n_embd] residual stream */
    float *norm;                                 /* [n_chunk][n_embd] */
    float *branch;                               /* [n_chunk][n_embd] a block's output, before it is added */
    float *rotations_global, *rotations_sliding; /* [n_chunk][n_rot / 2] pairs (cos, sin) */
    void *block;                                 /* what the block that runs takes (block.h) */
    float *logits;                               /* [n_logit_rows][n_vocab] where the head is */
    void *scratch;                               /* the backend's */
} lq_activations;

/* Memory of one forward pass over at most n_chunk tokens. */
typedef struct lq_run_state {
    uint32_t n_chunk;
    uint32_t n_parts;                  /* at most, of a pass */
    uint32_t n_logit_rows;             /* rows of logits computed at once */
    lq_activations at[LQ_MAX_DEVICES]; /* one for each of the model's devices */
    float *rotations_host;             /* [n_chunk][n_rot / 2] pairs in host memory, to fill the others from */
    float *crossing;                   /* [n_chunk][n_embd] in host memory: x on its way; NULL with one device */
    lq_attention *attention;           /* [n_parts or LQ_MAX_TENTATIVE] in host memory */
    int32_t *tokens;                   /* [n_chunk] in host memory */
} lq_run_state;

/* workspace.c: what would be taken at each device, n_bytes[n_devices]; host memory counts as the first one's.
 * n_accumulated: lq_kv_cache_n_accumulated() of the caches that will be attended, the most of them. */
lq_status lq_run_state_plan(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                            uint64_t *n_bytes);
lq_status lq_run_state_create(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                              lq_run_state *out);
void lq_run_state_free(const lq_model *model, lq_run_state *state);
/* begin() and end() of all the model's backends, around whatever its sessions do. */
void lq_model_begin(const lq_model *model, const lq_run_state *state);
void lq_model_end(const lq_model *model);

/* Of a timeline that is never evaluated again: a pass of this part alone need not leave a cache that is whole. */
#define LQ_PASS_ABANDON 2u

/* What one timeline has in a pass: its next n_tokens tokens, at positions pos0.., which its cache takes in, or holds as
 * a tentative chunk. */
typedef struct lq_pass_part {
    lq_kv_cache *cache;
    const lq_rope_table *rope_global; /* lq_rope_of_context() */
    const int32_t *tokens;            /* [n_tokens]; NULL: rows */
    const float *rows;                /* [n_tokens][n_embd] in host memory, in place of tokens' embeddings */
    uint32_t n_tokens;
    uint32_t pos0;
    bool tentative;
    uint32_t n_logits;    /* of its last tokens, 0 to n_tokens */
    float *logits;        /* [n_logits][n_vocab] in host memory: where they are written; or, if there is */
    float *device_logits; /* [n_vocab] where the output head is: one row, there instead */
    atomic_uint *cancel;  /* nonzero: the pass should stop; LQ_PASS_ABANDON: whatever becomes of the cache */
    bool can_undo;        /* what a pass that was stopped left in the cache will be undone, whatever the cache can */
} lq_pass_part;

/* forward.c: evaluates all parts at once: a row of activations each token, weights read once for all of them. Parts of
 * any number of tokens, with a cache each, within n_chunk rows and n_parts parts; with a tentative part there are
 * LQ_LEAST_ALIKE rows at least, and n_chunk must be LQ_LEAST_ALIKE - 1 more than the tokens of such a part. What a
 * token of a tentative part gives depends on the tokens before it alone, never on those that follow or on other parts.
 * LQ_E_CANCELLED once any part is to be cancelled, if every one of them can undo: their caches hold what they held
 * before, but for can_undo; or if the only part is abandoned. Noticed between two layers, and in a pass of
 * LQ_WATCHED_TOKENS rows or more within an operation. */
#define LQ_WATCHED_TOKENS 16
lq_status lq_forward(lq_model *model, lq_run_state *state, const lq_pass_part *parts, uint32_t n_parts);

#endif
