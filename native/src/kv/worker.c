/* worker.c - operations on KV caches in the caller's memory (logquant_worker.h). */
#include "logquant_worker.h"

#include <string.h>

#include "backends/backend.h"
#include "core/guard.h"
#include "core/system.h"
#include "kv/recipe.h"

#define DEFAULT_CHUNK 512
#define MAX_CHUNK 65536
#define MAX_PAGES ((uint32_t)1 << 22)
#define MANY_PAGES 64 /* entries that the page table gains at least, each time it grows */

struct lq_kv_worker {
    lq_guard guard;
    lq_backend *backend;
    lq_kv_recipe recipe;
    lq_page_format format;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_chunk;
    uint32_t max_columns;
    uint64_t block_bytes;
    void *scratch;
    float *values; /* [n_chunk][n_kv_heads][head_dim]: copies to rotate, because the caller's values must not change */
    uint8_t **frames;
    uint32_t n_frames;
};

void lq_kv_worker_options_init(lq_kv_worker_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
    lq_kv_options_init(&options->kv);
}

size_t lq_sizeof_kv_worker_options(void) { return sizeof(lq_kv_worker_options); }
size_t lq_sizeof_kv_worker_info(void) { return sizeof(lq_kv_worker_info); }
size_t lq_sizeof_kv_worker_attention(void) { return sizeof(lq_kv_worker_attention); }

/* ---- life */

static lq_status check_options(const lq_kv_worker_options *o) {
    if (o == NULL || o->struct_size != sizeof *o)
        return lq_fail(LQ_E_ARG, "KV worker options were not made by lq_kv_worker_options_init of this library");
    if (o->n_kv_heads == 0 || o->n_heads == 0 || o->n_heads % o->n_kv_heads != 0 || o->n_heads > 65536)
        return lq_fail(LQ_E_ARG, "%u query heads and %u KV heads do not fit each other", (unsigned)o->n_heads,
                       (unsigned)o->n_kv_heads);
    if (o->head_dim == 0 || o->head_dim > 65536)
        return lq_fail(LQ_E_ARG, "a head size of %u is not supported", (unsigned)o->head_dim);
    if (o->n_chunk > MAX_CHUNK)
        return lq_fail(LQ_E_ARG, "chunks of %u tokens are not supported; at most %u", (unsigned)o->n_chunk, MAX_CHUNK);
    return LQ_OK;
}

static lq_status fill_worker(lq_kv_worker *w, const lq_kv_worker_options *o) {
    void *memory;
    LQ_TRY(lq_kv_recipe_resolve(&o->kv, &w->recipe));
    if (!w->recipe.selects)
        return lq_fail(LQ_E_UNSUPPORTED,
                       "KV cache type '%s' selects no tokens and has no worker; choose a logquant type",
                       w->recipe.name);
    LQ_TRY(lq_kv_recipe_check_head(&w->recipe, o->head_dim));
    if (!w->recipe.evicts) {
        lq_page_format_init(&w->format, o->head_dim, &w->recipe.keys, w->recipe.value_bits, w->recipe.least_squares,
                            w->recipe.f16_scales);
        w->block_bytes = lq_page_block_bytes(&w->format, o->n_kv_heads);
    }
    w->max_columns = w->recipe.sinks + 3 * w->recipe.window + w->n_chunk;
    LQ_TRY(lq_backend_cpu_create(o->n_threads, &w->backend));
    lq_scratch_spec spec = {.n_tokens = w->n_chunk,
                            .n_heads = o->n_heads,
                            .n_kv_heads = o->n_kv_heads,
                            .head_dim = o->head_dim,
                            .n_accumulated = w->recipe.policy->needs_accumulated ? w->max_columns : 0};
    LQ_TRY(lq_alloc(w->backend->ops->scratch_bytes(w->backend, &spec), "scratch", &w->scratch));
    LQ_TRY(lq_alloc((uint64_t)w->n_chunk * o->n_kv_heads * o->head_dim * sizeof(float), "values", &memory));
    w->values = memory;
    return LQ_OK;
}

lq_status lq_kv_worker_create(const lq_kv_worker_options *options, lq_kv_worker **out) {
    void *memory;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    LQ_TRY(check_options(options));
    LQ_TRY(lq_alloc(sizeof(lq_kv_worker), "KV worker", &memory));
    lq_kv_worker *worker = memory;
    lq_guard_init(&worker->guard);
    worker->n_heads = options->n_heads;
    worker->n_kv_heads = options->n_kv_heads;
    worker->head_dim = options->head_dim;
    worker->n_chunk = options->n_chunk != 0 ? options->n_chunk : DEFAULT_CHUNK;
    lq_status status = fill_worker(worker, options);
    if (status != LQ_OK) {
        lq_kv_worker_close(&worker);
        return status;
    }
    *out = worker;
    return LQ_OK;
}

void lq_kv_worker_close(lq_kv_worker **worker) {
    if (worker == NULL || *worker == NULL) return;
    lq_kv_worker *held = *worker;
    *worker = NULL;
    if (!lq_guard_end(&held->guard)) return; /* a forked child leaves alone what a thread of its parent was changing */
    if (held->backend != NULL) held->backend->ops->free(held->backend);
    lq_free(held->scratch);
    lq_free(held->values);
    lq_free(held->frames);
    lq_free(held);
}

lq_status lq_kv_worker_get_info(const lq_kv_worker *w, lq_kv_worker_info *info) {
    if (w == NULL || info == NULL || info->struct_size != sizeof *info)
        return lq_fail(LQ_E_ARG, "worker and info must be given, with info->struct_size = sizeof *info");
    *info = (lq_kv_worker_info){.struct_size = (uint32_t)sizeof *info,
                                .n_chunk = w->n_chunk,
                                .overlay_cell_bytes = (uint32_t)lq_cell_bytes(w->recipe.cells, w->head_dim),
                                .key_bytes = w->format.k_bytes,
                                .value_bytes = w->format.v_bytes,
                                .scale_bytes = w->format.scale_bytes,
                                .block_bytes = (uint32_t)w->block_bytes,
                                .drops = w->recipe.evicts,
                                .least_squares = w->recipe.least_squares,
                                .f16_scales = w->recipe.f16_scales,
                                .rotates_values = w->recipe.rotates_values,
                                .needs_accumulated = w->recipe.policy->needs_accumulated};
    lq_kv_recipe_describe(&w->recipe, &info->kv);
    return LQ_OK;
}

static lq_status leave(lq_kv_worker *w, lq_status status) {
    lq_guard_leave(&w->guard);
    return status;
}

/* ---- cells and pages */

static bool is_aligned(const void *memory, uintptr_t bytes) { return (uintptr_t)memory % bytes == 0; }

/* Backend operations take pointers that are not const, even to what they only read. */
static uint8_t *unconst(const void *memory) { return (uint8_t *)(uintptr_t)memory; }

static lq_status check_cells(const lq_kv_worker *w, const lq_kv_worker_cells *cells, lq_cell_format format,
                             const char *what) {
    if (cells->n_cells == 0) return LQ_OK;
    if (cells->k == NULL || cells->v == NULL || !is_aligned(cells->k, 2) || !is_aligned(cells->v, 2) ||
        cells->head_bytes % 2 != 0)
        return lq_fail(LQ_E_ARG, "%s: cells must be given, 2-byte aligned", what);
    if (cells->n_cells > MAX_PAGES * LQ_PAGE_TOKENS ||
        (w->n_kv_heads > 1 && cells->head_bytes < cells->n_cells * lq_cell_bytes(format, w->head_dim)))
        return lq_fail(LQ_E_ARG, "%s: %u cells a head are too many for %llu bytes a head", what,
                       (unsigned)cells->n_cells, (unsigned long long)cells->head_bytes);
    return LQ_OK;
}

static lq_attn_run make_run(const lq_kv_worker_cells *cells, lq_cell_format format) {
    return (lq_attn_run){.format = format,
                         .k = unconst(cells->k),
                         .v = unconst(cells->v),
                         .head_bytes = cells->head_bytes,
                         .n_cells = cells->n_cells,
                         .history = true};
}

static lq_status store(lq_kv_worker *w, const float *k, const float *v, uint32_t n_tokens, uint16_t *k_cells,
                       uint16_t *v_cells) {
    if (n_tokens == 0 || n_tokens > w->n_chunk)
        return lq_fail(LQ_E_ARG, "%u tokens at once; there may be 1 to %u", (unsigned)n_tokens, (unsigned)w->n_chunk);
    const lq_backend_ops *ops = w->backend->ops;
    uint64_t head_bytes = n_tokens * (uint64_t)lq_cell_bytes(LQ_CELL_F16, w->head_dim);
    ops->begin(w->backend, w->scratch);
    if (w->recipe.rotates_values) {
        memcpy(w->values, v, (size_t)n_tokens * w->n_kv_heads * w->head_dim * sizeof *v);
        ops->hadamard(w->backend, w->values, n_tokens * w->n_kv_heads, w->head_dim);
        v = w->values;
    }
    ops->kv_store(w->backend, LQ_CELL_F16, unconst(k_cells), head_bytes, k, n_tokens, w->n_kv_heads, w->head_dim, 0,
                  n_tokens);
    ops->kv_store(w->backend, LQ_CELL_F16, unconst(v_cells), head_bytes, v, n_tokens, w->n_kv_heads, w->head_dim, 0,
                  n_tokens);
    lq_status status = ops->sync(w->backend);
    ops->end(w->backend);
    return status;
}

lq_status lq_kv_worker_store(lq_kv_worker *w, const float *k, const float *v, uint32_t n_tokens, uint16_t *k_cells,
                             uint16_t *v_cells) {
    if (w == NULL || k == NULL || v == NULL || k_cells == NULL || v_cells == NULL)
        return lq_fail(LQ_E_ARG, "worker, k, v and cells must be given");
    LQ_TRY(lq_guard_enter(&w->guard, "KV worker"));
    return leave(w, store(w, k, v, n_tokens, k_cells, v_cells));
}

/* Fills the table of page addresses that operations read; it grows rarely, so that a token allocates nothing. */
static lq_status set_frames(lq_kv_worker *w, const uint8_t *pages, uint32_t n_pages) {
    if (w->recipe.evicts) return lq_fail(LQ_E_ARG, "KV cache type '%s' drops tokens and has no pages", w->recipe.name);
    if (pages == NULL || !is_aligned(pages, 64) || n_pages > MAX_PAGES)
        return lq_fail(LQ_E_ARG, "pages must be given, 64-byte aligned, at most %u", (unsigned)MAX_PAGES);
    if (n_pages > w->n_frames) {
        void *memory;
        uint32_t n_frames = n_pages + n_pages / 4 + MANY_PAGES;
        LQ_TRY(lq_alloc(n_frames * (uint64_t)sizeof *w->frames, "page table", &memory));
        lq_free(w->frames);
        w->frames = memory;
        w->n_frames = n_frames;
    }
    for (uint32_t p = 0; p < n_pages; p++) w->frames[p] = unconst(pages) + p * w->block_bytes;
    return LQ_OK;
}

static lq_status check_order(const lq_kv_worker *w, const uint16_t *order) {
    if (order == NULL) return lq_fail(LQ_E_ARG, "pages have no order of channels");
    for (size_t i = 0; i < (size_t)w->n_kv_heads * w->head_dim; i++)
        if (order[i] >= w->head_dim)
            return lq_fail(LQ_E_ARG, "an order of channels names channel %u of %u", (unsigned)order[i],
                           (unsigned)w->head_dim);
    return LQ_OK;
}

static lq_status pack_pages(lq_kv_worker *w, const lq_kv_worker_cells *cells, uint32_t n_pages, uint32_t learn_order,
                            uint16_t *order, uint8_t *pages) {
    if (n_pages == 0 || n_pages > cells->n_cells / LQ_PAGE_TOKENS)
        return lq_fail(LQ_E_ARG, "%u cells do not make %u pages", (unsigned)cells->n_cells, (unsigned)n_pages);
    LQ_TRY(check_cells(w, cells, LQ_CELL_F16, "pack"));
    LQ_TRY(set_frames(w, pages, n_pages));
    if (learn_order == 0) LQ_TRY(check_order(w, order));
    lq_kv_pages table = {
        .format = &w->format, .frames = w->frames, .n_slots = n_pages, .end_page = n_pages, .order = order};
    lq_kv_pack pack = {.pages = &table,
                       .n_pages = n_pages,
                       .learn_order = learn_order != 0,
                       .n_kv_heads = w->n_kv_heads,
                       .n_sources = 1,
                       .sources = {make_run(cells, LQ_CELL_F16)}};
    w->backend->ops->begin(w->backend, w->scratch);
    w->backend->ops->kv_pack(w->backend, &pack);
    lq_status status = w->backend->ops->sync(w->backend);
    w->backend->ops->end(w->backend);
    return status;
}

lq_status lq_kv_worker_pack(lq_kv_worker *w, const lq_kv_worker_cells *cells, uint32_t n_pages, uint32_t learn_order,
                            uint16_t *order, uint8_t *pages) {
    if (w == NULL || cells == NULL || order == NULL)
        return lq_fail(LQ_E_ARG, "worker, cells, order and pages must be given");
    LQ_TRY(lq_guard_enter(&w->guard, "KV worker"));
    return leave(w, pack_pages(w, cells, n_pages, learn_order, order, pages));
}

/* ---- attention */

static lq_status check_attention(lq_kv_worker *w, const lq_kv_worker_attention *a) {
    if (a->q == NULL || a->out == NULL) return lq_fail(LQ_E_ARG, "q and out must be given");
    if (a->n_tokens == 0 || a->n_tokens > w->n_chunk || a->n_tokens > a->chunk.n_cells)
        return lq_fail(LQ_E_ARG,
                       "%u queries at once; there may be 1 to %u, and no more than the %u tokens of the chunk",
                       (unsigned)a->n_tokens, (unsigned)w->n_chunk, (unsigned)a->chunk.n_cells);
    LQ_TRY(check_cells(w, &a->sinks, LQ_CELL_F16, "sinks"));
    LQ_TRY(check_cells(w, &a->overlay, w->recipe.cells, "overlay"));
    LQ_TRY(check_cells(w, &a->open, LQ_CELL_F16, "open page"));
    LQ_TRY(check_cells(w, &a->chunk, LQ_CELL_F16, "chunk"));
    uint64_t n = (uint64_t)a->sinks.n_cells + a->overlay.n_cells + a->open.n_cells + a->chunk.n_cells;
    if (a->accumulated != NULL && (!w->recipe.policy->needs_accumulated || n > w->max_columns))
        return lq_fail(LQ_E_ARG, "accumulated attention by %llu cells was asked for; KV cache type '%s' has at most %u",
                       (unsigned long long)n, w->recipe.name,
                       w->recipe.policy->needs_accumulated ? (unsigned)w->max_columns : 0);
    if (a->n_pages == 0) return LQ_OK;
    if (a->masks == NULL || a->mask_stride < a->n_pages)
        return lq_fail(LQ_E_ARG, "%u pages need masks, not %u a head", (unsigned)a->n_pages, (unsigned)a->mask_stride);
    LQ_TRY(check_order(w, a->order));
    return set_frames(w, a->pages, a->n_pages);
}

static lq_status attend(lq_kv_worker *w, const lq_kv_worker_attention *a) {
    LQ_TRY(check_attention(w, a));
    const lq_kv_worker_cells *given[] = {&a->sinks, &a->overlay, &a->open, &a->chunk};
    lq_kv_pages pages = {.format = &w->format,
                         .frames = w->frames,
                         .masks = (uint64_t *)(uintptr_t)a->masks,
                         .n_slots = a->mask_stride,
                         .end_page = a->n_pages,
                         .order = (uint16_t *)(uintptr_t)a->order};
    lq_attention args = {.q = (float *)(uintptr_t)a->q,
                         .out = a->out,
                         .n_tokens = a->n_tokens,
                         .pos0 = a->chunk.n_cells - a->n_tokens, /* counted from the chunk's first token */
                         .n_heads = w->n_heads,
                         .n_kv_heads = w->n_kv_heads,
                         .head_dim = w->head_dim,
                         .scale = a->scale,
                         .softcap = a->softcap,
                         .pages = a->n_pages != 0 ? &pages : NULL,
                         .accumulated = a->accumulated};
    for (uint32_t i = 0; i < 4; i++)
        args.runs[args.n_runs++] = make_run(given[i], i == 1 ? w->recipe.cells : LQ_CELL_F16);
    args.runs[3].history = false;
    const lq_backend_ops *ops = w->backend->ops;
    ops->begin(w->backend, w->scratch);
    ops->attention(w->backend, &args, 1);
    if (w->recipe.rotates_values) ops->hadamard(w->backend, a->out, a->n_tokens * w->n_heads, w->head_dim);
    lq_status status = ops->sync(w->backend);
    ops->end(w->backend);
    return status;
}

lq_status lq_kv_worker_attend(lq_kv_worker *w, const lq_kv_worker_attention *a) {
    if (w == NULL || a == NULL || a->struct_size != sizeof *a)
        return lq_fail(LQ_E_ARG, "worker and args must be given, with args->struct_size = sizeof *args");
    LQ_TRY(lq_guard_enter(&w->guard, "KV worker"));
    return leave(w, attend(w, a));
}
