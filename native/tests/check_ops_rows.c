/* check_ops_rows.c - checks operations in any order: a backend may defer some or fuse them with others, but must give
 * the same bits as each operation by itself. Buffers overlap in every way that operations allow. */
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "check.h"
#include "ops_buffers.h"

#define N_BUFFERS 4
#define N_STEPS 14
#define N_CELLS 80
#define FEW_COLUMNS 64 /* up to here the matrix is square, so that its products are rows like the others */

typedef struct shape {
    uint32_t n_rows, n_heads, head_dim, n_rot;
} shape;

typedef struct state {
    shape is;
    buffer values[N_BUFFERS]; /* [n_rows][n_heads * head_dim] */
    buffer weights, rotations, cells;
    uint32_t product;    /* where the last one went */
    const float *turned; /* other rotations of a row, in host memory */
    lq_weight matrix;    /* [N_OUT][n_cols] Q8_0 */
} state;

static uint32_t pick(uint32_t n) { return (uint32_t)(check_random(&seed) % n); }

static uint32_t columns(const state *s) { return s->is.n_heads * s->is.head_dim; }

/* Multiplies whole rows, or as many of half the length. */
static void product(const state *s, uint32_t from, uint32_t to) {
    lq_weight matrix = s->matrix;
    lq_matmul one = {&matrix, pick(2) == 0 ? NULL : s->weights.data, s->values[to].data};
    if (pick(2) == 0 && matrix.n_cols % (2 * matrix.format->block_len) == 0) {
        matrix.n_cols /= 2;
        matrix.row_bytes /= 2;
    }
    ops->matmul(backend, &one, 1, s->values[from].data, s->is.n_rows);
}

static void store(const state *s, uint32_t from, uint32_t cell) {
    uint64_t head_bytes = N_CELLS * lq_cell_bytes(LQ_CELL_Q8_0, s->is.head_dim);
    ops->kv_store(backend, LQ_CELL_Q8_0, (uint8_t *)s->cells.data, head_bytes, s->values[from].data, s->is.n_rows,
                  s->is.n_heads, s->is.head_dim, cell, N_CELLS);
}

/* Runs one operation, the same for the same seed. Products often take the result of an earlier one. */
static void step(state *s) {
    uint32_t a = pick(N_BUFFERS), b = (a + 1 + pick(N_BUFFERS - 1)) % N_BUFFERS, n_cols = columns(s);
    uint32_t skipped = pick(s->is.n_rows), kind = pick(16);
    float *x = s->values[a].data, *y = s->values[b].data;
    size_t n = (size_t)s->is.n_rows * n_cols, later = (size_t)skipped * n_cols;
    lq_activation activation = pick(2) == 0 ? LQ_ACT_SILU : LQ_ACT_GELU_TANH;
    lq_rope_style style = pick(2) == 0 ? LQ_ROPE_PAIRS : LQ_ROPE_HALVES;
    switch (kind) {
    case 0:
        ops->rms_norm(backend, x, y, s->weights.data, s->is.n_rows, n_cols, 1e-5f);
        break;
    case 1:
        ops->rms_norm(backend, x, x, s->weights.data, s->is.n_rows * s->is.n_heads, s->is.head_dim, 1e-5f);
        break;
    case 2:
        ops->rms_norm(backend, x, y + later, s->weights.data, s->is.n_rows - skipped, n_cols, 1e-6f);
        break;
    case 3:
        ops->add(backend, x, y, 0.5f, n);
        break;
    case 4:
        ops->add(backend, x + later, y, 0.25f, n - later);
        break;
    case 5:
        ops->glu(backend, x, y, n, activation);
        break;
    case 6:
        ops->rope(backend, x, s->is.n_rows, s->is.n_heads, s->is.head_dim, s->is.n_rot, s->rotations.data, style);
        break;
    case 7:
        ops->hadamard(backend, x, s->is.n_rows * s->is.n_heads, s->is.head_dim);
        break;
    case 8:
        store(s, a, skipped);
        break;
    case 9:
    case 10:
    case 11:
    case 12:
        if (pick(2) == 0 && s->product != b) a = s->product;
        product(s, a, b);
        s->product = b;
        break;
    case 13:
        ops->scale(backend, x, s->is.n_rows, n_cols, s->weights.data, NULL);
        break;
    case 14:
        ops->copy(backend, x, y + later, n_cols * sizeof(float));
        break;
    default:
        ops->upload(backend, s->rotations.data, s->turned, s->is.n_rot * sizeof(float)); /* of the first row */
    }
}

static state make_state(const shape *is) {
    state s = {.is = *is};
    uint32_t n_cols = columns(&s);
    lq_weight matrix = {
        .format = lq_format_find(LQ_TYPE_Q8_0), .n_rows = n_cols <= FEW_COLUMNS ? n_cols : 8, .n_cols = n_cols};
    for (uint32_t i = 0; i < N_BUFFERS; i++) s.values[i] = make((size_t)is->n_rows * n_cols, 1.5f);
    s.weights = make(n_cols, 1.0f);
    s.rotations = make((size_t)is->n_rows * is->n_rot, 1.0f);
    s.cells = make(is->n_heads * N_CELLS * lq_cell_bytes(LQ_CELL_Q8_0, is->head_dim) / sizeof(float) + 1, 0.0f);
    matrix.row_bytes = n_cols / matrix.format->block_len * matrix.format->block_bytes;
    s.matrix = matrix;
    return s;
}

static void check_order(const shape *is, unsigned long long first_seed) {
    float *results[2][N_BUFFERS + 1];
    for (int together = 0; together < 2; together++) {
        buffer scratch;
        seed = first_seed;
        state s = make_state(is);
        uint32_t n_cols = columns(&s);
        size_t n_bytes = s.matrix.row_bytes * s.matrix.n_rows;
        uint8_t *codes = malloc(n_bytes);
        const void *adopted;
        for (size_t i = 0; i < n_bytes; i++) codes[i] = (uint8_t)pick(256);
        for (size_t i = 0; i < n_bytes; i += s.matrix.format->block_bytes) codes[i] = 0, codes[i + 1] = 0x14; /* d */
        CHECK_STATUS(ops->adopt(backend, codes, n_bytes, &adopted), LQ_OK);
        s.matrix.data = adopted;
        float *turned = malloc(is->n_rot * sizeof *turned);
        for (uint32_t i = 0; i < is->n_rot; i++) turned[i] = uniform();
        s.turned = turned;
        begin(is->n_rows, n_cols, is->n_heads, is->n_heads, is->head_dim, &scratch);
        for (uint32_t i = 0; i < N_STEPS; i++) {
            step(&s);
            if (!together) CHECK_STATUS(ops->sync(backend), LQ_OK);
        }
        for (uint32_t i = 0; i < N_BUFFERS; i++) results[together][i] = fetch(&s.values[i], "rows");
        results[together][N_BUFFERS] = fetch(&s.cells, "cells");
        end(&scratch);
        for (uint32_t i = 0; i < N_BUFFERS; i++) release(&s.values[i]);
        release(&s.weights), release(&s.rotations), release(&s.cells);
        free(codes), free(turned);
    }
    for (uint32_t i = 0; i <= N_BUFFERS; i++) {
        size_t n_bytes = i < N_BUFFERS ? (size_t)is->n_rows * is->n_heads * is->head_dim * sizeof(float)
                                       : is->n_heads * N_CELLS * lq_cell_bytes(LQ_CELL_Q8_0, is->head_dim);
        CHECK_MSG(memcmp(results[0][i], results[1][i], n_bytes) == 0,
                  "seed %llu, %u rows of %u x %u: buffer %u has other bits than with one operation at a time",
                  first_seed, is->n_rows, is->n_heads, is->head_dim, i);
        free(results[0][i]), free(results[1][i]);
    }
}

int main(int argc, char **argv) {
    static const shape shapes[] = {{1, 4, 64, 64},    {3, 2, 80, 32}, {2, 3, 32, 16},
                                   {1, 20, 128, 128}, {5, 1, 96, 96}, {70, 2, 32, 32}};
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        for (uint32_t i = 0; i < 20 * sizeof shapes / sizeof shapes[0]; i++)
            check_order(&shapes[i % (sizeof shapes / sizeof shapes[0])], 1000 + i);
        close_backend();
    }
    return check_report("check_ops_rows");
}
