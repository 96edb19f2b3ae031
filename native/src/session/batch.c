/* batch.c - many sessions of one model in one step. */
#include "logquant_batch.h"

#include <stdio.h>
#include <string.h>

#include "core/system.h"
#include "session/inside.h"

struct lq_batch {
    lq_model *model; /* held */
    uint32_t n_max;
    uint32_t n_tokens;
    bool holds_workspace;   /* whether it holds the model's workspace */
    lq_pass_part *parts;    /* [n_max] */
    lq_checkpoint **before; /* [n_max] the checkpoint that undoes a part; NULL: none */
    lq_guard guard;
};

/* ---- life */

static uint64_t own_bytes(uint32_t n_max) {
    return sizeof(lq_batch) + (uint64_t)n_max * (sizeof(lq_pass_part) + sizeof(lq_checkpoint *));
}

static lq_status check_room(const lq_batch *b, uint64_t n_bytes, uint64_t available) {
    char needed[32], allowed[32];
    if (available == 0 || n_bytes <= available) return LQ_OK;
    lq_format_bytes(needed, n_bytes);
    lq_format_bytes(allowed, available);
    return lq_fail(LQ_E_MEMORY,
                   "a batch of %u sessions and %u tokens needs %s, %s free; ask for fewer sessions or tokens",
                   (unsigned)b->n_max, (unsigned)b->n_tokens, needed, allowed);
}

static lq_status hold_workspace(lq_batch *b, uint64_t budget) {
    lq_work_need need = {.n_rows = b->n_tokens < LQ_LEAST_ALIKE ? LQ_LEAST_ALIKE : b->n_tokens, .n_parts = b->n_max};
    uint64_t n_bytes[LQ_MAX_DEVICES], sum = 0;
    LQ_TRY(lq_workspace_plan(b->model, &need, n_bytes));
    n_bytes[0] += own_bytes(b->n_max);
    for (uint32_t i = 0; i < b->model->n_devices; i++) {
        lq_backend *backend = b->model->devices[i].backend;
        if (budget == 0) LQ_TRY(check_room(b, n_bytes[i], backend->ops->available(backend)));
        sum += n_bytes[i];
    }
    if (budget != 0) LQ_TRY(check_room(b, sum, budget));
    LQ_TRY(lq_workspace_hold(b->model, &need));
    b->holds_workspace = true;
    return LQ_OK;
}

static lq_status fill_batch(lq_batch *b, uint64_t budget) {
    void *memory;
    LQ_TRY(lq_alloc((uint64_t)b->n_max * sizeof(lq_pass_part), "batch", &memory));
    b->parts = memory;
    LQ_TRY(lq_alloc((uint64_t)b->n_max * sizeof(lq_checkpoint *), "batch", &memory));
    b->before = memory;
    return hold_workspace(b, budget);
}

lq_status lq_batch_create(lq_model *model, uint32_t n_max, uint32_t n_tokens, uint64_t memory_budget, lq_batch **out) {
    void *memory;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    if (model == NULL) return lq_fail(LQ_E_ARG, "model is NULL");
    LQ_TRY(lq_model_check_process(model));
    if (n_max < 1 || n_max > LQ_BATCH_MAX)
        return lq_fail(LQ_E_ARG, "a batch has room for 1 to %d sessions, not %u", LQ_BATCH_MAX, (unsigned)n_max);
    if (n_tokens == 0) n_tokens = n_max;
    if (n_tokens < n_max || n_tokens > LQ_BATCH_MAX_TOKENS)
        return lq_fail(LQ_E_ARG, "a batch of %u sessions has room for %u to %d tokens, not %u", (unsigned)n_max,
                       (unsigned)n_max, LQ_BATCH_MAX_TOKENS, (unsigned)n_tokens);
    LQ_TRY(lq_alloc(sizeof(lq_batch), "batch", &memory));
    lq_batch *b = memory;
    lq_model_retain(model);
    b->model = model;
    b->n_max = n_max;
    b->n_tokens = n_tokens;
    lq_guard_init(&b->guard);
    lq_status status = fill_batch(b, memory_budget);
    if (status != LQ_OK) {
        lq_batch_close(&b);
        return status;
    }
    *out = b;
    return LQ_OK;
}

void lq_batch_close(lq_batch **batch) {
    if (batch == NULL || *batch == NULL) return;
    lq_batch *b = *batch;
    *batch = NULL;
    if (!lq_guard_end(&b->guard) || lq_model_is_stranded(b->model)) return;
    if (b->holds_workspace) lq_workspace_release(b->model);
    lq_free(b->parts);
    lq_free(b->before);
    lq_model_release(b->model);
    lq_free(b);
}

/* ---- a step */

/* Puts the part's index before the last error's text. */
static lq_status name_part(lq_status status, size_t i) {
    char text[512];
    if (status == LQ_OK) return LQ_OK;
    snprintf(text, sizeof text, "%s", lq_error_message());
    return lq_fail(status, "session %zu of the step: %s", i, text);
}

static uint32_t logit_rows(const lq_step_part *part) {
    return part->mode == LQ_LOGITS_ALL ? part->n_tokens : (part->mode == LQ_LOGITS_LAST ? 1 : 0);
}

static lq_status check_tokens(const lq_step_part *part) {
    const lq_session_layout *layout = &part->session->layout;
    uint32_t most = part->tentative != 0 ? layout->kv.max_tentative : layout->kv.n_chunk;
    LQ_TRY(lq_session_check_tokens(part->session->model, part->tokens, part->n_tokens));
    if (part->n_tokens <= most) return LQ_OK;
    if (part->tentative == 0)
        return lq_fail(LQ_E_ARG, "%u tokens at once; it was made for at most %u (n_chunk)", (unsigned)part->n_tokens,
                       (unsigned)most);
    return lq_fail(LQ_E_ARG, "%u tentative tokens; it was made for at most %u (max_tentative)",
                   (unsigned)part->n_tokens, (unsigned)most);
}

static lq_status check_logits(const lq_step_part *part) {
    size_t wanted = (size_t)logit_rows(part) * part->session->model->config.n_vocab;
    if (part->mode > LQ_LOGITS_ALL) return lq_fail(LQ_E_ARG, "logits mode %u does not exist", (unsigned)part->mode);
    if (part->logits == NULL && part->mode == LQ_LOGITS_ALL && part->tentative == 0)
        return lq_fail(LQ_E_ARG, "logits of all tokens were asked for without room for them");
    if (part->logits != NULL && part->n_logits < wanted)
        return lq_fail(LQ_E_ARG, "room for %zu logits, but %zu are to be written", part->n_logits, wanted);
    return LQ_OK;
}

/* Checks what can be checked without entering the sessions. */
static lq_status check_step(const lq_batch *b, const lq_step_part *parts, size_t n) {
    uint64_t n_tokens = 0;
    if (b == NULL || parts == NULL) return lq_fail(LQ_E_ARG, "batch and parts must be given");
    if (n < 1 || n > b->n_max)
        return lq_fail(LQ_E_ARG, "a step of %zu sessions; this batch has room for 1 to %u", n, (unsigned)b->n_max);
    for (size_t i = 0; i < n; i++) {
        if (parts[i].session == NULL) return lq_fail(LQ_E_ARG, "session %zu of the step is NULL", i);
        if (parts[i].session->model != b->model)
            return lq_fail(LQ_E_ARG, "session %zu of the step is of another model than the batch", i);
        for (size_t j = 0; j < i; j++) /* quadratic, but negligible beside the evaluation: n <= LQ_BATCH_MAX */
            if (parts[j].session == parts[i].session)
                return lq_fail(LQ_E_ARG, "sessions %zu and %zu of the step are the same one", j, i);
        LQ_TRY(name_part(check_tokens(&parts[i]), i));
        LQ_TRY(name_part(check_logits(&parts[i]), i));
        n_tokens += parts[i].n_tokens;
    }
    if (n_tokens > b->n_tokens)
        return lq_fail(LQ_E_ARG, "a step of %llu tokens; this batch has room for %u", (unsigned long long)n_tokens,
                       (unsigned)b->n_tokens);
    return LQ_OK;
}

/* Enters all sessions, or none. */
static lq_status enter_sessions(const lq_step_part *parts, size_t n) {
    for (size_t i = 0; i < n; i++) {
        lq_status status = lq_session_enter(parts[i].session);
        if (status == LQ_OK) continue;
        while (i-- > 0) lq_session_leave(parts[i].session, LQ_OK);
        return status;
    }
    return LQ_OK;
}

/* Checks every session for room, then allocates memory for their tokens, which may drop oldest pages. */
static lq_status prepare(const lq_step_part *parts, size_t n) {
    for (size_t i = 0; i < n; i++) {
        lq_session *s = parts[i].session;
        LQ_TRY(name_part(lq_session_check_pending(s), i));
        LQ_TRY(name_part(lq_session_check_room(s, atomic_load(&s->n_tokens), parts[i].n_tokens), i));
    }
    for (size_t i = 0; i < n; i++) LQ_TRY(name_part(lq_session_prepare(parts[i].session, parts[i].n_tokens), i));
    return LQ_OK;
}

static lq_pass_part make_part(const lq_step_part *part, lq_checkpoint **before) {
    lq_session *s = part->session;
    *before = NULL;
    if (part->tentative != 0) return lq_session_tentative_part(s, part->tokens, part->n_tokens, logit_rows(part));
    float *logits = part->mode == LQ_LOGITS_ALL ? part->logits : NULL;
    *before = lq_session_before(s, part->n_tokens);
    lq_pass_part out = lq_session_part(s, part->tokens, part->n_tokens, logit_rows(part), logits);
    out.can_undo = *before != NULL;
    return out;
}

/* Records an evaluated part and its logits in the session, and in the caller's buffer. */
static lq_status take_part(const lq_step_part *part) {
    lq_session *s = part->session;
    size_t n_vocab = s->model->config.n_vocab, n_rows = logit_rows(part);
    if (part->tentative != 0) {
        lq_session_hold_pending(s, part->tokens, part->n_tokens, (uint32_t)n_rows);
        if (part->logits != NULL) memcpy(part->logits, s->pending_logits, n_rows * n_vocab * sizeof(float));
        return LQ_OK;
    }
    lq_session_take(s, part->tokens, part->n_tokens);
    atomic_store(&s->has_logits, n_rows != 0);
    s->logits_on_host = part->mode == LQ_LOGITS_ALL || s->device_logits == NULL;
    if (part->mode == LQ_LOGITS_ALL) memcpy(s->logits, part->logits + (n_rows - 1) * n_vocab, n_vocab * sizeof(float));
    if (part->mode != LQ_LOGITS_LAST || part->logits == NULL) return LQ_OK;
    LQ_TRY(lq_session_fetch_logits(s));
    memcpy(part->logits, s->logits, n_vocab * sizeof(float));
    return LQ_OK;
}

/* Marks logits as lost: a pass that failed at the end may have written over the earlier ones. A cancelled pass had not
 * come so far. */
static void lose_part(const lq_step_part *part, lq_status status) {
    lq_session *s = part->session;
    if (part->tentative != 0 || status == LQ_E_CANCELLED) return;
    atomic_store(&s->has_logits, 0);
    s->logits_on_host = s->device_logits == NULL;
}

static lq_status evaluate(lq_batch *b, const lq_step_part *parts, size_t n) {
    for (size_t i = 0; i < n; i++) b->parts[i] = make_part(&parts[i], &b->before[i]);
    lq_status status = lq_workspace_forward(b->model, b->parts, (uint32_t)n), first = status;
    for (size_t i = 0; i < n; i++) {
        lq_session_after(parts[i].session, b->before[i], status == LQ_E_CANCELLED);
        if (status != LQ_OK)
            lose_part(&parts[i], status);
        else if (first == LQ_OK)
            first = take_part(&parts[i]);
        else
            (void)take_part(&parts[i]); /* the first failure is reported, but all parts were evaluated */
    }
    return first;
}

lq_status lq_batch_step(lq_batch *b, const lq_step_part *parts, size_t n) {
    LQ_TRY(check_step(b, parts, n));
    LQ_TRY(lq_guard_enter(&b->guard, "batch"));
    lq_status status = enter_sessions(parts, n);
    if (status == LQ_OK) {
        for (size_t i = 0; i < n; i++) lq_session_uncancel(parts[i].session);
        status = prepare(parts, n);
        if (status == LQ_OK) status = evaluate(b, parts, n);
        for (size_t i = 0; i < n; i++) lq_session_leave(parts[i].session, LQ_OK);
    }
    lq_guard_leave(&b->guard);
    return status;
}
