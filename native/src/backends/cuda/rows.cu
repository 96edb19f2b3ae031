/* rows.cu - gathers operations on rows and runs them (row_steps.cuh). */
#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/row_steps.cuh"

#define VALUES_PER_THREAD 4
/* Values of a long row that one block takes, if every step works on single values or blocks of 32. */
#define SEGMENT 1024

/* Grid: the parts of the rows of all tracks. */
static __global__ void __launch_bounds__(MOST_THREADS) run_rows(row_program rows) {
    uint32_t index = 0;
    while (index + 1 < rows.n_tracks && blockIdx.x >= rows.tracks[index + 1].first_block) index++;
    const row_track &track = rows.tracks[index];
    uint32_t block = blockIdx.x - track.first_block, row = block / track.n_parts;
    size_t first = (size_t)(block % track.n_parts) * SEGMENT, end = track.n_cols;
    if (track.n_parts > 1 && end - first > SEGMENT) end = first + SEGMENT;
    row_part part = {row * track.n_cols, row, track.n_threads, track.n_cols, first, end};
    for (uint32_t i = 0; i < track.n_steps; i++) {
        if (i != 0) __syncthreads();
        run_step(track.steps[i], part);
    }
}

/* True if a block can do the step for a part of a row. */
static bool takes_parts(row_kind kind) {
    return kind == ROW_ADD || kind == ROW_GLU || kind == ROW_QUANTIZE || kind == ROW_SCALE;
}

/* Divides a track's rows into parts, one block each, and counts the blocks in *n_blocks. */
static void divide_rows(row_track *track, uint32_t *n_blocks) {
    bool whole = false;
    for (uint32_t i = 0; i < track->n_steps; i++) whole = whole || !takes_parts(track->steps[i].kind);
    uint32_t n_rows = track->n_cols != 0 ? (uint32_t)(track->n / track->n_cols) : 1;
    if (track->n_cols == 0) track->n_cols = track->n;
    track->n_parts = whole ? 1 : lq_divide_up(track->n_cols, SEGMENT);
    track->first_block = *n_blocks;
    *n_blocks += n_rows * track->n_parts;
    size_t values = whole || track->n_cols < SEGMENT ? track->n_cols : SEGMENT;
    track->n_threads = lq_divide_up(values, VALUES_PER_THREAD * LQ_WARP) * LQ_WARP;
    if (track->n_threads > MOST_THREADS) track->n_threads = MOST_THREADS;
}

void lq_cuda_run_rows(lq_backend_cuda *cuda) {
    row_program *rows = &cuda->rows;
    uint32_t n_blocks = 0, n_threads = 0;
    if (!lq_cuda_is_owner(cuda) || rows->n_tracks == 0) return;
    for (uint32_t i = 0; i < rows->n_tracks; i++) {
        divide_rows(&rows->tracks[i], &n_blocks);
        if (rows->tracks[i].n_threads > n_threads) n_threads = rows->tracks[i].n_threads;
    }
    LQ_LAUNCH(run_rows, n_blocks, n_threads, 0, cuda->stream, *rows);
    rows->n_tracks = 0;
    lq_cuda_check(cuda, "operations on rows");
}

/* ---- gathering */

/* How an operation's buffers lie to a track's: no overlap, exactly the same values, or any other overlap. */
typedef enum contact { APART, SAME_ROWS, ACROSS } contact;

/* Compares the n values at `at` with the buffers of a track. */
static contact meet(const row_track *track, const float *at, size_t n) {
    contact found = APART;
    if (at == NULL) return APART;
    for (uint32_t i = 0; i < track->n_steps; i++) {
        const float *buffers[] = {track->steps[i].dst, track->steps[i].x};
        for (const float *buffer : buffers) {
            if (buffer == NULL || at >= buffer + track->n || buffer >= at + n) continue;
            if (buffer != at || track->n != n) return ACROSS;
            found = SAME_ROWS;
        }
    }
    return found;
}

static bool store_meets(const row_track *track, const row_step *step) {
    if (step->kind != ROW_STORE) return false;
    for (uint32_t i = 0; i < track->n_steps; i++) {
        const row_step *other = &track->steps[i];
        if (other->kind != ROW_STORE) continue;
        const uint8_t *end = step->store.cells + step->n_heads * step->store.head_bytes;
        const uint8_t *other_end = other->store.cells + other->n_heads * other->store.head_bytes;
        if (step->store.cells < other_end && other->store.cells < end) return true;
    }
    return false;
}

/* Appends the second track's steps to the first one's, if their rows agree. NULL: they do not, or there is no room. */
static row_track *join(row_program *rows, row_track *first, row_track *second) {
    if (first == NULL) return second;
    bool same_rows = first->n_cols == second->n_cols || first->n_cols == 0 || second->n_cols == 0;
    if (first->n != second->n || !same_rows || first->n_steps + second->n_steps > ROW_STEPS) return NULL;
    for (uint32_t i = 0; i < second->n_steps; i++) first->steps[first->n_steps++] = second->steps[i];
    if (first->n_cols == 0) first->n_cols = second->n_cols;
    *second = rows->tracks[--rows->n_tracks];
    return first;
}

/* Finds the track that a step belongs to, or adds one if none touches its rows. NULL: run what was gathered first. */
static row_track *find_track(row_program *rows, const row_step *step, size_t n, uint32_t n_cols) {
    row_track *found = NULL;
    for (uint32_t i = 0; i < rows->n_tracks; i++) {
        row_track *track = &rows->tracks[i];
        if (store_meets(track, step)) return NULL;
        contact dst = meet(track, step->dst, n), x = meet(track, step->x, n);
        if (dst == APART && x == APART) continue;
        if (dst == ACROSS || x == ACROSS) return NULL;
        found = join(rows, found, track);
        if (found == NULL) return NULL;
        if (found != track) i--; /* join() moved the last track to index i */
    }
    if (found == NULL) {
        if (rows->n_tracks == ROW_TRACKS) return NULL;
        found = &rows->tracks[rows->n_tracks++];
        found->n = n;
        found->n_cols = 0;
        found->n_steps = 0;
    }
    bool other_rows = n_cols != 0 && found->n_cols != 0 && n_cols != found->n_cols;
    bool cuts_blocks = step->kind == ROW_QUANTIZE && found->n_cols % LQ_WARP != 0;
    return other_rows || cuts_blocks || found->n_steps == ROW_STEPS ? NULL : found;
}

/* Adds a step on n values. n_cols 0: the step does not depend on where a row ends. */
static void gather(lq_backend_cuda *cuda, const row_step *step, size_t n, uint32_t n_cols) {
    if (n == 0) return;
    row_track *track = find_track(&cuda->rows, step, n, n_cols);
    if (track == NULL) {
        lq_cuda_run_rows(cuda);
        track = find_track(&cuda->rows, step, n, n_cols);
    }
    if (n_cols != 0) track->n_cols = n_cols;
    track->steps[track->n_steps++] = *step;
}

void lq_cuda_rms_norm(lq_backend *backend, float *dst, const float *x, const float *weight, uint32_t n_rows,
                      uint32_t n_cols, float eps) {
    row_step step = {};
    step.kind = ROW_NORM;
    step.dst = dst;
    step.x = x;
    step.weight = weight;
    step.number = eps;
    gather(lq_cuda(backend), &step, (size_t)n_rows * n_cols, n_cols);
}

void lq_cuda_rope(lq_backend *backend, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                  const float *rotations, lq_rope_style style) {
    row_step step = {};
    step.kind = ROW_ROPE;
    step.dst = x;
    step.weight = rotations;
    step.n_heads = n_heads;
    step.rope.n_rot = n_rot;
    step.rope.style = style;
    gather(lq_cuda(backend), &step, (size_t)n_tokens * n_heads * head_dim, head_dim);
}

void lq_cuda_glu(lq_backend *backend, float *gate, const float *up, size_t n, lq_activation activation) {
    row_step step = {};
    step.kind = ROW_GLU;
    step.dst = gate;
    step.x = up;
    step.activation = activation;
    gather(lq_cuda(backend), &step, n, 0);
}

void lq_cuda_add(lq_backend *backend, float *dst, const float *x, float scale, size_t n) {
    row_step step = {};
    step.kind = ROW_ADD;
    step.dst = dst;
    step.x = x;
    step.number = scale;
    gather(lq_cuda(backend), &step, n, 0);
}

void lq_cuda_hadamard(lq_backend *backend, float *x, uint32_t n_rows, uint32_t head_dim) {
    row_step step = {};
    step.kind = ROW_HADAMARD;
    step.dst = x;
    gather(lq_cuda(backend), &step, (size_t)n_rows * head_dim, head_dim);
}

void lq_cuda_kv_store(lq_backend *backend, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                      uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells) {
    row_step step = {};
    step.kind = ROW_STORE;
    step.x = x;
    step.n_heads = n_kv_heads;
    step.store.format = format;
    step.store.cells = dst;
    step.store.head_bytes = head_bytes;
    step.store.cell0 = cell0;
    step.store.n_cells = n_cells;
    gather(lq_cuda(backend), &step, (size_t)n_tokens * n_kv_heads * head_dim, head_dim);
}

void lq_cuda_gather_quantize(lq_backend_cuda *cuda, const float *x, size_t n, int *q, float *d, int *halves) {
    row_step step = {};
    step.kind = ROW_QUANTIZE;
    step.x = x;
    step.quantize.q = q;
    step.quantize.d = d;
    step.quantize.halves = halves;
    gather(cuda, &step, n, 0);
}

void lq_cuda_gather_narrow(lq_backend_cuda *cuda, const float *x, uint32_t n_rows, uint32_t n_cols, uint16_t *halves,
                           float *unit) {
    row_step step = {};
    step.kind = ROW_NARROW;
    step.x = x;
    step.narrow.halves = halves;
    step.narrow.unit = unit;
    gather(cuda, &step, (size_t)n_rows * n_cols, n_cols);
}

void lq_cuda_gather_scale(lq_backend_cuda *cuda, float *y, uint32_t n_rows, uint32_t n_cols, const float *unit,
                          const float *bias) {
    row_step step = {};
    step.kind = ROW_SCALE;
    step.dst = y;
    step.weight = unit;
    step.bias = bias;
    gather(cuda, &step, (size_t)n_rows * n_cols, n_cols);
}
