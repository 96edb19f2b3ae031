/* block.h - what a layer is made of: a mixer (attention, a short convolution), then an FFN. A kind of block is one
 * file, block_<kind>.c, which knows its weights and activations alone, and a line in mixers.def or ffns.def. */
#ifndef LQ_MODEL_BLOCK_H
#define LQ_MODEL_BLOCK_H

#include "core/arena.h"
#include "model/model.h"

typedef struct lq_loader lq_loader; /* load.h */
typedef struct lq_pass lq_pass;     /* pass.h */

typedef struct lq_block {
    size_t weights_bytes; /* of the struct that load() fills and run() reads */
    /* Loads the block of layer l->layer. weights: zeroed, weights_bytes. */
    lq_status (*load)(lq_loader *l, const lq_layer_shape *shape, void *weights);
    /* Takes the activations of n_tokens tokens, and says in spec what its operations need where that is more than the
     * whole model's spec says. Activations are lost when the block is done: all blocks take the same memory. */
    void (*scratch)(const lq_model *model, const lq_layer_shape *shape, uint32_t n_tokens, lq_arena *arena,
                    lq_scratch_spec *spec);
    /* From x, [n_tokens][n_embd], to the pass's branch, the same shape; x may be the residual stream itself. The mixer
     * of the last layer leaves rows without logits behind (lq_keep_logit_rows), and may then have none left. */
    void (*run)(lq_pass *f, uint32_t layer, const void *weights, const float *x);
    /* Of a mixer: what it remembers of earlier tokens. */
    lq_kv_layer_spec (*state)(const lq_config *config, const lq_layer_shape *shape);
} lq_block;

/* blocks.c: by kind. */
extern const lq_block *const lq_mixers[];
extern const lq_block *const lq_ffns[];

#endif
