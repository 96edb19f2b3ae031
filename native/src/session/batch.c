/* batch.c - many sessions of one model in one step. */
#include "logquant_batch.h"

#include <string.h>

#include "core/system.h"
#include "session/inside.h"

struct lq_batch {
    lq_model *model; /* held */
    uint32_t n_max;
    uint32_t n_received; /* what the state has scratch memory for */
    uint64_t budget;     /* 0 = what is available */
    lq_run_state state;
    lq_pass_part *parts; /* [n_max] */
    lq_guard guard;
};

/* ---- life */

static uint64_t fixed_bytes(uint32_t n_max) { return sizeof(lq_batch) + (uint64_t)n_max * sizeof(lq_pass_part); }

static lq_status check_room(const lq_batch *b, uint64_t n_bytes, uint64_t available) {
    char needed[32], allowed[32];
    if (available == 0 || n_bytes <= available) return LQ_OK;
    lq_format_bytes(needed, n_bytes);
    lq_format_bytes(allowed, available);
    return lq_fail(LQ_E_MEMORY, "a batch of %u sessions needs %s, %s free; ask for fewer sessions", (unsigned)b->n_max,
                   needed, allowed);
}

/* Memory for sessions that ask for the attention received by n_received cells. */
static lq_status make_state(lq_batch *b, uint32_t n_received) {
    uint64_t n_bytes[LQ_MAX_PLACES], sum = 0;
    lq_run_state state;
    LQ_TRY(lq_run_state_plan(b->model, b->n_max, b->n_max, n_received, n_bytes));
    for (uint32_t i = 0; i < b->model->n_places; i++) {
        lq_backend *backend = b->model->places[i].backend;
        uint64_t wanted = n_bytes[i] + (i == 0 ? fixed_bytes(b->n_max) : 0);
        if (b->budget == 0) LQ_TRY(check_room(b, wanted, backend->ops->available(backend)));
        sum += n_bytes[i];
    }
    if (b->budget != 0) LQ_TRY(check_room(b, sum + fixed_bytes(b->n_max), b->budget));
    LQ_TRY(lq_run_state_create(b->model, b->n_max, b->n_max, n_received, &state));
    lq_run_state_free(b->model, &b->state);
    b->state = state;
    b->n_received = n_received;
    return LQ_OK;
}

lq_status lq_batch_create(lq_model *model, uint32_t n_max, uint64_t memory_budget, lq_batch **out) {
    void *memory;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    if (model == NULL) return lq_fail(LQ_E_ARG, "model is NULL");
    LQ_TRY(lq_model_check_process(model));
    if (n_max < 1 || n_max > LQ_BATCH_MAX)
        return lq_fail(LQ_E_ARG, "a batch has room for 1 to %d sessions, not %u", LQ_BATCH_MAX, (unsigned)n_max);
    LQ_TRY(lq_alloc(sizeof(lq_batch), "batch", &memory));
    lq_batch *b = memory;
    lq_model_retain(model);
    b->model = model;
    b->n_max = n_max;
    b->budget = memory_budget;
    lq_guard_init(&b->guard);
    lq_status status = lq_alloc((uint64_t)n_max * sizeof(lq_pass_part), "batch", &memory);
    b->parts = memory;
    if (status == LQ_OK) status = make_state(b, 0);
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
    lq_run_state_free(b->model, &b->state);
    lq_free(b->parts);
    lq_model_release(b->model);
    lq_free(b);
}

/* ---- a step */

/* What can be told without being inside the sessions. */
static lq_status check_step(const lq_batch *b, lq_session *const *sessions, const int32_t *tokens, size_t n,
                            const float *logits, size_t n_logits) {
    if (b == NULL || sessions == NULL) return lq_fail(LQ_E_ARG, "batch and sessions must be given");
    if (n < 1 || n > b->n_max)
        return lq_fail(LQ_E_ARG, "a step of %zu sessions; this batch has room for 1 to %u", n, (unsigned)b->n_max);
    LQ_TRY(lq_session_check_tokens(b->model, tokens, n));
    for (size_t i = 0; i < n; i++) {
        if (sessions[i] == NULL) return lq_fail(LQ_E_ARG, "session %zu of the step is NULL", i);
        if (sessions[i]->model != b->model)
            return lq_fail(LQ_E_ARG, "session %zu of the step is of another model than the batch", i);
        for (size_t j = 0; j < i; j++) /* at most LQ_BATCH_MAX of them: nothing beside the evaluation */
            if (sessions[j] == sessions[i])
                return lq_fail(LQ_E_ARG, "sessions %zu and %zu of the step are the same one", j, i);
    }
    if (logits != NULL && n_logits / n < b->model->config.n_vocab)
        return lq_fail(LQ_E_ARG, "room for %zu logits, but %zu are to be written", n_logits,
                       n * b->model->config.n_vocab);
    return LQ_OK;
}

/* Puts which session it was before the last error's text. */
static lq_status name_session(lq_status status, size_t i) {
    char text[512];
    memcpy(text, lq_error_message(), strlen(lq_error_message()) + 1); /* as long as that at most */
    return lq_fail(status, "session %zu of the step: %s", i, text);
}

/* Enters all sessions, or none. */
static lq_status enter_sessions(lq_session *const *sessions, size_t n) {
    for (size_t i = 0; i < n; i++) {
        lq_status status = lq_session_enter(sessions[i]);
        if (status == LQ_OK) continue;
        while (i-- > 0) lq_session_leave(sessions[i], LQ_OK);
        return status;
    }
    return LQ_OK;
}

/* Room and memory for a token in every session; only when nothing else can fail do the oldest pages go. */
static lq_status prepare(lq_batch *b, lq_session *const *sessions, size_t n) {
    uint32_t n_received = b->n_received;
    for (size_t i = 0; i < n; i++) {
        lq_status status = lq_session_check_room(sessions[i], atomic_load(&sessions[i]->n_tokens), 1);
        if (status != LQ_OK) return name_session(status, i);
        uint32_t wanted = lq_kv_cache_n_received(&sessions[i]->layout.kv);
        if (wanted > n_received) n_received = wanted;
    }
    if (n_received > b->n_received) LQ_TRY(make_state(b, n_received));
    for (size_t i = 0; i < n; i++) {
        lq_status status = lq_session_prepare(sessions[i], 1);
        if (status != LQ_OK) return name_session(status, i);
    }
    return LQ_OK;
}

static lq_status evaluate(lq_batch *b, lq_session *const *sessions, const int32_t *tokens, size_t n, float *logits) {
    size_t n_vocab = b->model->config.n_vocab;
    for (size_t i = 0; i < n; i++) b->parts[i] = lq_session_part(sessions[i], tokens + i, 1, 1, NULL);
    lq_status status = lq_forward(b->model, &b->state, b->parts, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        if (status == LQ_OK) lq_session_take(sessions[i], tokens + i, 1);
        /* a step that was cancelled had not come to the logits */
        if (status == LQ_E_CANCELLED) continue;
        atomic_store(&sessions[i]->has_logits, status == LQ_OK);
        sessions[i]->logits_on_host = sessions[i]->device_logits == NULL;
    }
    for (size_t i = 0; i < n && status == LQ_OK && logits != NULL; i++) {
        status = lq_session_fetch_logits(sessions[i]);
        if (status == LQ_OK) memcpy(logits + i * n_vocab, sessions[i]->logits, n_vocab * sizeof(float));
    }
    return status;
}

lq_status lq_batch_step(lq_batch *b, lq_session *const *sessions, const int32_t *tokens, size_t n, float *logits,
                        size_t n_logits) {
    LQ_TRY(check_step(b, sessions, tokens, n, logits, n_logits));
    LQ_TRY(lq_guard_enter(&b->guard, "batch"));
    lq_status status = enter_sessions(sessions, n);
    if (status == LQ_OK) {
        for (size_t i = 0; i < n; i++) lq_session_uncancel(sessions[i]);
        status = prepare(b, sessions, n);
        if (status == LQ_OK) status = evaluate(b, sessions, tokens, n, logits);
        for (size_t i = 0; i < n; i++) lq_session_leave(sessions[i], LQ_OK);
    }
    lq_guard_leave(&b->guard);
    return status;
}
