/* test_worker.c - tests a worker over the caller's memory: arguments that do not fit together are refused before any
 * memory is touched. Python compares its numbers (test_transformers_store.py). */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "logquant_worker.h"

enum { N_HEADS = 4, N_KV_HEADS = 2, HEAD_DIM = 16, N_CHUNK = 64, N_CELLS = 128 };

static lq_kv_worker_options options_of(const char *name) {
    lq_kv_worker_options options;
    lq_kv_worker_options_init(&options);
    options.n_heads = N_HEADS;
    options.n_kv_heads = N_KV_HEADS;
    options.head_dim = HEAD_DIM;
    options.n_chunk = N_CHUNK;
    options.n_threads = 2;
    options.kv.name = name;
    return options;
}

static void test_options(void) {
    lq_kv_worker *worker = NULL;
    lq_kv_worker_options options = options_of("logquant");
    options.struct_size = 4;
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_E_ARG);
    options = options_of("logquant");
    options.n_heads = 3;
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_E_ARG);
    options = options_of("logquant");
    options.n_chunk = 1u << 20;
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_E_ARG);
    options = options_of("logquant");
    options.head_dim = 12;
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_E_UNSUPPORTED);
    options = options_of("q8_0");
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_E_UNSUPPORTED);
    CHECK_STATUS(lq_kv_worker_create(NULL, &worker), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_create(&options, NULL), LQ_E_ARG);
    CHECK(worker == NULL);
    lq_kv_worker_close(&worker);
    lq_kv_worker_close(NULL);
}

/* A caller's memory, 64-byte aligned, as pages need it. */
typedef struct caller {
    float x[N_CHUNK * N_HEADS * HEAD_DIM];
    float out[N_CHUNK * N_HEADS * HEAD_DIM];
    uint16_t k[N_KV_HEADS * N_CELLS * HEAD_DIM];
    uint16_t v[N_KV_HEADS * N_CELLS * HEAD_DIM];
    uint16_t order[N_KV_HEADS * HEAD_DIM];
    uint64_t masks[N_KV_HEADS * 2];
    float accumulated[N_KV_HEADS * N_CELLS];
} caller;

static lq_kv_worker_cells cells_of(const caller *c, uint32_t n) {
    lq_kv_worker_cells cells = {.k = c->k, .v = c->v, .head_bytes = N_CELLS * HEAD_DIM * 2, .n_cells = n};
    return cells;
}

static void test_work(lq_kv_worker *worker, caller *c, uint8_t *pages) {
    uint32_t size = (uint32_t)sizeof(lq_kv_worker_attention);
    lq_kv_worker_info info = {.struct_size = (uint32_t)sizeof info};
    CHECK_STATUS(lq_kv_worker_get_info(worker, &info), LQ_OK);
    CHECK(info.block_bytes % 64 == 0 && info.block_bytes != 0 && info.needs_accumulated && !info.drops);
    info.struct_size = 1;
    CHECK_STATUS(lq_kv_worker_get_info(worker, &info), LQ_E_ARG);

    CHECK_STATUS(lq_kv_worker_store(worker, c->x, c->x, N_CHUNK + 1, c->k, c->v), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_store(worker, c->x, c->x, 0, c->k, c->v), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_store(worker, c->x, NULL, 1, c->k, c->v), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_store(worker, c->x, c->x, 8, c->k, c->v), LQ_OK);

    lq_kv_worker_cells cells = cells_of(c, N_CELLS);
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 3, 1, c->order, pages), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 2, 1, c->order, pages + 8), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 2, 1, c->order, NULL), LQ_E_ARG);
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 2, 1, c->order, pages), LQ_OK);
    c->order[3] = HEAD_DIM;
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 2, 0, c->order, pages), LQ_E_ARG);
    c->order[3] = 0;

    lq_kv_worker_attention args = {.struct_size = size, .n_tokens = 8, .q = c->x, .out = c->out, .scale = 0.25f};
    args.chunk = cells_of(c, 8);
    args.accumulated = c->accumulated;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_OK);
    args.n_tokens = 9; /* more queries than tokens */
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    args.n_tokens = 8;
    args.open = cells_of(c, N_CELLS + 1); /* more cells than a head has bytes for */
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    args.open = cells_of(c, 4);
    args.open.k = (const uint8_t *)c->k + 1;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    args.open = cells_of(c, 0);
    args.pages = pages;
    args.n_pages = 2;
    args.mask_stride = 1;
    args.masks = c->masks;
    args.order = c->order;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    args.mask_stride = 2;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_OK);
    args.order = NULL;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    args.struct_size = 0;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
}

static void test_calls(void) {
    lq_kv_worker *worker = NULL;
    lq_kv_worker_options options = options_of("logquant");
    caller *c = calloc(1, sizeof *c);
    uint8_t *memory = calloc(1, 1 << 16);
    CHECK(c != NULL && memory != NULL);
    if (c == NULL || memory == NULL) return;
    for (uint32_t i = 0; i < N_CHUNK * N_HEADS * HEAD_DIM; i++) c->x[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_OK);
    uint8_t *pages = memory + (64 - (uintptr_t)memory % 64) % 64;
    if (worker != NULL) test_work(worker, c, pages);
    lq_kv_worker_close(&worker);
    CHECK(worker == NULL);

    options = options_of("streaming"); /* no pages, nothing accumulated */
    CHECK_STATUS(lq_kv_worker_create(&options, &worker), LQ_OK);
    lq_kv_worker_attention args = {.struct_size = (uint32_t)sizeof args, .n_tokens = 2, .q = c->x, .out = c->out};
    args.scale = 0.25f;
    args.chunk = cells_of(c, 8);
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_OK);
    args.accumulated = c->accumulated;
    CHECK_STATUS(lq_kv_worker_attend(worker, &args), LQ_E_ARG);
    lq_kv_worker_cells cells = cells_of(c, 64);
    CHECK_STATUS(lq_kv_worker_pack(worker, &cells, 1, 1, c->order, pages), LQ_E_ARG);
    lq_kv_worker_close(&worker);
    free(memory);
    free(c);
}

int main(void) {
    test_options();
    test_calls();
    return check_report("test_worker");
}
