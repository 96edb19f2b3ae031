/* pass.h - a forward pass under way: for forward.c, which runs it, and for the blocks that are run. */
#ifndef LQ_MODEL_PASS_H
#define LQ_MODEL_PASS_H

#include "model/block.h"

/* Rows of logits at once: enough to read the head matrix once for several tokens, little enough to be kept. */
#define LQ_LOGIT_ROWS 16

struct lq_pass {
    lq_model *model;
    lq_run_state *state;
    uint32_t device; /* where x is, and of the next three */
    lq_backend *backend;
    const lq_backend_ops *ops;
    lq_activations *s;
    const lq_pass_part *parts;
    uint32_t n_parts;
    uint32_t n_tokens; /* rows: one for each token of all parts, in their order; then padding */
    bool is_tentative; /* some part is */
    bool is_watched;   /* operations may be left out once it is cancelled */
};

/* The block's memory, to be taken in the order of its scratch(). */
static inline lq_arena lq_pass_arena(const lq_pass *f) { return (lq_arena){.base = f->s->block}; }

/* forward.c: the RMS norm of x in dst; x itself where the architecture has no norm here. */
const float *lq_normed(const lq_pass *f, float *dst, const float *x, const float *weight, uint32_t n_rows,
                       uint32_t n_cols);
/* forward.c: whether any part is to be cancelled. context: the pass. */
bool lq_pass_is_cancelled(const void *context);
/* The operations that were called may be left out half done. */
static inline bool lq_pass_is_stopped(const lq_pass *f) { return f->is_watched && lq_pass_is_cancelled(f); }
static inline lq_kv_chunk lq_pass_chunk(const lq_pass_part *part) {
    return (lq_kv_chunk){.pos0 = part->pos0, .n_tokens = part->n_tokens, .tentative = part->tentative};
}
/* forward.c: moves the rows of tokens whose logits are asked for to the front, in the residual stream and in rows of
 * n_cols values, and makes the pass one of these tokens. */
void lq_keep_logit_rows(lq_pass *f, float *rows, size_t n_cols);

/* project.c: y = W x + b, the one way through a matrix. */
typedef struct lq_projection {
    const lq_linear *linear;
    float *y; /* [n_rows][outputs] */
} lq_projection;

/* A group of at most LQ_MATMUL_MAX_GROUP shares x, [n_rows][inputs]. */
void lq_project(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x, uint32_t n_rows);
/* The same through the matrices of experts, without biases: a row of x and y for each choice. */
void lq_project_experts(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x,
                        const lq_expert_choice *choice);

#endif
