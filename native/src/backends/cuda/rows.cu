/* rows.cu - gathers operations on rows, and runs them. */
#include "backends/cuda/rows.cuh"

#include "backends/cuda/backend_cuda.cuh"
#include "backends/cuda/cells.cuh"
#include "backends/cuda/scale.cuh"

#define MOST_THREADS 1024
#define MOST_WARPS (MOST_THREADS / LQ_WARP)
#define VALUES_PER_THREAD 4
#define SEGMENT                                                                                                        \
    1024 /* values of a long row that a block takes, where steps mind single values or blocks of 32 only               \
          */
#define MAX_HEAD 1024

/* ---- steps: the threads that a track has, whatever others of the same start want, so that its results do not depend
 * on what runs along. All threads of the block come here. */

typedef struct row_part {
    size_t at; /* of the row's first value */
    uint32_t row;
    uint32_t n_threads; /* a multiple of a warp */
    size_t n_cols;
    size_t first; /* of the part: 0 where it is the whole row */
    size_t end;
} row_part;

#define FOR_PART(i, part)                                                                                              \
    for (size_t i = (part).at + (part).first + threadIdx.x;                                                            \
         threadIdx.x < (part).n_threads && i < (part).at + (part).end; i += (part).n_threads)

LQ_DEVICE void norm_row(const row_step &s, const row_part &p) {
    __shared__ float sums[MOST_WARPS];
    float sum = 0.0f;
    FOR_PART(i, p) sum += s.x[i] * s.x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % LQ_WARP == 0) sums[threadIdx.x / LQ_WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (uint32_t i = 0; i < p.n_threads / LQ_WARP; i++) sum += sums[i];
    float scale = 1.0f / sqrtf(sum / (float)p.n_cols + s.number);
    FOR_PART(i, p) s.dst[i] = s.x[i] * scale * s.weight[i - p.at];
}

LQ_DEVICE float activate(float x, lq_activation activation) {
    if (activation == LQ_ACT_SILU) return x / (1.0f + expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.797884560802865f * (x + 0.044715f * x * x * x)));
}

/* A warp is a block of 32, a lane a value. A NaN counts as the smallest number, as on the CPU. */
LQ_DEVICE void quantize_row(const row_step &s, const row_part &p) {
    uint32_t lane = threadIdx.x % LQ_WARP;
    FOR_PART(i, p) {
        size_t block = i / LQ_WARP;
        float value = s.x[i], size = fabsf(value) > 0.0f ? fabsf(value) : 0.0f, scale = warp_max(size) / 127.0f;
        float code = scale > 0.0f ? rintf(value / scale) : 0.0f;
        code = code >= -127.0f ? code : -127.0f;
        code = code <= 127.0f ? code : 127.0f;
        int sum = (int)code, word = (int)((uint32_t)((int)code & 255) << 8 * (lane % 4));
        for (int mask = 1; mask < 4; mask *= 2) word |= __shfl_xor_sync(LQ_ALL_LANES, word, mask);
        for (int mask = 1; mask < 16; mask *= 2) sum += __shfl_xor_sync(LQ_ALL_LANES, sum, mask);
        int second = __shfl_sync(LQ_ALL_LANES, sum, 16);
        if (lane % 4 == 0) s.quantize.q[block * 8 + lane / 4] = word;
        if (lane != 0) continue;
        s.quantize.d[block] = scale;
        s.quantize.halves[block] = (sum & 0xffff) | (int)((uint32_t)second << 16);
    }
}

/* Into F16, the whole row in units of its own. */
LQ_DEVICE void narrow_row(const row_step &s, const row_part &p) {
    __shared__ float largest[MOST_WARPS];
    float most = 0.0f, scale, unit;
    FOR_PART(i, p) most = fabsf(s.x[i]) > most ? fabsf(s.x[i]) : most;
    most = warp_max(most);
    if (threadIdx.x % LQ_WARP == 0) largest[threadIdx.x / LQ_WARP] = most;
    __syncthreads();
    for (uint32_t i = 0; i < p.n_threads / LQ_WARP; i++) most = largest[i] > most ? largest[i] : most;
    fit_halves(most, &scale, &unit);
    FOR_PART(i, p) s.narrow.halves[i] = float_to_half(s.x[i] * scale);
    if (threadIdx.x == 0) s.narrow.unit[p.row] = unit;
}

LQ_DEVICE void scale_row(const row_step &s, const row_part &p) {
    float unit = s.weight[p.row];
    FOR_PART(i, p) s.dst[i] = s.dst[i] * unit + (s.bias != NULL ? s.bias[i - p.at] : 0.0f);
}

LQ_DEVICE void rope_row(const row_step &s, const row_part &p) {
    uint32_t half = s.rope.n_rot / 2;
    const float *turns = s.weight + (size_t)(p.row / s.n_heads) * s.rope.n_rot;
    float *x = s.dst + p.at;
    for (uint32_t pair = threadIdx.x; pair < half; pair += blockDim.x) {
        uint32_t first = s.rope.style == LQ_ROPE_PAIRS ? 2 * pair : pair;
        uint32_t second = s.rope.style == LQ_ROPE_PAIRS ? first + 1 : first + half;
        float a = x[first], b = x[second], c = turns[2 * pair], sine = turns[2 * pair + 1];
        x[first] = a * c - b * sine;
        x[second] = a * sine + b * c;
    }
}

/* Where the power-of-two block of value i starts, and how long it is. */
LQ_DEVICE void rotation_block(uint32_t head_dim, uint32_t i, uint32_t *start, uint32_t *len) {
    uint32_t whole = head_dim / LQ_PAGE_GROUP * LQ_PAGE_GROUP;
    *start = 0;
    *len = head_dim;
    if ((head_dim & (head_dim - 1)) == 0) return;
    *len = LQ_PAGE_GROUP;
    if (i < whole) {
        *start = i / LQ_PAGE_GROUP * LQ_PAGE_GROUP;
        return;
    }
    *start = whole;
    for (*len = LQ_PAGE_GROUP / 2; *len > 1; *len /= 2) {
        if ((head_dim & *len) == 0) continue;
        if (i < *start + *len) return;
        *start += *len;
    }
}

/* lq_hadamard, bit for bit. */
LQ_DEVICE void rotate_row(const row_step &s, const row_part &p) {
    __shared__ float row[MAX_HEAD];
    float *x = s.dst + p.at;
    uint32_t head_dim = (uint32_t)p.n_cols;
    for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) row[i] = x[i];
    __syncthreads();
    for (uint32_t half = 1; half < head_dim; half *= 2) {
        for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) {
            uint32_t start, len;
            rotation_block(head_dim, i, &start, &len);
            if (half >= len || ((i - start) & half) != 0) continue;
            float a = row[i], b = row[i + half];
            row[i] = a + b;
            row[i + half] = a - b;
        }
        __syncthreads();
    }
    for (uint32_t i = threadIdx.x; i < head_dim; i += blockDim.x) {
        uint32_t start, len;
        rotation_block(head_dim, i, &start, &len);
        x[i] = row[i] * (1.0f / sqrtf((float)len));
    }
}

/* A thread is a block of 32 values. */
LQ_DEVICE void store_row(const row_step &s, const row_part &p) {
    uint32_t head_dim = (uint32_t)p.n_cols;
    uint64_t cell = ((uint64_t)s.store.cell0 + p.row / s.n_heads) % s.store.n_cells;
    size_t before = p.row % s.n_heads * s.store.head_bytes + cell * cell_bytes(s.store.format, head_dim);
    for (uint32_t b = threadIdx.x; b < divide_up(head_dim, LQ_CELL_BLOCK); b += blockDim.x) {
        uint32_t at = b * LQ_CELL_BLOCK, left = head_dim - at;
        cell_store_block(s.store.format, s.store.cells + before, b, s.x + p.at + at,
                         left < LQ_CELL_BLOCK ? left : LQ_CELL_BLOCK);
    }
}

LQ_DEVICE void run_step(const row_step &s, const row_part &p) {
    switch (s.kind) {
    case ROW_NORM:
        norm_row(s, p);
        break;
    case ROW_ADD:
        FOR_PART(i, p) s.dst[i] += s.number * s.x[i];
        break;
    case ROW_GLU:
        FOR_PART(i, p) s.dst[i] = activate(s.dst[i], s.activation) * s.x[i];
        break;
    case ROW_QUANTIZE:
        quantize_row(s, p);
        break;
    case ROW_NARROW:
        narrow_row(s, p);
        break;
    case ROW_SCALE:
        scale_row(s, p);
        break;
    case ROW_ROPE:
        rope_row(s, p);
        break;
    case ROW_HADAMARD:
        rotate_row(s, p);
        break;
    case ROW_STORE:
        store_row(s, p);
        break;
    }
}

/* Grid: parts of rows of all tracks. */
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

/* Steps that a block does for a part of a row as well. */
static bool takes_parts(row_kind kind) {
    return kind == ROW_ADD || kind == ROW_GLU || kind == ROW_QUANTIZE || kind == ROW_SCALE;
}

/* Cuts a track's rows into parts, the blocks from n_blocks on. */
static void cut(row_track *track, uint32_t *n_blocks) {
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
        cut(&rows->tracks[i], &n_blocks);
        if (rows->tracks[i].n_threads > n_threads) n_threads = rows->tracks[i].n_threads;
    }
    LQ_LAUNCH(run_rows, n_blocks, n_threads, 0, cuda->stream, *rows);
    rows->n_tracks = 0;
    lq_cuda_check(cuda, "operations on rows");
}

/* ---- gathering */

typedef enum contact { APART, SAME_ROWS, ACROSS } contact;

/* How n values at a place lie to the buffers of a track. */
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

/* Tracks of the same rows become one, the second one's steps behind the first one's. */
static row_track *join(row_program *rows, row_track *first, row_track *second) {
    if (first == NULL) return second;
    bool same_rows = first->n_cols == second->n_cols || first->n_cols == 0 || second->n_cols == 0;
    if (first->n != second->n || !same_rows || first->n_steps + second->n_steps > ROW_STEPS) return NULL;
    for (uint32_t i = 0; i < second->n_steps; i++) first->steps[first->n_steps++] = second->steps[i];
    if (first->n_cols == 0) first->n_cols = second->n_cols;
    *second = rows->tracks[--rows->n_tracks];
    return first;
}

/* The track that a step belongs to, a new one if no other has its rows; NULL: what was gathered has to run first. */
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
        if (found != track) i--; /* the last track has come to its place */
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

/* n_cols 0: the step does not mind where a row ends. */
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
