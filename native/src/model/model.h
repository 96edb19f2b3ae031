/* model.h - a loaded model: hyperparameters, weights by role, and the scratch of one forward pass. */
#ifndef LQ_MODEL_H
#define LQ_MODEL_H

#include <stdatomic.h>

#include "gguf/gguf.h"
#include "kv/cache.h"
#include "model/arch.h"

#define LQ_MAX_LAYERS 4096

/* The kinds of a layer's two blocks, and their sizes. */
typedef struct lq_layer_shape {
    lq_mixer mixer;
    lq_ffn ffn;
    uint32_t n_heads;    /* this and the next two are 0 if the mixer is not attention */
    uint32_t n_kv_heads; /* divides n_heads */
    uint32_t head_dim;
    uint32_t n_taps; /* tokens that a short convolution sees, the current one included */
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
    uint32_t n_heads; /* this and the next two are those of the first layer with attention */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_rot; /* leading values of each head that rope rotates; even */
    uint32_t n_ctx_train;
    uint32_t window;         /* tokens that sliding layers see; 0 = no such layers */
    uint32_t n_experts;      /* 0 = no layer has experts */
    uint32_t n_experts_used; /* experts chosen for each token */
    uint32_t n_ctx_original; /* sessions with a longer context use the long rope factors, if there are any */
    float norm_eps;
    float attn_scale;                  /* usually 1 / sqrt(head_dim) */
    float attn_softcap, final_softcap; /* 0 = none */
    float embed_scale;
    float residual_scale; /* multiplies each block's output */
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
    atomic_uint n_refs; /* references: the caller's, and one of everything that was made from the model */
    uint32_t process;   /* lq_process() of the process that opened it */
    lq_gguf *gguf;
    uint32_t n_devices; /* 1: one device holds everything; 2: the CPU holds the first layers, a GPU the last */
    lq_device_layers devices[LQ_MAX_DEVICES];
    uint32_t embed_device, head_device; /* index of the embedding's device, and of the output head and its norm */
    uint32_t n_gpu_layers;
    uint32_t n_threads;    /* 0 if the CPU computes nothing */
    char device[16];       /* "cpu", "cuda:0" */
    char device_name[128]; /* the GPU's, as the driver calls it */
    char device_note[256]; /* why "auto" took the CPU */
    char plan[256];        /* what is on the GPU and what on the CPU, if any of it is on a GPU */
    char backends[16];     /* "cpu", "cuda", "cpu+cuda" */
    const lq_arch *arch;
    lq_config config;
    uint64_t n_params;
    uint64_t weight_bytes;
    uint32_t widest_input; /* columns of the widest matrix */
    lq_weight token_embd;  /* [n_vocab][n_embd] */
    lq_linear head;        /* [n_vocab][n_embd]; the embedding again if the file has no output.weight */
    const float *output_norm;
    lq_rope_table rope_global, rope_long, rope_sliding; /* rope_long: for global layers in long contexts */
    lq_kv_layer_spec *states, *states_far;              /* [n_layers] lq_model_states() */
    lq_layer *layers;                                   /* [n_layers] */
    float *vectors[LQ_MAX_DEVICES];                     /* tensors that were decoded to f32, in device memory */
    uint64_t vector_bytes[LQ_MAX_DEVICES];
    struct lq_workspace *workspace; /* session/workspace.h */
};

/* The index in devices[] of a layer's device. */
static inline uint32_t lq_model_layer_device(const lq_model *model, uint32_t layer) {
    return model->n_devices > 1 && layer >= model->devices[1].first_layer ? 1 : 0;
}

/* placement.c: chooses devices for an opened model and loads its weights there. path: the file's, for errors. On
 * failure lq_model_leave() still works. */
lq_status lq_model_place(lq_model *model, const lq_model_options *options, const char *path);
/* placement.c: unloads the model and frees its devices; the open file stays. */
void lq_model_leave(lq_model *model);
/* load.c: loads a model that has its gguf and nothing else onto its devices. With n_devices 0 it checks everything and
 * leaves the weights in the file: then only config, states, and which weights exist can be used. On failure
 * lq_model_unload() still works. */
lq_status lq_model_load(lq_model *model);
/* unused.c: LQ_E_UNSUPPORTED, with what they are for, if the file has tensors that nothing loaded. used: [tensors]. */
lq_status lq_tensors_check(const lq_gguf *gguf, const bool *used, uint32_t n_layers, const char *arch);
/* tensors.c: the number of the layer in a tensor's name (blk.<layer>.), or UINT32_MAX. */
uint32_t lq_tensor_layer(const lq_gguf_tensor_info *tensor);
/* What each layer remembers in a session of n_ctx tokens, [n_layers]. Up to the context that the model was trained for,
 * a window at least as long counts as none, so that the layer's KV cache is like the others': Phi-3 files with 128k
 * contexts have a window of 256k. */
static inline const lq_kv_layer_spec *lq_model_states(const lq_model *model, uint32_t n_ctx) {
    return n_ctx > model->config.n_ctx_train ? model->states_far : model->states;
}
/* config.c: reads the hyperparameters into a zeroed config. */
lq_status lq_config_read(const lq_gguf *gguf, const lq_arch *arch, lq_config *out);
/* rope.c: fills the rope tables. The factors, [n_rot / 2] or NULL, divide the frequencies; long_factors are those of
 * rope_long. */
lq_status lq_rope_load(lq_model *model, const float *factors, const float *long_factors);
/* rope.c: the table that global layers use in a session of up to n_ctx positions. */
const lq_rope_table *lq_rope_of_context(const lq_model *model, uint32_t n_ctx);
/* load.c: frees what lq_model_load() made. */
void lq_model_unload(lq_model *model);
/* damage.c: returns LQ_E_FORMAT with the reason why no logit is a number. It reads all weights. */
lq_status lq_model_blame(const lq_model *model);
/* fingerprint.c: a hash that is equal for equal files, and different for nearly all others. */
uint64_t lq_model_fingerprint(const lq_model *model);

/* Activations on one device, in one allocation. Arrays that a device without layers does not need are empty. */
typedef struct lq_activations {
    void *memory;
    uint64_t memory_bytes;
    float *x;                                    /* [n_chunk][n_embd] residual stream */
    float *norm;                                 /* [n_chunk][n_embd] */
    float *branch;                               /* [n_chunk][n_embd] a block's output, before it is added */
    float *rotations_global, *rotations_sliding; /* [n_chunk][n_rot / 2] pairs (cos, sin) */
    void *block;                                 /* activations of the running block (block.h) */
    float *logits;                               /* [n_logit_rows][n_vocab] on the head's device */
    void *scratch;                               /* for the backend's operations */
} lq_activations;

/* Memory of one forward pass over at most n_chunk tokens. */
typedef struct lq_run_state {
    uint32_t n_chunk;
    uint32_t n_parts;                  /* the most parts of a pass */
    uint32_t n_logit_rows;             /* rows of logits computed at once */
    lq_activations at[LQ_MAX_DEVICES]; /* one for each of the model's devices */
    float *rotations_host;             /* [n_chunk][n_rot / 2] pairs in host memory, uploaded to all devices */
    float *crossing;                   /* [n_chunk][n_embd] in host memory, to copy x between devices, or NULL */
    lq_attention *attention;           /* [max(n_parts, LQ_MAX_TENTATIVE)] in host memory */
    int32_t *tokens;                   /* [n_chunk] in host memory */
} lq_run_state;

/* workspace.c: computes how much create would allocate on each device, n_bytes[n_devices]; host memory counts as the
 * first one's. n_accumulated: the largest lq_kv_cache_n_accumulated() of the caches that will be attended. */
lq_status lq_run_state_plan(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                            uint64_t *n_bytes);
lq_status lq_run_state_create(const lq_model *model, uint32_t n_chunk, uint32_t n_parts, uint32_t n_accumulated,
                              lq_run_state *out);
void lq_run_state_free(const lq_model *model, lq_run_state *state);
/* Call begin() and end() of all the model's backends, around whatever its sessions do. */
void lq_model_begin(const lq_model *model, const lq_run_state *state);
void lq_model_end(const lq_model *model);

/* Cancels the pass of a timeline that is never evaluated again: a pass of that part alone may leave its KV cache half
 * changed. */
#define LQ_PASS_ABANDON 2u

/* One timeline's part of a pass: its next n_tokens tokens, at positions pos0.., which its cache stores for good, or
 * holds as a tentative chunk. */
typedef struct lq_pass_part {
    lq_kv_cache *cache;
    const lq_rope_table *rope_global; /* lq_rope_of_context() */
    const int32_t *tokens;            /* [n_tokens]; NULL: rows are given instead */
    const float *rows;                /* [n_tokens][n_embd] in host memory, in place of tokens' embeddings */
    uint32_t n_tokens;
    uint32_t pos0;
    bool tentative;
    uint32_t n_logits;    /* how many of its last tokens' logits are computed, 0 to n_tokens */
    float *logits;        /* [n_logits][n_vocab] in host memory: they are written here if the next is NULL */
    float *device_logits; /* [n_vocab] on the head's device: the only row of logits is written here */
    atomic_uint *cancel;  /* nonzero: the pass should stop; LQ_PASS_ABANDON: even if that spoils the cache */
    bool can_undo;        /* the caller undoes what a stopped pass left in a cache that cannot do so itself */
} lq_pass_part;

/* forward.c: evaluates all parts together, with one row of activations for each token, so that weights are read once
 * for all of them. Each part has any number of tokens and a KV cache of its own, within n_chunk rows and n_parts parts.
 * With a tentative part there are at least LQ_LEAST_ALIKE rows, and n_chunk must be LQ_LEAST_ALIKE - 1 more than the
 * tokens of such a part; the result of a tentative token depends on the tokens before it alone, bit for bit.
 * LQ_E_CANCELLED once any part is to be cancelled, if every part can undo (their caches then hold what they held
 * before, except with can_undo), or if the only part is abandoned. The pass notices it between two layers, and within
 * an operation if it has LQ_WATCHED_TOKENS rows or more. */
#define LQ_WATCHED_TOKENS 16
lq_status lq_forward(lq_model *model, lq_run_state *state, const lq_pass_part *parts, uint32_t n_parts);

#endif
