/* test_session_batch.c - tests steps of several sessions: they give the same as each alone, and are refused as a whole
 * or not at all, from several threads at once. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "check.h"
#include "logquant_batch.h"
#include "tiny_model.h"

enum { N_SESSIONS = 6, N_STEPS = 150 };

/* Types with pages and without, a cache that drops its oldest pages, and lengths around those at which pages are packed
 * and tokens given up. */
static const struct {
    const char *kv;
    uint32_t window;
    uint32_t n_ctx;
    uint32_t on_full;
    int n_prompt;
} kinds[N_SESSIONS] = {
    {"logquant", 64, 400, LQ_ON_FULL_STOP, 130}, {"f16", 0, 400, LQ_ON_FULL_STOP, 1},
    {"q8_0", 0, 256, LQ_ON_FULL_DROP, 200},      {"logquant-small", 64, 400, LQ_ON_FULL_STOP, 62},
    {"q4_0", 0, 400, LQ_ON_FULL_STOP, 90},       {"h2o", 64, 400, LQ_ON_FULL_STOP, 170},
};

static int32_t token_at(int session, int i) { return (int32_t)((i * 7 + session * 3 + i * i % 5) % TINY_VOCAB); }

static lq_session *open_session(lq_model *model, int i, uint32_t n_chunk) {
    lq_session_options options;
    lq_session *session = NULL;
    lq_session_options_init(&options);
    options.n_ctx = kinds[i].n_ctx, options.n_chunk = n_chunk, options.on_full = kinds[i].on_full;
    options.kv.name = kinds[i].kv, options.kv.window = kinds[i].window;
    CHECK_STATUS(lq_session_create(model, &options, &session), LQ_OK);
    return session;
}

static void read_prompt(lq_session *session, int i) {
    int32_t tokens[256];
    for (int t = 0; t < kinds[i].n_prompt; t++) tokens[t] = token_at(i, t);
    CHECK_STATUS(lq_session_eval(session, tokens, (size_t)kinds[i].n_prompt, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
}

static double difference(const float *a, const float *b) {
    double most = 0.0, largest = 1e-30;
    for (int i = 0; i < TINY_VOCAB; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return most / largest;
}

static void check_like_alone(const char *arch) {
    lq_model *model = open_tiny_model(arch, 2);
    lq_session *together[N_SESSIONS], *alone[N_SESSIONS];
    lq_batch *batch = NULL;
    CHECK_STATUS(lq_batch_create(model, N_SESSIONS, 0, 0, &batch), LQ_OK);
    for (int i = 0; i < N_SESSIONS; i++) {
        together[i] = open_session(model, i, i % 2 != 0 ? 1 : 50); /* a chunk of one token has less scratch memory */
        alone[i] = open_session(model, i, i % 2 != 0 ? 1 : 50);
        read_prompt(together[i], i);
        read_prompt(alone[i], i);
    }
    for (int step = 0; step < N_STEPS; step++) {
        lq_session *sessions[N_SESSIONS];
        int32_t tokens[N_SESSIONS];
        float logits[N_SESSIONS * TINY_VOCAB], wanted[TINY_VOCAB];
        size_t n = 0;
        for (int i = 0; i < N_SESSIONS; i++) { /* not all of them every time, and in changing order */
            int which = (i + step) % N_SESSIONS;
            if ((step + which) % 5 == 0) continue;
            tokens[n] = token_at(which, step);
            sessions[n++] = together[which];
        }
        CHECK_STATUS(step_tokens(batch, sessions, tokens, n, step % 2 != 0 ? logits : NULL, sizeof logits / 4), LQ_OK);
        n = 0;
        for (int i = 0; i < N_SESSIONS; i++) {
            int which = (i + step) % N_SESSIONS;
            if ((step + which) % 5 == 0) continue;
            CHECK_STATUS(lq_session_eval(alone[which], &tokens[n], 1, LQ_LOGITS_LAST, wanted, TINY_VOCAB), LQ_OK);
            if (step % 2 != 0)
                CHECK_MSG(difference(logits + n * TINY_VOCAB, wanted) < 2e-3, "%s, %s, step %d: off by %g", arch,
                          kinds[which].kv, step, difference(logits + n * TINY_VOCAB, wanted));
            n++;
        }
    }
    for (int i = 0; i < N_SESSIONS; i++) {
        CHECK(lq_session_get_tokens(together[i], NULL, 0) == lq_session_get_tokens(alone[i], NULL, 0));
        lq_session_close(&together[i]);
        lq_session_close(&alone[i]);
    }
    lq_model_close(&model); /* the batch holds it */
    lq_batch_close(&batch);
    lq_batch_close(&batch);
}

/* ---- refusals */

static void check_refused(lq_status wanted, lq_batch *batch, lq_session *const *sessions, const int32_t *tokens,
                          size_t n, size_t n_logits) {
    static float logits[3 * TINY_VOCAB];
    size_t before[2], evaluated;
    lq_session_info info = {.struct_size = sizeof info};
    for (int i = 0; i < 2; i++) before[i] = lq_session_get_tokens(sessions[i], NULL, 0);
    CHECK_STATUS(step_tokens(batch, sessions, tokens, n, n_logits != 0 ? logits : NULL, n_logits), wanted);
    for (int i = 0; i < 2; i++) {
        CHECK(lq_session_get_tokens(sessions[i], NULL, 0) == before[i]);
        CHECK_STATUS(lq_session_get_info(sessions[i], &info), LQ_OK);
        CHECK(info.has_logits);
        CHECK_STATUS(lq_session_rewind(sessions[i], before[i], &evaluated), LQ_OK); /* nobody is left inside */
    }
}

static void check_refusals(void) {
    lq_model *model = open_tiny_model("llama", 2), *other = open_tiny_model("llama", 1);
    lq_session *a = open_session(model, 0, 50), *b = open_session(model, 1, 50), *stranger = open_session(other, 0, 50);
    lq_batch *batch = NULL, *none = NULL;
    CHECK_STATUS(lq_batch_create(model, 0, 0, 0, &none), LQ_E_ARG);
    CHECK_STATUS(lq_batch_create(model, LQ_BATCH_MAX + 1, 0, 0, &none), LQ_E_ARG);
    CHECK_STATUS(lq_batch_create(NULL, 1, 0, 0, &none), LQ_E_ARG);
    CHECK_STATUS(lq_batch_create(model, 1, 0, 0, NULL), LQ_E_ARG);
    CHECK_STATUS(lq_batch_create(model, 8, 0, 1000, &none), LQ_E_MEMORY);
    CHECK(none == NULL);
    CHECK_STATUS(lq_batch_create(model, 2, 0, 0, &batch), LQ_OK);
    read_prompt(a, 0);
    read_prompt(b, 1);
    lq_session *pair[3] = {a, b, NULL}, *same[2] = {a, a}, *strangers[2] = {a, stranger}, *holes[2] = {a, NULL};
    int32_t good[3] = {1, 2, 3}, bad[2] = {1, TINY_VOCAB}, negative[2] = {-1, 1};
    check_refused(LQ_E_ARG, NULL, pair, good, 2, 0);
    check_refused(LQ_E_ARG, batch, pair, NULL, 2, 0);
    check_refused(LQ_E_ARG, batch, pair, good, 0, 0);
    check_refused(LQ_E_ARG, batch, pair, good, 3, 0);
    check_refused(LQ_E_ARG, batch, pair, bad, 2, 0);
    check_refused(LQ_E_ARG, batch, pair, negative, 2, 0);
    check_refused(LQ_E_ARG, batch, pair, good, 2, 2 * TINY_VOCAB - 1);
    CHECK_STATUS(step_tokens(batch, NULL, good, 2, NULL, 0), LQ_E_ARG);
    CHECK_STATUS(step_tokens(batch, same, good, 2, NULL, 0), LQ_E_ARG);
    CHECK(strstr(lq_error_message(), "same") != NULL);
    CHECK_STATUS(step_tokens(batch, strangers, good, 2, NULL, 0), LQ_E_ARG);
    CHECK(strstr(lq_error_message(), "session 1") != NULL);
    CHECK_STATUS(step_tokens(batch, holes, good, 2, NULL, 0), LQ_E_ARG);
    while (lq_session_get_tokens(b, NULL, 0) < kinds[1].n_ctx)
        CHECK_STATUS(lq_session_eval(b, good, 1, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
    check_refused(LQ_E_FULL, batch, pair, good, 2, 0);
    CHECK(strstr(lq_error_message(), "session 1 of the step") != NULL);
    CHECK_STATUS(step_tokens(batch, pair, good, 1, NULL, 0), LQ_OK); /* the other one goes on */
    lq_session_close(&a);
    lq_session_close(&b);
    lq_session_close(&stranger);
    lq_batch_close(&batch);
    lq_model_close(&model);
    lq_model_close(&other);
}

/* ---- threads */

typedef struct stepper {
    lq_model *model;
    lq_session *sessions[3];
    lq_status status; /* status of the first call that failed; CHECK counts in the main thread only */
    pthread_t thread;
} stepper;

/* Steps two forks that share pages with the other thread's, and one session of another kind. */
static void *step_group(void *argument) {
    stepper *self = argument;
    lq_batch *batch = NULL;
    self->status = lq_batch_create(self->model, 3, 0, 0, &batch);
    for (int step = 0; step < N_STEPS && self->status == LQ_OK; step++) {
        int32_t tokens[3] = {token_at(0, step), token_at(1, step), token_at(2, step)};
        self->status = step_tokens(batch, self->sessions, tokens, 3, NULL, 0);
    }
    lq_batch_close(&batch);
    return NULL;
}

static void check_threads(void) {
    lq_model *model = open_tiny_model("llama", 2);
    lq_session *elder = open_session(model, 0, 50);
    stepper groups[2];
    float logits[2][3][TINY_VOCAB];
    read_prompt(elder, 0);
    for (int g = 0; g < 2; g++) {
        groups[g].model = model;
        for (int i = 0; i < 2; i++) CHECK_STATUS(lq_session_fork(elder, &groups[g].sessions[i]), LQ_OK);
        groups[g].sessions[2] = open_session(model, 4, 50);
    }
    for (int g = 0; g < 2; g++) CHECK(pthread_create(&groups[g].thread, NULL, step_group, &groups[g]) == 0);
    for (int g = 0; g < 2; g++) {
        CHECK(pthread_join(groups[g].thread, NULL) == 0);
        CHECK(groups[g].status == LQ_OK);
    }
    for (int g = 0; g < 2; g++)
        for (int i = 0; i < 3; i++) {
            int32_t token = 1;
            CHECK_STATUS(lq_session_eval(groups[g].sessions[i], &token, 1, LQ_LOGITS_LAST, logits[g][i], TINY_VOCAB),
                         LQ_OK);
            lq_session_close(&groups[g].sessions[i]);
        }
    CHECK(memcmp(logits[0], logits[1], sizeof logits[0]) == 0); /* the same steps: the same bits */
    CHECK(lq_session_get_tokens(elder, NULL, 0) == (size_t)kinds[0].n_prompt);
    lq_session_close(&elder);
    lq_model_close(&model);
}

typedef struct intruder {
    lq_session *session;
    atomic_bool stop;
    pthread_t thread;
} intruder;

static void *evaluate_alone(void *argument) {
    intruder *self = argument;
    int32_t tokens[200];
    for (int t = 0; t < 200; t++) tokens[t] = token_at(0, t);
    while (!atomic_load(&self->stop))
        if (lq_session_eval(self->session, tokens, 200, LQ_LOGITS_LAST, NULL, 0) == LQ_OK)
            lq_session_reset(self->session);
    return NULL;
}

static void *keep_cancelling(void *argument) {
    intruder *self = argument;
    while (!atomic_load(&self->stop)) lq_session_cancel(self->session);
    return NULL;
}

/* Steps two sessions while another thread disturbs the second, until `wanted` was seen often enough: every step must be
 * done or refused as a whole. Returns how many tokens the first then holds. */
static int step_disturbed(lq_model *model, lq_session *const pair[2], void *(*disturb)(void *), lq_status wanted) {
    intruder other = {.session = pair[1]};
    lq_batch *batch = NULL;
    lq_session_info info = {.struct_size = sizeof info};
    int32_t tokens[2] = {1, 2};
    int n_wanted = 0, n_held = 0;
    atomic_init(&other.stop, false);
    CHECK_STATUS(lq_batch_create(model, 2, 0, 0, &batch), LQ_OK);
    CHECK(pthread_create(&other.thread, NULL, disturb, &other) == 0);
    for (int tries = 0; tries < 1000000 && n_wanted < 20; tries++) {
        lq_status status = step_tokens(batch, pair, tokens, 2, NULL, 0);
        n_wanted += status == wanted;
        n_held += status == LQ_OK;
        CHECK(status == LQ_OK || status == wanted || status == LQ_E_FULL);
        CHECK(lq_session_get_tokens(pair[0], NULL, 0) == (size_t)n_held);
        CHECK_STATUS(lq_session_get_info(pair[0], &info), LQ_OK);
        CHECK(info.has_logits == (n_held > 0));
        if (status == LQ_OK) sched_yield(); /* the other thread may have no core of its own */
        if (status != LQ_E_FULL) continue;
        n_held = 0;
        CHECK_STATUS(lq_session_reset(pair[0]), LQ_OK);
        lq_session_reset(pair[1]); /* if the other thread is inside, it resets by itself */
    }
    atomic_store(&other.stop, true);
    CHECK(pthread_join(other.thread, NULL) == 0);
    CHECK_MSG(n_wanted > 0, "status %d was never seen", (int)wanted);
    lq_batch_close(&batch);
    return n_held;
}

static void check_disturbed(void) {
    lq_model *model = open_tiny_model("llama", 1);
    lq_session *busy[2] = {open_session(model, 1, 50), open_session(model, 4, 50)};
    lq_session *cancelled[2] = {open_session(model, 1, 50), open_session(model, 4, 50)};
    lq_session *quiet[2] = {open_session(model, 1, 50), open_session(model, 4, 50)};
    lq_batch *batch = NULL;
    int32_t tokens[2] = {1, 2}, last[2] = {3, 4};
    float found[2 * TINY_VOCAB], wanted[2 * TINY_VOCAB];
    step_disturbed(model, busy, evaluate_alone, LQ_E_BUSY);
    int n_held = step_disturbed(model, cancelled, keep_cancelling, LQ_E_CANCELLED);
    CHECK_STATUS(lq_batch_create(model, 2, 0, 0, &batch), LQ_OK);
    for (int i = 0; i < n_held; i++) CHECK_STATUS(step_tokens(batch, quiet, tokens, 2, NULL, 0), LQ_OK);
    CHECK_STATUS(step_tokens(batch, quiet, last, 2, wanted, 2 * TINY_VOCAB), LQ_OK);
    CHECK_STATUS(step_tokens(batch, cancelled, last, 2, found, 2 * TINY_VOCAB), LQ_OK);
    CHECK(memcmp(found, wanted, sizeof wanted) == 0); /* what was cancelled had never been */
    lq_batch_close(&batch);
    for (int i = 0; i < 2; i++) {
        lq_session_close(&busy[i]);
        lq_session_close(&cancelled[i]);
        lq_session_close(&quiet[i]);
    }
    lq_model_close(&model);
}

int main(void) {
    for (size_t i = 0; i < N_TINY_ARCHS; i++) check_like_alone(tiny_archs[i]);
    check_refusals();
    check_threads();
    check_disturbed();
    return check_report("test_session_batch");
}
