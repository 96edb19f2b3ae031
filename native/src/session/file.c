/* file.c - saves and loads sessions. docs/format.md, Session files.
 *
 * No file is trusted: its checksum detects damage, and everything that is used as a number, an index or an order is
 * also checked, so that a file made on purpose can do no more than give wrong tokens. */
#include <stdio.h>
#include <string.h>

#include "core/checked.h"
#include "core/files.h"
#include "core/system.h"
#include "gguf/mapping.h"
#include "session/inside.h"

/* Version 2 says which pieces were tentative; a session that can have none is written as version 1. */
#define VERSION 2

static const char magic[8] = {'L', 'Q', 'S', 'E', 'S', 'S', '\r', '\n'};

/* The head of a file, as it is stored; little-endian. */
typedef struct file_head {
    char magic[8];
    uint32_t version;
    uint32_t head_bytes;
    uint64_t file_bytes; /* the checksum at the end included */
    uint64_t fingerprint;
    uint64_t state_bytes; /* bytes of the cache's pieces */
    uint64_t extra_bytes;
    uint64_t max_checkpoint_bytes;
    uint32_t max_checkpoints;
    uint32_t n_vocab;
    uint32_t n_ctx;
    uint32_t n_chunk;
    uint32_t allow_long;
    uint32_t on_full;
    uint32_t n_tokens;
    uint32_t first_page; /* pages that were dropped */
    uint32_t drop_floor; /* tokens held when pages were last dropped */
    uint32_t has_logits;
    uint32_t value_bits;
    uint32_t window;
    int32_t sinks;
    char kv_name[32]; /* strings end with a zero; an empty one stands for NULL */
    char keys[64];
    char overlay[16];
    char select[16];
    uint32_t max_tentative; /* version 1: 0 */
} file_head;
_Static_assert(sizeof(file_head) == 240, "the head of session files has no padding");

typedef struct file_sizes {
    uint64_t tokens;
    uint64_t starts; /* one bit per token: where pieces begin */
    uint64_t tentative;
    uint64_t logits;
    uint64_t total; /* includes head and checksum */
} file_sizes;

/* Computes the sizes; false if they overflow. */
static bool measure(const file_head *head, file_sizes *out) {
    out->tokens = (uint64_t)head->n_tokens * sizeof(int32_t);
    out->starts = ((uint64_t)head->n_tokens + 7) / 8;
    out->tentative = head->max_tentative != 0 ? out->starts : 0;
    out->logits = head->has_logits != 0 ? (uint64_t)head->n_vocab * sizeof(float) : 0;
    out->total = sizeof *head + out->tokens + out->starts + out->tentative + out->logits + sizeof(uint64_t);
    return lq_add_u64(out->total, head->state_bytes, &out->total) &&
           lq_add_u64(out->total, head->extra_bytes, &out->total);
}

static lq_status count_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    uint64_t *total = context;
    (void)backend, (void)memory;
    return lq_add_u64(*total, n_bytes, total) ? LQ_OK : lq_fail(LQ_E_FORMAT, "sizes are beyond any memory");
}

#define ALL_PARTS (LQ_KV_PART_CELLS | LQ_KV_PART_PAGES)

/* ---- saving */

static void copy_text(char *dst, size_t room, const char *text) {
    if (text != NULL) snprintf(dst, room, "%s", text);
}

static void fill_head(const lq_session *s, uint64_t state_bytes, uint64_t extra_bytes, file_head *head) {
    lq_kv_options kv;
    file_sizes sizes;
    memset(head, 0, sizeof *head);
    lq_kv_recipe_describe(&s->layout.kv.recipe, &kv);
    memcpy(head->magic, magic, sizeof magic);
    head->version = s->layout.kv.max_tentative != 0 ? VERSION : 1;
    head->head_bytes = sizeof *head;
    head->fingerprint = lq_model_fingerprint(s->model);
    head->state_bytes = state_bytes;
    head->extra_bytes = extra_bytes;
    head->max_checkpoint_bytes = s->layout.max_checkpoint_bytes;
    head->max_checkpoints = s->layout.max_checkpoints;
    head->n_vocab = s->model->config.n_vocab;
    head->n_ctx = s->n_ctx;
    head->n_chunk = s->layout.kv.n_chunk;
    head->max_tentative = s->layout.kv.max_tentative;
    head->allow_long = s->layout.allow_long;
    head->on_full = s->layout.drops ? LQ_ON_FULL_DROP : LQ_ON_FULL_STOP;
    head->n_tokens = atomic_load(&s->n_tokens);
    head->first_page = lq_kv_cache_first_page(s->cache);
    head->drop_floor = lq_kv_cache_drop_floor(s->cache);
    head->has_logits = atomic_load(&s->has_logits);
    head->value_bits = kv.value_bits;
    head->window = kv.window;
    head->sinks = kv.sinks;
    copy_text(head->kv_name, sizeof head->kv_name, kv.name);
    copy_text(head->keys, sizeof head->keys, kv.keys);
    copy_text(head->overlay, sizeof head->overlay, kv.overlay);
    copy_text(head->select, sizeof head->select, kv.select);
    measure(head, &sizes);
    head->file_bytes = sizes.total;
}

typedef struct saving {
    atomic_uint *cancel; /* the session's */
    lq_file_writer *writer;
    uint8_t block[65536]; /* device memory on its way to the file */
} saving;

static lq_status write_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    saving *job = context;
    const uint8_t *at = memory;
    if (atomic_load(job->cancel)) return lq_fail(LQ_E_CANCELLED, "cancelled");
    while (n_bytes != 0) {
        uint64_t n = n_bytes < sizeof job->block ? n_bytes : sizeof job->block;
        backend->ops->download(backend, job->block, at, (size_t)n);
        LQ_TRY(lq_file_write(job->writer, job->block, n));
        at += n;
        n_bytes -= n;
    }
    return LQ_OK;
}

/* Writes n bits, without those after them in the last byte, which are left from tokens that were taken back. */
static lq_status write_bits(lq_file_writer *writer, const uint8_t *bits, uint32_t n) {
    uint8_t last = (uint8_t)(bits[n / 8] & ((1u << n % 8) - 1));
    LQ_TRY(lq_file_write(writer, bits, n / 8));
    return lq_file_write(writer, &last, n % 8 != 0 ? 1 : 0);
}

static lq_status write_all(lq_session *s, const file_head *head, const void *extra, saving *job) {
    file_sizes sizes;
    measure(head, &sizes);
    LQ_TRY(lq_file_write(job->writer, head, sizeof *head));
    LQ_TRY(lq_file_write(job->writer, s->tokens, sizes.tokens));
    LQ_TRY(write_bits(job->writer, s->starts, head->n_tokens));
    if (sizes.tentative != 0) LQ_TRY(write_bits(job->writer, s->tentative, head->n_tokens));
    LQ_TRY(lq_file_write(job->writer, s->logits, sizes.logits));
    LQ_TRY(lq_kv_cache_walk(s->cache, head->n_tokens, ALL_PARTS, write_piece, job));
    return lq_file_write(job->writer, extra, head->extra_bytes);
}

static lq_status save(lq_session *s, const char *path, const void *extra, size_t n_extra) {
    uint64_t state_bytes = 0;
    uint32_t n_tokens = atomic_load(&s->n_tokens);
    file_head head;
    void *memory;
    LQ_TRY(lq_session_check_pending(s));
    LQ_TRY(lq_gguf_check_whole(s->model->gguf)); /* the fingerprint reads the file */
    LQ_TRY(lq_session_fetch_logits(s));
    LQ_TRY(lq_kv_cache_walk(s->cache, n_tokens, ALL_PARTS, count_piece, &state_bytes));
    fill_head(s, state_bytes, n_extra, &head);
    LQ_TRY(lq_alloc(sizeof(saving), "file", &memory));
    saving *job = memory;
    job->cancel = &s->cancel;
    lq_status status = lq_file_create(path, &job->writer);
    if (status == LQ_OK) {
        lq_workspace_begin(s->model);
        status = write_all(s, &head, extra, job);
        lq_workspace_end(s->model);
    }
    if (status == LQ_OK) status = lq_file_commit(&job->writer);
    lq_file_abandon(&job->writer);
    lq_free(memory);
    return status;
}

lq_status lq_session_save(lq_session *s, const char *path, const void *extra, size_t n_extra) {
    if (path == NULL || (extra == NULL && n_extra != 0)) return lq_fail(LQ_E_ARG, "path and extra must be given");
    LQ_TRY(lq_session_enter(s));
    lq_session_uncancel(s);
    return lq_session_leave(s, save(s, path, extra, n_extra));
}

/* ---- loading */

static bool ends(const char *text, size_t room) { return memchr(text, '\0', room) != NULL; }

static lq_status damaged(const char *path, const char *what) {
    return lq_fail(LQ_E_FORMAT, "%.300s: %s; the file is damaged, save the session again", path, what);
}

/* Checks the head, the checksum and the sizes, before anything else of the file is used. */
static lq_status check_head(const char *path, const lq_mapping *file, file_head *head, file_sizes *sizes) {
    uint64_t stored;
    if (file->n_bytes < sizeof *head + sizeof stored || memcmp(file->bytes, magic, sizeof magic) != 0)
        return lq_fail(LQ_E_FORMAT, "%.300s: not a saved session", path);
    memcpy(head, file->bytes, sizeof *head);
    if (head->version < 1 || head->version > VERSION || head->head_bytes != sizeof *head)
        return lq_fail(LQ_E_UNSUPPORTED, "%.300s: a saved session of version %u; this build reads up to version %d",
                       path, (unsigned)head->version, VERSION);
    if (head->file_bytes != file->n_bytes)
        return lq_fail(LQ_E_FORMAT, "%.300s: has %llu bytes, but %llu were written; the file is damaged", path,
                       (unsigned long long)file->n_bytes, (unsigned long long)head->file_bytes);
    memcpy(&stored, file->bytes + file->n_bytes - sizeof stored, sizeof stored);
    if (lq_checksum(file->bytes, file->n_bytes - sizeof stored) != stored)
        return damaged(path, "the checksum does not agree");
    if (!ends(head->kv_name, sizeof head->kv_name) || !ends(head->keys, sizeof head->keys) ||
        !ends(head->overlay, sizeof head->overlay) || !ends(head->select, sizeof head->select))
        return damaged(path, "a name has no end");
    if ((head->version == 1) != (head->max_tentative == 0)) return damaged(path, "numbers do not agree");
    if (!measure(head, sizes) || sizes->total != file->n_bytes) return damaged(path, "sizes do not add up");
    return LQ_OK;
}

static void read_options(const file_head *head, uint64_t memory_budget, lq_session_options *o) {
    lq_session_options_init(o);
    o->n_ctx = head->n_ctx;
    o->n_chunk = head->n_chunk;
    o->max_tentative = head->max_tentative;
    o->allow_long = head->allow_long;
    o->on_full = head->on_full;
    o->memory_budget = memory_budget;
    o->max_checkpoints = head->max_checkpoints;
    o->max_checkpoint_bytes = head->max_checkpoint_bytes;
    o->kv.name = head->kv_name;
    o->kv.keys = head->keys[0] != '\0' ? head->keys : NULL;
    o->kv.value_bits = head->value_bits;
    o->kv.window = head->window;
    o->kv.sinks = head->sinks;
    o->kv.overlay = head->overlay[0] != '\0' ? head->overlay : NULL;
    o->kv.select = head->select[0] != '\0' ? head->select : NULL;
}

typedef struct loading {
    const uint8_t *at;
    uint64_t n_left;
} loading;

static lq_status read_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    loading *job = context;
    if (n_bytes > job->n_left) return lq_fail(LQ_E_FORMAT, "the cache has other sizes");
    if (n_bytes != 0) backend->ops->upload(backend, memory, job->at, (size_t)n_bytes);
    job->at += n_bytes;
    job->n_left -= n_bytes;
    return LQ_OK;
}

static lq_status read_cache(lq_session *s, const file_head *head, const uint8_t *state) {
    loading job = {state, head->state_bytes};
    uint64_t wanted = 0;
    lq_kv_cache_set_dropped(s->cache, head->first_page, head->drop_floor);
    LQ_TRY(lq_kv_cache_reserve(s->cache, head->n_tokens));
    LQ_TRY(lq_kv_cache_walk(s->cache, head->n_tokens, ALL_PARTS, count_piece, &wanted));
    if (wanted != head->state_bytes) return lq_fail(LQ_E_FORMAT, "the cache has other sizes");
    LQ_TRY(lq_kv_cache_walk(s->cache, head->n_tokens, ALL_PARTS, read_piece, &job));
    LQ_TRY(lq_kv_cache_check(s->cache, head->n_tokens));
    lq_kv_cache_restored(s->cache, head->n_tokens);
    return LQ_OK;
}

static lq_status check_pieces(lq_session *s, uint32_t n_tokens) {
    uint32_t n_piece = 0, most = 0;
    if (n_tokens > 0) s->starts[0] |= 1;
    for (uint32_t i = 0; i < n_tokens; i++) {
        bool tentative = lq_session_was_tentative(s, i), starts = lq_session_starts(s, i);
        if (tentative && !starts) return lq_fail(LQ_E_FORMAT, "a tentative piece has no beginning");
        if (starts) most = tentative ? s->layout.kv.max_tentative : s->layout.kv.n_chunk;
        n_piece = starts ? 1 : n_piece + 1;
        if (n_piece > most) return lq_fail(LQ_E_FORMAT, "a piece is larger than a chunk");
    }
    return LQ_OK;
}

static lq_status read_all(lq_session *s, const file_head *head, const file_sizes *sizes, const uint8_t *at) {
    void *memory;
    LQ_TRY(lq_session_grow(s, head->n_tokens));
    memcpy(s->tokens, at, sizes->tokens);
    at += sizes->tokens;
    for (uint32_t i = 0; i < head->n_tokens; i++)
        if (s->tokens[i] < 0 || (uint32_t)s->tokens[i] >= head->n_vocab)
            return lq_fail(LQ_E_FORMAT, "a token is outside the vocabulary");
    memcpy(s->starts, at, sizes->starts);
    at += sizes->starts;
    memcpy(s->tentative, at, sizes->tentative);
    at += sizes->tentative;
    LQ_TRY(check_pieces(s, head->n_tokens));
    memcpy(s->logits, at, sizes->logits);
    at += sizes->logits;
    lq_workspace_begin(s->model);
    lq_status status = read_cache(s, head, at);
    lq_workspace_end(s->model);
    LQ_TRY(status);
    if (head->extra_bytes != 0) {
        LQ_TRY(lq_alloc(head->extra_bytes, "what is stored with the session", &memory));
        s->extra = memory;
        s->n_extra = (size_t)head->extra_bytes;
        memcpy(memory, at + head->state_bytes, s->n_extra);
    }
    atomic_store(&s->n_tokens, head->n_tokens);
    lq_session_note_usage(s);
    atomic_store(&s->has_logits, head->has_logits != 0 && head->n_tokens != 0);
    return LQ_OK;
}

/* True if a session of this layout can hold these numbers of tokens. */
static bool agree(const file_head *head, const lq_session_layout *layout) {
    const lq_kv_recipe *recipe = &layout->kv.recipe;
    uint64_t n_dropped = (uint64_t)head->first_page * LQ_PAGE_TOKENS,
             n_kept = recipe->selects ? recipe->sinks : LQ_KV_DROP_SINKS;
    if (head->n_tokens > layout->kv.n_limit || head->drop_floor > head->n_tokens) return false;
    if (recipe->evicts) return head->first_page == 0 && head->drop_floor == 0;
    if (head->n_tokens > layout->kv.n_ctx + n_dropped) return false;
    if (head->first_page == 0) return head->drop_floor == 0;
    return layout->drops && n_dropped + n_kept <= head->drop_floor;
}

/* Puts the file's name before the last error's text. LQ_E_ARG becomes LQ_E_UNSUPPORTED: an option that this build does
 * not know comes from the file (a newer version's, or one made on purpose), not from the caller. */
static lq_status name_file(const char *path, lq_status status) {
    char what[400];
    if (status == LQ_OK) return LQ_OK;
    snprintf(what, sizeof what, "%s", lq_error_message());
    if (status == LQ_E_FORMAT) return damaged(path, what);
    return lq_fail(status == LQ_E_ARG ? LQ_E_UNSUPPORTED : status, "%.300s: %s", path, what);
}

static lq_status load(lq_model *model, const char *path, const lq_mapping *file, uint64_t budget, lq_session **out) {
    file_head head;
    file_sizes sizes = {0};
    lq_session_options options;
    lq_session_layout layout;
    LQ_TRY(check_head(path, file, &head, &sizes));
    LQ_TRY(lq_gguf_check_whole(model->gguf));
    if (head.fingerprint != lq_model_fingerprint(model))
        return lq_fail(LQ_E_ARG, "%.300s: saved with another model than this one; open the model it was saved with",
                       path);
    if (head.n_vocab != model->config.n_vocab || head.n_ctx == 0) return damaged(path, "numbers do not agree");
    read_options(&head, budget, &options);
    LQ_TRY(name_file(path, lq_session_resolve(model, &options, &layout)));
    if (!agree(&head, &layout)) return damaged(path, "numbers do not agree");
    LQ_TRY(name_file(path, lq_session_check_budget(model, &options, &layout)));
    LQ_TRY(name_file(path, lq_session_make(model, &layout, out)));
    lq_status status = name_file(path, read_all(*out, &head, &sizes, file->bytes + sizeof head));
    if (status != LQ_OK) lq_session_close(out);
    return status;
}

lq_status lq_session_load(lq_model *model, const char *path, uint64_t memory_budget, lq_session **out) {
    lq_mapping file;
    if (model == NULL || path == NULL || out == NULL) return lq_fail(LQ_E_ARG, "model, path and out must be given");
    *out = NULL;
    LQ_TRY(lq_model_check_process(model));
    LQ_TRY(lq_mapping_open(path, &file));
    lq_status status = load(model, path, &file, memory_budget, out);
    lq_mapping_close(&file);
    return status;
}

size_t lq_session_get_extra(const lq_session *s, void *bytes, size_t n_bytes) {
    if (s == NULL) return 0;
    if (n_bytes > s->n_extra) n_bytes = s->n_extra;
    if (bytes != NULL && n_bytes != 0) memcpy(bytes, s->extra, n_bytes);
    return s->n_extra;
}
