/* rows.cuh - operations on rows (norms, rotations, sums, activations, storing cells, quantizing), gathered until
 * something else is asked for, then run by one kernel: a token is many such operations of next to no work each, and
 * starting a kernel costs microseconds.
 *
 * A track is a list of steps on the same rows, done in order by the block of threads that has the row; tracks touch
 * different memory. An operation joins the track whose rows it reads or writes; what fits no track, or two, lets all
 * that was gathered run first. */
#ifndef LQ_CUDA_ROWS_CUH
#define LQ_CUDA_ROWS_CUH

#include "backends/cuda/compat.cuh"

#define ROW_TRACKS 4
#define ROW_STEPS 6 /* of a track */

typedef enum row_kind {
    ROW_NORM,
    ROW_ADD,
    ROW_GLU,
    ROW_QUANTIZE,
    ROW_NARROW,
    ROW_SCALE,
    ROW_ROPE,
    ROW_HADAMARD,
    ROW_STORE
} row_kind;

/* All buffers are [n_rows][n_cols] of the track, but where it says otherwise. */
typedef struct row_step {
    row_kind kind;
    float *dst;          /* NULL where no row is written */
    const float *x;      /* NULL where dst alone is read */
    const float *weight; /* norm: [n_cols]; rope: rotations [tokens][n_rot]; scale: [n_rows] */
    float number;        /* norm: eps; add: scale */
    uint32_t n_heads;    /* rope, store: rows of a token */
    union {
        lq_activation activation;
        struct {
            uint32_t n_rot;
            lq_rope_style style;
        } rope;
        struct {
            lq_cell_format format;
            uint8_t *cells;
            uint64_t head_bytes;
            uint32_t cell0;
            uint32_t n_cells;
        } store;
        const float *bias; /* scale: [n_cols] or NULL */
        struct {           /* dense_x of matmul.cuh */
            uint16_t *halves;
            float *unit;
        } narrow;
        struct { /* activations of matmul.cuh */
            int *q;
            float *d;
            int *halves;
        } quantize;
    };
} row_step;

typedef struct row_track {
    size_t n;      /* values of each buffer */
    size_t n_cols; /* of a row; 0: no step minds where a row ends */
    uint32_t n_steps;
    row_step steps[ROW_STEPS];
    /* set when it runs */
    uint32_t first_block;
    uint32_t n_parts; /* blocks of a row */
    uint32_t n_threads;
} row_track;

typedef struct row_program {
    uint32_t n_tracks;
    row_track tracks[ROW_TRACKS];
} row_program;

static_assert(sizeof(row_program) <= 4000, "a kernel's arguments are 4 KiB at most");

#endif
