/* block.h - a layer's two blocks: a mixer (attention, a short convolution), then an FFN. A kind of block is one file,
 * block_<kind>.c, and a line in mixers.def or ffns.def; no other file knows its weights and activations. */
#ifndef LQ_MODEL_BLOCK_H
#define LQ_MODEL_BLOCK_H

#include "core/arena.h"
#include "model/model.h"

typedef struct lq_loader lq_loader; /* load.h */
typedef struct lq_pass lq_pass;     /* pass.h */

typedef struct lq_block {
    size_t weights_bytes; /* size of the struct that load() fills and run() reads */
    /* Loads the block of layer l->layer into weights, weights_bytes of zeroed memory. */
    lq_status (*load)(lq_loader *l, const lq_layer_shape *shape, void *weights);
    /* Allocates the activations of n_tokens tokens from the arena, and sets in spec, which describes the whole model,
     * the sizes that this block has of its own. Activations live only until run() returns: all blocks share memory. */
    void (*scratch)(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec);
    /* Computes the pass's branch from x, both [n_tokens][n_embd]; x may be the residual stream itself. The mixer of the
     * last layer keeps only the rows whose logits are asked for (lq_keep_logit_rows): possibly none. */
    void (*run)(lq_pass *f, uint32_t layer, const void *weights, const float *x);
    /* Of a mixer: what it remembers of earlier tokens. */
    lq_kv_layer_spec (*state)(const lq_config *config, const lq_layer_shape *shape);
} lq_block;

/* blocks.c: the tables, indexed by lq_mixer and lq_ffn. */
extern const lq_block *const lq_mixers[];
extern const lq_block *const lq_ffns[];

#endif
