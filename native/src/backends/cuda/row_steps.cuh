/* row_steps.cuh - the kinds of steps (rows.cuh): each is done by a block of threads on its row, or part of a row. */
#ifndef LQ_CUDA_ROW_STEPS_CUH
#define LQ_CUDA_ROW_STEPS_CUH

#include "backends/cuda/cells.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/scale.cuh"

#define MOST_THREADS 1024
#define MOST_WARPS (MOST_THREADS / LQ_WARP)
#define MAX_HEAD 1024

/* The part of a row that a block works on, with n_threads of its threads: other tracks of the launch may need more, and
 * results must not depend on which tracks run together. All threads of the block call the steps (barriers). */
typedef struct row_part {
    size_t at; /* index of the row's first value in the buffers */
    uint32_t row;
    uint32_t n_threads; /* a multiple of LQ_WARP */
    size_t n_cols;
    size_t first; /* the part's first value in the row; 0 for a whole row */
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

/* One warp per block of 32, one lane per value. A NaN gets the smallest code, as on the CPU. */
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

/* Converts a row to F16, in units of its own (scale.cuh). */
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

/* Finds start and length of the power-of-two block that value i is in. */
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

/* Rotates a row with the same bits as lq_hadamard(). */
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

/* One thread per block of 32 values. */
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

#endif
