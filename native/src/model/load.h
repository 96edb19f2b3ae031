/* load.h - loads tensors by name and checks their types and shapes, for load.c and the blocks. */
#ifndef LQ_MODEL_LOAD_H
#define LQ_MODEL_LOAD_H

#include "model/block.h"

#define LQ_NO_LAYER UINT32_MAX

struct lq_loader {
    lq_model *model;
    const lq_gguf *gguf;
    const lq_arch *arch;
    uint32_t device; /* index of the device that tensors are loaded to now */
    uint32_t layer;  /* layer that is loaded now (its tensors' names start with blk.<layer>.), or LQ_NO_LAYER */
    uint64_t n_vectors[LQ_MAX_DEVICES];    /* floats in all vectors and convolution kernels of a device */
    uint64_t used_vectors[LQ_MAX_DEVICES]; /* floats loaded so far */
    float *host_vector;                    /* the vector that was decoded last */
    bool *used;                            /* [tensors of the file] whether it was loaded */
};

/* Allocates memory for all vectors of the model on each device. The caller frees l->host_vector. */
lq_status lq_count_vectors(lq_loader *l);
/* Loads a vector, decoded to f32; l->host_vector holds it until the next one. An absent optional vector leaves *out
 * unchanged. */
lq_status lq_load_vector(lq_loader *l, lq_presence presence, const float **out, uint32_t n, const char *name);
/* Loads the kernel [n_channels][n_taps] of a short convolution, decoded to f32. */
lq_status lq_load_kernel(lq_loader *l, const float **out, uint32_t n_channels, uint32_t n_taps, const char *name);
/* Multiplies the vector of n values that was loaded last: a bias, or the output norm, which so scales the logits. */
void lq_scale_last_vector(lq_loader *l, uint32_t n, float scale);
/* Loads the matrix <stem>.weight of n_rows outputs, with <stem>.scale, the factor of its products, and <stem>.bias. */
lq_status lq_load_linear(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem,
                         lq_presence bias);
/* One of several matrices that a file stores as the rows of one. */
typedef struct lq_slice {
    lq_linear *out;
    uint32_t n_rows;
} lq_slice;
/* Loads the matrix <stem>.weight and divides its rows into consecutive slices. */
lq_status lq_load_fused(lq_loader *l, const lq_slice *slices, uint32_t n_slices, uint32_t n_cols, const char *stem);
/* Loads a matrix for each expert, and their factors; out describes the first, the others follow it in memory. */
lq_status lq_load_stack(lq_loader *l, lq_linear *out, uint32_t n_rows, uint32_t n_cols, const char *stem);
/* Loads the embedding or the output head. n_rows 0: as many rows as the file has. *factor: the factor of its products,
 * which the caller applies elsewhere. An absent matrix leaves *out unchanged. */
lq_status lq_load_end(lq_loader *l, lq_presence presence, lq_weight *out, float *factor, uint32_t n_rows,
                      const char *stem);

#endif
