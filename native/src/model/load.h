/* load.h - loading tensors by name, with every check of their types and shapes: for load.c and the blocks. */
#ifndef LQ_MODEL_LOAD_H
#define LQ_MODEL_LOAD_H

#include "model/block.h"

#define LQ_NO_LAYER UINT32_MAX

struct lq_loader {
    lq_model *model;
    const lq_gguf *gguf;
    const lq_arch *arch;
    uint32_t device; /* where tensors go now */
    uint32_t layer;  /* whose tensors are loaded now: names start with blk.<layer>.; or LQ_NO_LAYER */
    uint64_t n_vectors[LQ_MAX_DEVICES]; /* floats of a device's vectors and convolution kernels */
    uint64_t used_vectors[LQ_MAX_DEVICES];
    float *host_vector; /* one of them, on the way */
    bool *used;         /* [tensors of the file] */
};

/* Allocates room for all vectors of the model. The caller frees l->host_vector. */
lq_status lq_count_vectors(lq_loader *l);
/* A vector, decoded to f32; l->host_vector holds it until the next one. Leaves *out alone where an optional one is not
 * there. */
lq_status lq_load_vector(lq_loader *l, lq_presence presence, const float **out, uint32_t n, const char *name);
/* The matrix [n_channels][n_taps] of a short convolution, decoded to f32. */
lq_status lq_load_kernel(lq_loader *l, const float **out, uint32_t n_channels, uint32_t n_taps, const char *name);
/* Multiplies the vector of n values that was loaded last: logits are scaled with the weights of the norm before them.
 */
void lq_scale_last_vector(lq_loader *l, uint32_t n, float scale);
/* The matrix <stem>.weight of n_rows outputs, with <stem>.scale, the factor of its products, and <stem>.bias. */
lq_status lq_load_linear(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem,
                         lq_presence bias);
/* Some rows of a matrix that is several in one. */
typedef struct lq_slice {
    lq_linear *out;
    uint32_t n_rows;
} lq_slice;
/* The matrix <stem>.weight, cut into slices that follow each other. */
lq_status lq_load_fused(lq_loader *l, const lq_slice *slices, uint32_t n_slices, uint32_t n_cols, const char *stem);
/* A matrix for each expert, and their factors; out describes the first, the others follow. */
lq_status lq_load_stack(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem);
/* The embedding or the output head, n_rows 0: of as many rows as the file has. *factor: for the caller to put
 * elsewhere. Leaves *out alone if it is not there. */
lq_status lq_load_end(lq_loader *l, lq_presence presence, lq_weight *out, float *factor, uint32_t n_rows,
                      const char *stem);

#endif
