/* rows.cuh - operations on rows (norms, rotations, sums, activations, storing cells, quantizing). They are gathered
 * until another operation is asked for, then run by one kernel: a token needs many of them, each with next to no work,
 * and starting a kernel costs microseconds.
 *
 * A track is a list of steps on the same rows, done in order by the block of threads that has the row; different tracks
 * touch different memory. An operation joins the track whose rows it reads or writes. If it fits none, or tracks that
 * it touches cannot be joined, all gathered operations run first. */
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

/* Buffers are [n_rows][n_cols] of the track, unless noted. */
typedef struct row_step {
    row_kind kind;
    float *dst;          /* NULL: the step writes no row */
    const float *x;      /* NULL: the step reads only dst */
    const float *weight; /* norm: [n_cols]; rope: rotations [tokens][n_rot]; scale: [n_rows] */
    float number;        /* norm: eps; add: scale */
    uint32_t n_heads;    /* rope, store: rows per token */
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
    size_t n;      /* values in each buffer */
    size_t n_cols; /* values in a row; 0: no step depends on it */
    uint32_t n_steps;
    row_step steps[ROW_STEPS];
    /* set by lq_cuda_run_rows() */
    uint32_t first_block;
    uint32_t n_parts; /* blocks per row */
    uint32_t n_threads;
} row_track;

typedef struct row_program {
    uint32_t n_tracks;
    row_track tracks[ROW_TRACKS];
} row_program;

static_assert(sizeof(row_program) <= 4000, "a kernel's arguments are 4 KiB at most");

#endif
