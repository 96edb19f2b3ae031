/* session.c - sessions: life, evaluation in chunks, tentative tokens, keeping a common prefix. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/process.h"
#include "core/system.h"
#include "sampler.h"
#include "session/inside.h"

/* ---- life */

/* In a forked child nothing changes any more, and a lock may be held by a thread that does not exist there. */
static bool is_of_this_process(const lq_session *s) { return atomic_load(&s->guard.process) == lq_process(); }

void lq_session_lock(const lq_session *s) {
    if (is_of_this_process(s)) pthread_mutex_lock((pthread_mutex_t *)(uintptr_t)&s->look);
}

void lq_session_unlock(const lq_session *s) {
    if (is_of_this_process(s)) pthread_mutex_unlock((pthread_mutex_t *)(uintptr_t)&s->look);
}

lq_status lq_session_grow(lq_session *s, uint32_t n_tokens) {
    uint64_t n_room = n_tokens > s->n_ctx ? 2 * (uint64_t)n_tokens : s->n_ctx; /* doubled, so that it grows rarely */
    uint64_t old_bits = s->n_room / 8 + (uint64_t)1, n_bits = n_room / 8 + 1;
    void *tokens, *bits;
    if (n_tokens <= s->n_room && s->tokens != NULL) return LQ_OK;
    LQ_TRY(lq_alloc(n_room * sizeof *s->tokens, "token history", &tokens));
    lq_status status = lq_alloc(2 * n_bits, "token history", &bits);
    if (status != LQ_OK) {
        lq_free(tokens);
        return status;
    }
    int32_t *old_tokens = s->tokens;
    uint8_t *old_starts = s->starts; /* the block of starts and tentative */
    if (old_tokens != NULL) memcpy(tokens, old_tokens, s->n_room * sizeof *s->tokens);
    if (old_starts != NULL) memcpy(bits, old_starts, old_bits);
    if (old_starts != NULL) memcpy((uint8_t *)bits + n_bits, s->tentative, old_bits);
    lq_session_lock(s);
    s->tokens = tokens;
    s->starts = bits;
    s->tentative = (uint8_t *)bits + n_bits;
    s->n_room = (uint32_t)n_room;
    lq_session_unlock(s);
    lq_free(old_tokens);
    lq_free(old_starts);
    return LQ_OK;
}

void lq_session_note_usage(lq_session *s) {
    lq_kv_usage usage;
    lq_kv_cache_usage(s->cache, &usage);
    lq_session_lock(s);
    s->usage = usage;
    lq_session_unlock(s);
}

static lq_status fill_session(lq_session *s) {
    uint64_t row_bytes = s->model->config.n_vocab * sizeof(float);
    void *memory;
    LQ_TRY(lq_session_grow(s, s->n_ctx));
    LQ_TRY(lq_alloc(row_bytes, "logits", &memory));
    s->logits = memory;
    LQ_TRY(lq_alloc(s->layout.kv.max_tentative * row_bytes, "logits", &memory));
    s->pending_logits = memory;
    s->logits_on_host = true;
    lq_backend *head = s->model->devices[s->model->head_device].backend;
    if (lq_session_device_logits_bytes(s->model) != 0) {
        LQ_TRY(head->ops->alloc(head, lq_session_device_logits_bytes(s->model), "logits", &memory));
        s->device_logits = memory;
    }
    LQ_TRY(lq_alloc((s->layout.max_checkpoints + (uint64_t)1) * sizeof(lq_checkpoint *), "checkpoints", &memory));
    s->points = memory;
    LQ_TRY(lq_workspace_hold(s->model, &s->layout.need));
    s->holds_workspace = true;
    LQ_TRY(lq_kv_cache_create(&s->layout.kv, lq_workspace_kv(s->model), &s->cache));
    lq_kv_cache_set_guard(s->cache, &s->guard);
    lq_session_note_usage(s);
    return LQ_OK;
}

lq_status lq_session_make(lq_model *model, const lq_session_layout *layout, lq_session **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_session), "session", &memory));
    lq_session *s = memory;
    lq_model_retain(model);
    s->model = model;
    s->layout = *layout;
    s->n_ctx = layout->kv.n_ctx;
    s->sampled_at = UINT32_MAX;
    s->rope = lq_rope_of_context(model, layout->kv.n_limit);
    lq_guard_init(&s->guard);
    pthread_mutex_init(&s->look, NULL);
    lq_status status = fill_session(s);
    if (status != LQ_OK) {
        lq_session_close(&s);
        return status;
    }
    *out = s;
    return LQ_OK;
}

lq_status lq_session_create(lq_model *model, const lq_session_options *options, lq_session **out) {
    lq_session_layout layout;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    LQ_TRY(lq_session_check_options(model, options));
    LQ_TRY(lq_model_check_process(model));
    LQ_TRY(lq_session_resolve(model, options, &layout));
    LQ_TRY(lq_session_check_budget(model, options, &layout));
    return lq_session_make(model, &layout, out);
}

/* Ends the session; false if its contents must stay untouched. */
static bool end(lq_session *s) {
    atomic_fetch_or(&s->cancel, LQ_PASS_ABANDON);
    return lq_guard_end(&s->guard);
}

void lq_session_end(lq_session *session) {
    if (session != NULL) (void)end(session);
}

void lq_session_close(lq_session **session) {
    if (session == NULL || *session == NULL) return;
    lq_session *s = *session;
    *session = NULL;
    if (!end(s) || lq_model_is_stranded(s->model))
        return; /* a forked child leaves alone what a thread of its parent was changing */
    if (s->points != NULL) lq_session_drop_checkpoints(s, 0);
    lq_kv_cache_free(s->cache);
    if (s->holds_workspace) lq_workspace_release(s->model);
    lq_free(s->points);
    lq_free(s->extra);
    lq_free(s->tokens);
    lq_free(s->starts);
    lq_free(s->logits);
    lq_free(s->pending_logits);
    lq_backend *head = s->model->devices[s->model->head_device].backend;
    head->ops->release(head, s->device_logits, lq_session_device_logits_bytes(s->model));
    lq_model_release(s->model);
    if (is_of_this_process(s)) pthread_mutex_destroy(&s->look);
    lq_free(s);
}

lq_status lq_session_enter(lq_session *s) {
    if (s == NULL) return lq_fail(LQ_E_ARG, "session is NULL");
    return lq_guard_enter(&s->guard, "session");
}

lq_status lq_session_leave(lq_session *s, lq_status status) {
    lq_guard_leave(&s->guard);
    return status;
}

/* ---- evaluation */

lq_status lq_session_check_tokens(const lq_model *model, const int32_t *tokens, size_t n_tokens) {
    if (tokens == NULL || n_tokens == 0) return lq_fail(LQ_E_ARG, "no tokens to evaluate");
    for (size_t i = 0; i < n_tokens; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= model->config.n_vocab)
            return lq_fail(LQ_E_ARG, "token %d at index %zu is outside the vocabulary of %u", (int)tokens[i], i,
                           (unsigned)model->config.n_vocab);
    }
    return LQ_OK;
}

lq_status lq_session_check_room(const lq_session *s, uint32_t held, size_t n_tokens) {
    if (n_tokens <= s->layout.kv.n_limit - held) return LQ_OK;
    if (!s->layout.drops)
        return lq_fail(LQ_E_FULL, "the context of %u tokens is full: it holds %u and %zu more do not fit",
                       (unsigned)s->n_ctx, (unsigned)held, n_tokens);
    return lq_fail(LQ_E_FULL,
                   "the model was trained for %u positions: %u tokens came and %zu more do not fit; allow a long "
                   "context explicitly",
                   (unsigned)s->layout.kv.n_limit, (unsigned)held, n_tokens);
}

static lq_status check_eval(const lq_session *s, const int32_t *tokens, size_t n_tokens, lq_logits_mode mode,
                            const float *logits, size_t n_logits) {
    uint32_t held = atomic_load(&s->n_tokens);
    uint64_t n_vocab = s->model->config.n_vocab, wanted = 0;
    LQ_TRY(lq_session_check_tokens(s->model, tokens, n_tokens));
    LQ_TRY(lq_session_check_room(s, held, n_tokens));
    if (mode == LQ_LOGITS_ALL) {
        wanted = n_vocab * n_tokens; /* n_tokens <= 2^28, n_vocab <= 2^24 */
        if (logits == NULL) return lq_fail(LQ_E_ARG, "logits of all tokens were asked for without room for them");
    } else if (mode == LQ_LOGITS_LAST) {
        wanted = logits != NULL ? n_vocab : 0;
    } else if (mode != LQ_LOGITS_NONE) {
        return lq_fail(LQ_E_ARG, "logits mode %d does not exist", (int)mode);
    }
    if (n_logits < wanted)
        return lq_fail(LQ_E_ARG, "room for %zu logits, but %llu are to be written", n_logits,
                       (unsigned long long)wanted);
    return LQ_OK;
}

lq_status lq_session_prepare(lq_session *s, uint32_t n_tokens) {
    LQ_TRY(lq_session_grow(s, atomic_load(&s->n_tokens) + n_tokens));
    uint32_t first_page = lq_kv_cache_first_page(s->cache);
    LQ_TRY(lq_kv_cache_reserve(s->cache, n_tokens));
    if (lq_kv_cache_first_page(s->cache) != first_page) lq_session_note_usage(s);
    lq_session_forget_dropped(s);
    return LQ_OK;
}

lq_status lq_session_fetch_logits(lq_session *s) {
    lq_backend *head = s->model->devices[s->model->head_device].backend;
    if (s->logits_on_host || !atomic_load(&s->has_logits)) return LQ_OK;
    head->ops->download(head, s->logits, s->device_logits, s->model->config.n_vocab * sizeof(float));
    LQ_TRY(head->ops->sync(head));
    s->logits_on_host = true;
    return LQ_OK;
}

lq_pass_part lq_session_part(lq_session *s, const int32_t *tokens, uint32_t n, uint32_t n_logits, float *logits) {
    return (lq_pass_part){.cache = s->cache,
                          .rope_global = s->rope,
                          .tokens = tokens,
                          .n_tokens = n,
                          .pos0 = atomic_load(&s->n_tokens),
                          .n_logits = n_logits,
                          .logits = logits != NULL ? logits : s->logits,
                          .device_logits = logits != NULL ? NULL : s->device_logits,
                          .cancel = &s->cancel};
}

static void set_bit(uint8_t *bits, uint32_t i, bool value) {
    uint8_t bit = (uint8_t)(1u << i % 8);
    bits[i / 8] = (uint8_t)(value ? bits[i / 8] | bit : bits[i / 8] & ~bit);
}

static void take(lq_session *s, const int32_t *tokens, uint32_t n, bool tentative) {
    uint32_t first = atomic_load(&s->n_tokens);
    if (s->tokens + first != tokens) memcpy(s->tokens + first, tokens, n * sizeof *tokens);
    for (uint32_t i = first; i < first + n; i++) {
        set_bit(s->starts, i, i == first);
        set_bit(s->tentative, i, i == first && tentative);
    }
    atomic_store(&s->n_tokens, first + n);
    lq_session_note_usage(s);
}

void lq_session_take(lq_session *s, const int32_t *tokens, uint32_t n) { take(s, tokens, n, false); }

/* ---- a tentative chunk */

lq_pass_part lq_session_tentative_part(lq_session *s, const int32_t *tokens, uint32_t n, uint32_t n_logits) {
    lq_pass_part part = lq_session_part(s, tokens, n, n_logits, s->pending_logits);
    part.tentative = true;
    return part;
}

void lq_session_hold_pending(lq_session *s, const int32_t *tokens, uint32_t n, uint32_t n_logits) {
    int32_t *dst = s->tokens + atomic_load(&s->n_tokens);
    if (dst != tokens) memcpy(dst, tokens, n * sizeof *tokens);
    s->n_pending = n;
    s->n_pending_logits = n_logits;
}

void lq_session_take_pending(lq_session *s, uint32_t n) {
    size_t n_vocab = s->model->config.n_vocab;
    uint32_t n_without = s->n_pending - s->n_pending_logits; /* the first tokens, which have no logits */
    if (n > n_without) memcpy(s->logits, s->pending_logits + (n - n_without - 1) * n_vocab, n_vocab * sizeof(float));
    if (n != 0) {
        take(s, s->tokens + atomic_load(&s->n_tokens), n, true);
        s->logits_on_host = n > n_without;
        atomic_store(&s->has_logits, n > n_without);
    }
    s->n_pending = 0;
}

lq_status lq_session_check_pending(const lq_session *s) {
    if (s->n_pending == 0) return LQ_OK;
    return lq_fail(LQ_E_ARG, "%u tentative tokens wait: commit some or all of them, or 0, first",
                   (unsigned)s->n_pending);
}

lq_status lq_session_commit(lq_session *s, size_t n_tokens) {
    LQ_TRY(lq_session_enter(s));
    if (n_tokens > s->n_pending)
        return lq_session_leave(
            s, lq_fail(LQ_E_ARG, "cannot commit %zu tokens: %u are tentative", n_tokens, (unsigned)s->n_pending));
    lq_workspace_begin(s->model);
    lq_kv_cache_commit(s->cache, (uint32_t)n_tokens);
    lq_workspace_end(s->model);
    lq_session_take_pending(s, (uint32_t)n_tokens);
    return lq_session_leave(s, LQ_OK);
}

/* ---- pieces */

/* Evaluates a piece of at most a chunk; a cancelled one leaves the session as if it had never begun. */
static lq_status run_piece(lq_session *s, const int32_t *tokens, uint32_t n, uint32_t n_logits, float *logits) {
    lq_checkpoint *before = lq_session_before(s, n);
    lq_pass_part part = lq_session_part(s, tokens, n, n_logits, logits);
    double start = n >= LQ_WATCHED_TOKENS ? lq_seconds() : 0.0;
    part.can_undo = before != NULL;
    lq_status status = lq_workspace_forward(s->model, &part, 1);
    lq_session_after(s, before, status == LQ_E_CANCELLED);
    LQ_TRY(status);
    if (n >= LQ_WATCHED_TOKENS) s->token_seconds = (lq_seconds() - start) / n;
    lq_session_take(s, tokens, n);
    return LQ_OK;
}

lq_status lq_session_run(lq_session *s, const int32_t *tokens, uint32_t n_tokens, lq_logits_mode mode, float *logits) {
    uint32_t n_vocab = s->model->config.n_vocab, n_chunk = s->layout.kv.n_chunk;
    atomic_store(&s->has_logits, 0);
    for (uint32_t done = 0; done < n_tokens;) {
        uint32_t n = n_tokens - done < n_chunk ? n_tokens - done : n_chunk;
        bool last = done + n == n_tokens;
        uint32_t n_logits = mode == LQ_LOGITS_ALL ? n : (mode == LQ_LOGITS_LAST && last ? 1 : 0);
        float *out = mode == LQ_LOGITS_ALL ? logits + (size_t)done * n_vocab : NULL;
        LQ_TRY(lq_session_prepare(s, n));
        LQ_TRY(run_piece(s, tokens + done, n, n_logits, out));
        done += n;
        /* a chunk that could not be undone was finished first */
        if (done < n_tokens && atomic_load(&s->cancel)) return lq_fail(LQ_E_CANCELLED, "cancelled");
    }
    if (mode == LQ_LOGITS_NONE) return LQ_OK;
    s->logits_on_host = mode == LQ_LOGITS_ALL || s->device_logits == NULL;
    atomic_store(&s->has_logits, 1);
    if (mode == LQ_LOGITS_ALL) memcpy(s->logits, logits + (size_t)(n_tokens - 1) * n_vocab, n_vocab * sizeof(float));
    if (mode == LQ_LOGITS_ALL || logits == NULL) return LQ_OK;
    LQ_TRY(lq_session_fetch_logits(s));
    memcpy(logits, s->logits, n_vocab * sizeof(float));
    return LQ_OK;
}

/* Evaluates again, in the same way, tokens that were committed from a tentative chunk. */
lq_status lq_session_run_tentative(lq_session *s, const int32_t *tokens, uint32_t n, bool wants_logits) {
    LQ_TRY(lq_session_prepare(s, n));
    lq_pass_part part = lq_session_tentative_part(s, tokens, n, wants_logits ? 1 : 0);
    LQ_TRY(lq_workspace_forward(s->model, &part, 1));
    lq_session_hold_pending(s, tokens, n, wants_logits ? 1 : 0);
    lq_workspace_begin(s->model);
    lq_kv_cache_commit(s->cache, n);
    lq_workspace_end(s->model);
    lq_session_take_pending(s, n);
    return LQ_OK;
}

lq_status lq_session_eval(lq_session *s, const int32_t *tokens, size_t n_tokens, lq_logits_mode mode, float *logits,
                          size_t n_logits) {
    LQ_TRY(lq_session_enter(s));
    lq_session_uncancel(s);
    lq_status status = lq_session_check_pending(s);
    if (status == LQ_OK) status = check_eval(s, tokens, n_tokens, mode, logits, n_logits);
    if (status == LQ_OK) status = lq_session_run(s, tokens, (uint32_t)n_tokens, mode, logits);
    return lq_session_leave(s, status);
}

lq_status lq_session_keep_prefix(lq_session *s, const int32_t *tokens, size_t n_tokens, size_t *n_kept) {
    LQ_TRY(lq_session_enter(s));
    lq_status status =
        n_kept == NULL ? lq_fail(LQ_E_ARG, "n_kept is NULL") : lq_session_check_tokens(s->model, tokens, n_tokens);
    if (status == LQ_OK) status = lq_session_check_pending(s);
    if (status == LQ_OK) status = lq_session_check_room(s, 0, n_tokens);
    if (status == LQ_OK) {
        uint32_t held = atomic_load(&s->n_tokens), common = 0;
        while (common < held && common + 1 < n_tokens && s->tokens[common] == tokens[common]) common++;
        *n_kept = lq_session_go_back(s, common, false);
    }
    return lq_session_leave(s, status);
}

lq_status lq_session_reset(lq_session *s) {
    LQ_TRY(lq_session_enter(s));
    lq_session_go_back(s, 0, false);
    return lq_session_leave(s, LQ_OK);
}

void lq_session_cancel(lq_session *s) {
    if (s != NULL) atomic_fetch_or(&s->cancel, LQ_CANCEL_ONCE);
}

void lq_session_uncancel(lq_session *s) { atomic_fetch_and(&s->cancel, ~LQ_CANCEL_ONCE); }

/* ---- looking */

size_t lq_session_get_tokens(const lq_session *s, int32_t *tokens, size_t n_tokens) {
    if (s == NULL) return 0;
    size_t held = atomic_load(&s->n_tokens);
    if (n_tokens > held) n_tokens = held;
    if (tokens == NULL || n_tokens == 0) return held;
    lq_session_lock(s);
    memcpy(tokens, s->tokens, n_tokens * sizeof *tokens);
    lq_session_unlock(s);
    return held;
}

const lq_kv_cache *lq_session_kv_cache(const lq_session *s) { return s != NULL ? s->cache : NULL; }

static float bits_per_element(const lq_session *s) {
    const lq_config *c = &s->model->config;
    double elements = 0.0;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const lq_kv_layer_spec *layer = &s->layout.kv.layers[i];
        if (layer->window == 0) elements += 2.0 * layer->n_kv_heads * layer->head_dim * s->n_ctx;
    }
    return elements > 0.0 ? (float)(8.0 * (double)s->layout.memory.kv_global_bytes / elements) : 0.0f;
}

lq_status lq_session_get_info(const lq_session *s, lq_session_info *info) {
    if (s == NULL || info == NULL) return lq_fail(LQ_E_ARG, "session and info must be given");
    if (info->struct_size != sizeof *info)
        return lq_fail(LQ_E_ARG, "session info: struct_size is not this library's %zu", sizeof *info);
    info->n_ctx = s->n_ctx;
    info->n_limit = s->layout.kv.n_limit;
    info->n_chunk = s->layout.kv.n_chunk;
    info->max_tentative = s->layout.kv.max_tentative;
    info->n_tokens = atomic_load(&s->n_tokens);
    info->has_logits = atomic_load(&s->has_logits);
    info->kv_bits = bits_per_element(s);
    lq_kv_recipe_describe(&s->layout.kv.recipe, &info->kv);
    info->memory = s->layout.memory;
    info->memory.workspace_bytes = lq_workspace_bytes(s->model); /* it may have grown since */
    info->memory.total_bytes += info->memory.workspace_bytes - s->layout.memory.workspace_bytes;
    lq_session_lock(s);
    info->kv_usage = s->usage;
    info->n_checkpoints = s->n_points;
    info->checkpoint_bytes = s->point_bytes;
    lq_session_unlock(s);
    info->backend = s->model->backends;
    return lq_cpu_level(&info->cpu_level);
}

/* An answer continues while each sampled token is appended; any other text ends it, and the next answer follows that
 * text. */
static void find_answer_start(lq_session *s) {
    uint32_t held = atomic_load(&s->n_tokens);
    bool again = held == s->sampled_at, follows = held == s->sampled_at + 1 && lq_session_starts(s, held - 1);
    bool goes_on = follows && s->tokens[held - 1] == s->sampled;
    if (!again && !goes_on) s->answer_start = held;
    s->sampled_at = held;
}

/* If logits are on a device and the sampler looks only at a few of the best, brings no more of them to the host. */
static lq_status sample(lq_session *s, lq_sampler *sampler, lq_token_prob *chosen, lq_token_prob *top, size_t n_top) {
    lq_backend *head = s->model->devices[s->model->head_device].backend;
    uint32_t n_vocab = s->model->config.n_vocab, n = 0;
    lq_ranked best[LQ_BEST_MOST];
    if (!s->logits_on_host && n_top == 0) n = lq_sampler_looks_at(sampler, n_vocab);
    if (n != 0) {
        n = head->ops->best(head, s->device_logits, n_vocab, n, best);
        LQ_TRY(head->ops->sync(head));
        return lq_sampler_pick_from(sampler, best, n, chosen);
    }
    LQ_TRY(lq_session_fetch_logits(s));
    uint32_t held = atomic_load(&s->n_tokens);
    return lq_sampler_pick(sampler, s->logits, n_vocab, s->tokens, held, held - s->answer_start, chosen, top, n_top);
}

/* Reports why no token could be chosen: if no logit is finite, the model is to blame. */
static lq_status explain(lq_session *s, lq_status status) {
    char text[512];
    snprintf(text, sizeof text, "%s", lq_error_message());
    LQ_TRY(lq_session_fetch_logits(s));
    for (uint32_t i = 0; i < s->model->config.n_vocab; i++)
        if (isfinite(s->logits[i])) return lq_fail(status, "%s", text);
    return lq_model_blame(s->model);
}

lq_status lq_session_sample(lq_session *s, lq_sampler *sampler, lq_token_prob *chosen, lq_token_prob *top,
                            size_t n_top) {
    if (sampler == NULL || chosen == NULL || (top == NULL && n_top != 0))
        return lq_fail(LQ_E_ARG, "sampler, chosen and top must be given");
    LQ_TRY(lq_session_enter(s));
    lq_status status = atomic_load(&s->has_logits) ? LQ_OK : lq_fail(LQ_E_ARG, "no logits: evaluate tokens first");
    if (status == LQ_OK) status = lq_sampler_enter(sampler);
    if (status != LQ_OK) return lq_session_leave(s, status);
    find_answer_start(s);
    status = sample(s, sampler, chosen, top, n_top);
    lq_sampler_leave(sampler);
    if (status == LQ_E_FORMAT) status = explain(s, status);
    if (status == LQ_OK) s->sampled = chosen->token;
    return lq_session_leave(s, status);
}
