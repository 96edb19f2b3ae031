/* pass.h - a running forward pass, as forward.c and the blocks see it. */
#ifndef LQ_MODEL_PASS_H
#define LQ_MODEL_PASS_H

#include "model/block.h"

/* How many rows of logits are computed at once: enough to read the head matrix once for several tokens, few enough to
 * keep in memory. */
#define LQ_LOGIT_ROWS 16

struct lq_pass {
    lq_model *model;
    lq_run_state *state;
    uint32_t device; /* index of the device that x is on; the next three belong to it */
    lq_backend *backend;
    const lq_backend_ops *ops;
    lq_activations *s;
    const lq_pass_part *parts;
    uint32_t n_parts;
    uint32_t n_tokens; /* rows: one for each token of all parts, in their order; then padding */
    bool is_tentative; /* at least one part is */
    bool is_watched;   /* operations may be skipped once the pass is cancelled */
};

/* The block's memory; run() must allocate from it in the order of scratch(). */
static inline lq_arena lq_pass_arena(const lq_pass *f) { return (lq_arena){.base = f->s->block}; }

/* forward.c: writes the RMS norm of x to dst and returns dst; returns x itself if weight is NULL (no norm here). */
const float *lq_normed(const lq_pass *f, float *dst, const float *x, const float *weight, uint32_t n_rows,
                       uint32_t n_cols);
/* forward.c: whether any part is to be cancelled. context: the pass. */
bool lq_pass_is_cancelled(const void *context);
/* Whether the operations called so far may have been skipped or left half done. */
static inline bool lq_pass_is_stopped(const lq_pass *f) { return f->is_watched && lq_pass_is_cancelled(f); }
static inline lq_kv_chunk lq_pass_chunk(const lq_pass_part *part) {
    return (lq_kv_chunk){.pos0 = part->pos0, .n_tokens = part->n_tokens, .tentative = part->tentative};
}
/* forward.c: moves the rows of tokens whose logits are asked for to the front, in the residual stream and in rows of
 * n_cols values; from then on the pass has these rows only. */
void lq_keep_logit_rows(lq_pass *f, float *rows, size_t n_cols);

/* project.c: y = W x + b, for every product with a weight matrix. */
typedef struct lq_projection {
    const lq_linear *linear;
    float *y; /* [n_rows][outputs] */
} lq_projection;

/* Multiplies x, [n_rows][inputs], by each matrix of a group of at most LQ_MATMUL_MAX_GROUP. */
void lq_project(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x, uint32_t n_rows);
/* Does the same with the matrices of experts, without biases; x and y have a row for each choice. */
void lq_project_experts(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x,
                        const lq_expert_choice *choice);

#endif
