/* recurrent.h - the state of a recurrent layer: the last rows that its tokens left, one row per token. A short
 * convolution keeps the inputs that it looks back to; a layer whose state is a matrix keeps one row, the matrix. */
#ifndef LQ_KV_RECURRENT_H
#define LQ_KV_RECURRENT_H

#include "kv/state.h"

typedef struct lq_kv_recurrent {
    float *rows;    /* device: [state_rows][state_cols], the newest row last; zeros where no token came yet */
    float *pending; /* device: [max_tentative][state_cols] rows of the tokens of a tentative chunk */
    uint64_t bytes; /* bytes of rows and pending, which are one block of memory */
} lq_kv_recurrent;

#endif
