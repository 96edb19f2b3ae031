/* device_check.c - checks that a CUDA device computes as the CPU does: runs products, operations on rows, coding of
 * pages and attention with random numbers on both, at the sizes for which a device has kernels of its own. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/devices.h"
#include "core/half.h"
#include "logquant_device.h"

#define N_ROWS 160
#define N_COLS 512
#define N_HEADS 8
#define N_KV_HEADS 2
#define HEAD_DIM 128
#define N_PAGES 2
#define N_PAST (N_PAGES * LQ_PAGE_TOKENS)
#define MOST_X 300 /* rows of a prompt so long that cuBLAS multiplies it */
#define MOST_TOKENS 48
#define MOST_PARTS 16

/* A backend with the memory of one task and a random generator that gives the same numbers on every backend. */
typedef struct fixture {
    lq_backend *backend;
    const lq_backend_ops *ops;
    lq_status status;
    uint32_t n_parts;
    struct {
        void *memory;
        uint64_t n_bytes;
    } parts[MOST_PARTS];
    uint64_t seed;
} fixture;

static uint32_t next_random(fixture *p) {
    p->seed = p->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(p->seed >> 33);
}

static float next_float(fixture *p) { return (float)next_random(p) * 0x1p-30f - 1.0f; } /* -1 to 1 */

static void *take(fixture *p, uint64_t n_bytes) {
    void *memory = NULL;
    if (p->status == LQ_OK) p->status = p->ops->alloc(p->backend, n_bytes, "self-test", &memory);
    if (memory == NULL) return NULL;
    p->parts[p->n_parts].memory = memory;
    p->parts[p->n_parts++].n_bytes = n_bytes;
    return memory;
}

static void *take_random(fixture *p, size_t n) { /* n floats */
    void *memory = take(p, n * sizeof(float));
    float *host = memory != NULL ? malloc(n * sizeof *host) : NULL;
    if (memory == NULL) return NULL;
    if (host == NULL) {
        p->status = lq_fail(LQ_E_MEMORY, "no memory for the self-test");
        return NULL;
    }
    for (size_t i = 0; i < n; i++) host[i] = next_float(p);
    p->ops->upload(p->backend, memory, host, n * sizeof *host);
    free(host);
    return memory;
}

static void begin(fixture *p, uint32_t n_tokens, uint32_t n_cols) {
    lq_scratch_spec spec = {
        .n_tokens = n_tokens, .n_cols = n_cols, .n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = HEAD_DIM};
    void *scratch = take(p, p->ops->scratch_bytes(p->backend, &spec));
    if (p->status == LQ_OK) p->ops->begin(p->backend, scratch);
}

static void end(fixture *p, void *out, const void *memory, size_t n_bytes) {
    p->ops->download(p->backend, out, memory, n_bytes);
    p->status = p->ops->sync(p->backend);
    p->ops->end(p->backend);
}

/* ---- tasks: each writes its results to out */

typedef struct task {
    const char *what;
    void (*run)(fixture *p, const struct task *t, void *out);
    int32_t type; /* of weights */
    uint32_t n;   /* rows of activations, or tokens */
    size_t n_floats;
    double bound; /* upper bound of sum (device - cpu)^2 / sum cpu^2; 0: all bits must be the same */
} task;

/* Makes random weights of a format, of a size near 1 / sqrt(N_COLS); malloc'd, or NULL. */
static void *random_weights(fixture *p, const lq_format *format) {
    size_t n_bytes = N_ROWS * (size_t)lq_format_row_bytes(format, N_COLS), block = format->block_bytes;
    uint8_t *rows = malloc(n_bytes);
    if (rows == NULL) return NULL;
    for (size_t i = 0; i < n_bytes; i++) rows[i] = (uint8_t)next_random(p);
    for (size_t at = 0; at < n_bytes; at += block) {
        bool plain = format->type == LQ_TYPE_F16;
        uint16_t scale = lq_float_to_half(plain ? 0.04f * next_float(p) : 0.0005f);
        memcpy(rows + at, &scale, 2); /* d of Q8_0's 32 codes or Q4_K's 256 */
        scale = lq_float_to_half(0.00375f);
        if (format->type == LQ_TYPE_Q4_K)
            memcpy(rows + at + 2, &scale, 2); /* dmin: 7.5 times d, so that the values of 4-bit codes centre on 0 */
    }
    return rows;
}

static void run_product(fixture *p, const task *t, void *out) {
    const lq_format *format = lq_format_find(t->type);
    size_t row_bytes = lq_format_row_bytes(format, N_COLS);
    const void *adopted = NULL;
    void *weights = random_weights(p, format);
    if (weights == NULL) p->status = lq_fail(LQ_E_MEMORY, "no memory for the self-test");
    if (p->status == LQ_OK) p->status = p->ops->adopt(p->backend, weights, N_ROWS * row_bytes, &adopted);
    float *x = take_random(p, (size_t)t->n * N_COLS), *bias = take_random(p, N_ROWS);
    float *y = take(p, (size_t)t->n * N_ROWS * sizeof *y);
    begin(p, t->n, N_COLS);
    if (p->status == LQ_OK) {
        lq_weight weight = {adopted, format, N_ROWS, N_COLS, row_bytes, NULL};
        lq_matmul job = {&weight, bias, y};
        p->ops->matmul(p->backend, &job, 1, x, t->n);
        end(p, out, y, t->n_floats * sizeof *y);
    }
    free(weights);
}

static void run_rows(fixture *p, const task *t, void *out) {
    size_t n = (size_t)t->n * N_COLS;
    float *x = take_random(p, n), *up = take_random(p, n), *weight = take_random(p, N_COLS);
    float *rotations = take_random(p, (size_t)t->n * HEAD_DIM);
    begin(p, t->n, N_COLS);
    if (p->status != LQ_OK) return;
    p->ops->rms_norm(p->backend, x, x, weight, t->n, N_COLS, 1e-5f);
    p->ops->rope(p->backend, x, t->n, N_COLS / HEAD_DIM, HEAD_DIM, HEAD_DIM, rotations, LQ_ROPE_HALVES);
    p->ops->hadamard(p->backend, x, t->n * (N_COLS / HEAD_DIM), HEAD_DIM);
    p->ops->glu(p->backend, x, up, n, LQ_ACT_SILU);
    p->ops->add(p->backend, x, up, 0.5f, n);
    end(p, out, x, n * sizeof *x);
}

/* Keys and values: of N_PAST tokens in pages, of the tokens after them in cells. */
typedef struct cache {
    lq_page_format format;
    lq_kv_pages pages;
    lq_attn_run cells; /* the tokens after the pages */
    uint8_t *blocks;
} cache;

static void choose_format(lq_page_format *format) {
    static const lq_page_split split = {3, {{4, 1, 16}, {3, 1, 16}, {2, 7, 8}}};
    lq_page_format_init(format, HEAD_DIM, &split, 2, true, false);
}

static void fill_cache(fixture *p, uint32_t n_tokens, cache *c) {
    uint32_t n = N_PAST + n_tokens;
    uint64_t cell = lq_cell_bytes(LQ_CELL_F16, HEAD_DIM), head = n * cell;
    choose_format(&c->format);
    uint64_t block = lq_page_block_bytes(&c->format, N_KV_HEADS);
    float *k = take_random(p, (size_t)n * N_KV_HEADS * HEAD_DIM),
          *v = take_random(p, (size_t)n * N_KV_HEADS * HEAD_DIM);
    uint8_t *cells_k = take(p, N_KV_HEADS * head), *cells_v = take(p, N_KV_HEADS * head);
    void *frames = take(p, N_PAGES * sizeof(uint8_t *)), *masks = take(p, N_KV_HEADS * N_PAGES * sizeof(uint64_t));
    void *order = take(p, N_KV_HEADS * HEAD_DIM * sizeof(uint16_t));
    c->blocks = take(p, N_PAGES * block);
    begin(p, MOST_TOKENS, N_HEADS * HEAD_DIM);
    if (p->status != LQ_OK) return;
    for (uint32_t page = 0; page < N_PAGES; page++) {
        uint8_t *frame = c->blocks + page * block;
        p->ops->upload(p->backend, (uint8_t **)frames + page, &frame, sizeof frame);
    }
    c->pages = (lq_kv_pages){.format = &c->format,
                             .frames = frames,
                             .masks = masks,
                             .n_slots = N_PAGES,
                             .end_page = N_PAGES,
                             .order = order};
    p->ops->kv_store(p->backend, LQ_CELL_F16, cells_k, head, k, n, N_KV_HEADS, HEAD_DIM, 0, n);
    p->ops->kv_store(p->backend, LQ_CELL_F16, cells_v, head, v, n, N_KV_HEADS, HEAD_DIM, 0, n);
    lq_attn_run past = {LQ_CELL_F16, cells_k, cells_v, head, N_PAST, true, 0};
    lq_kv_pack pack = {&c->pages, 0, N_PAGES, true, N_KV_HEADS, 1, {past}};
    p->ops->kv_pack(p->backend, &pack);
    c->cells = past;
    c->cells.k += N_PAST * cell, c->cells.v += N_PAST * cell;
    c->cells.n_cells = n_tokens, c->cells.history = false, c->cells.pos0 = N_PAST;
}

static size_t page_floats(void) { /* size of all page blocks, counted in floats */
    lq_page_format format;
    choose_format(&format);
    return (size_t)(N_PAGES * lq_page_block_bytes(&format, N_KV_HEADS) / sizeof(float));
}

static void run_pack(fixture *p, const task *t, void *out) {
    cache c;
    fill_cache(p, t->n, &c);
    if (p->status == LQ_OK) end(p, out, c.blocks, t->n_floats * sizeof(float));
}

static void run_attention(fixture *p, const task *t, void *out) {
    cache c;
    float *q = take_random(p, t->n_floats), *y = take(p, t->n_floats * sizeof *y);
    fill_cache(p, t->n, &c);
    if (p->status != LQ_OK) return;
    lq_attention attention = {.q = q,
                              .out = y,
                              .n_tokens = t->n,
                              .pos0 = N_PAST,
                              .n_heads = N_HEADS,
                              .n_kv_heads = N_KV_HEADS,
                              .head_dim = HEAD_DIM,
                              .scale = 0.5f,
                              .pages = &c.pages,
                              .n_runs = 1,
                              .runs = {c.cells}};
    p->ops->attention(p->backend, &attention, 1);
    end(p, out, y, t->n_floats * sizeof *y);
}

/* ---- each task on both */

static lq_status run(lq_backend *backend, const task *t, void *out) {
    fixture p = {.backend = backend, .ops = backend->ops, .status = LQ_OK, .seed = 42};
    t->run(&p, t, out);
    while (p.n_parts > 0) {
        p.n_parts--;
        p.ops->release(backend, p.parts[p.n_parts].memory, p.parts[p.n_parts].n_bytes);
    }
    return p.status;
}

static lq_status compare(const task *t, const float *device, const float *cpu) {
    double error = 0.0, size = 0.0;
    if (t->bound == 0.0) {
        if (memcmp(device, cpu, t->n_floats * sizeof *cpu) == 0) return LQ_OK;
        return lq_fail(LQ_E_INTERNAL,
                       "the device computes wrongly: %s are not the CPU's, bit for bit; build the library again, or "
                       "report a defect",
                       t->what);
    }
    for (size_t i = 0; i < t->n_floats; i++) {
        error += ((double)device[i] - cpu[i]) * ((double)device[i] - cpu[i]);
        size += (double)cpu[i] * cpu[i];
    }
    if (error <= t->bound * size) return LQ_OK; /* false if anything is NaN */
    return lq_fail(
        LQ_E_INTERNAL,
        "the device computes wrongly: %s (tokens: %u) differ from the CPU's by %.2g of their square, not at most "
        "%.2g; build the library again, or report a defect",
        t->what, (unsigned)t->n, error / size, t->bound);
}

static lq_status run_on_both(lq_backend *device, lq_backend *cpu, const task *t) {
    float *results = malloc(2 * t->n_floats * sizeof *results);
    if (results == NULL) return lq_fail(LQ_E_MEMORY, "no memory for the self-test");
    lq_status status = run(device, t, results);
    if (status == LQ_OK) status = run(cpu, t, results + t->n_floats);
    if (status == LQ_OK) status = compare(t, results, results + t->n_floats);
    free(results);
    return status;
}

static lq_status check_all(lq_backend *device, lq_backend *cpu) {
    /* For Q8_0 and Q4_K both round activations to 8 bits, an error of 2e-5; F16 weights meet floats, or 22 bits of
     * them. */
    static const struct {
        const char *what;
        int32_t type;
        double bound;
    } products[] = {{"products with Q8_0 weights", LQ_TYPE_Q8_0, 5e-4},
                    {"products with Q4_K weights", LQ_TYPE_Q4_K, 5e-4},
                    {"products with F16 weights", LQ_TYPE_F16, 1e-8}};
    static const uint32_t sizes[] = {1, 5, 64, MOST_X}, chunks[] = {1, MOST_TOKENS};
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            task t = {products[i].what, run_product, products[i].type, sizes[k], (size_t)sizes[k] * N_ROWS, 0.0};
            t.bound = products[i].bound;
            LQ_TRY(run_on_both(device, cpu, &t));
        }
    }
    task rows = {"norms, rotations and sums", run_rows, 0, 9, (size_t)9 * N_COLS, 1e-9};
    LQ_TRY(run_on_both(device, cpu, &rows));
    task pages = {"coded pages", run_pack, 0, 1, page_floats(), 0.0};
    LQ_TRY(run_on_both(device, cpu, &pages));
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        task t = {"results of attention", run_attention, 0, chunks[i], (size_t)chunks[i] * N_HEADS * HEAD_DIM, 1e-3};
        LQ_TRY(run_on_both(device, cpu, &t));
    }
    return LQ_OK;
}

lq_status lq_cuda_check(const char *library, uint32_t index) {
    lq_backend *device, *cpu;
    char name[128];
    LQ_TRY(lq_backend_cuda_create(library, index, name, &device));
    lq_status status = lq_backend_cpu_create(0, &cpu);
    if (status == LQ_OK) {
        status = check_all(device, cpu);
        cpu->ops->free(cpu);
    }
    device->ops->free(device);
    return status;
}
