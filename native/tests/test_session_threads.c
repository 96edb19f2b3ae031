/* test_session_threads.c - tests closing while another thread is inside, and what a forked child can do. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "logquant_batch.h"
#include "logquant_kv.h"
#include "tiny_model.h"

enum { N_TOKENS = 400, N_ROUNDS = 60, N_MOST = 5000, N_WHAT = 6 };

static const char *const kinds[] = {"f16", "logquant"}; /* the latter cannot take a chunk back */
static char path[512], saved[600];

static lq_model *open_tiny(uint32_t n_threads) {
    static bytes b;
    lq_model_options options;
    lq_model *model = NULL;
    build_tiny_model(&b, "llama");
    make_temporary(path, sizeof path);
    write_file(path, b.data, b.n);
    lq_model_options_init(&options);
    options.n_threads = n_threads;
    CHECK_STATUS(lq_model_open(path, &options, &model), LQ_OK);
    unlink(path);
    snprintf(saved, sizeof saved, "%s.session", path);
    return model;
}

static lq_session *open_session(lq_model *model, const char *kv, int n_prompt) {
    lq_session_options options;
    lq_session *session = NULL;
    int32_t tokens[N_TOKENS] = {1};
    lq_session_options_init(&options);
    options.n_ctx = 512, options.n_chunk = 10, options.kv.name = kv;
    if (strcmp(kv, "logquant") == 0) options.kv.window = 64;
    CHECK_STATUS(lq_session_create(model, &options, &session), LQ_OK);
    if (n_prompt != 0) CHECK_STATUS(lq_session_eval(session, tokens, (size_t)n_prompt, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
    return session;
}

/* ---- closing */

typedef struct worker {
    lq_session *session;
    lq_batch *batch;
    int what;
    lq_status status;
    atomic_bool begun;
    pthread_t thread;
} worker;

/* Makes one call; this thread does not touch the session afterwards. */
static void *call_once(void *argument) {
    worker *w = argument;
    int32_t tokens[N_TOKENS] = {2}, one = 1;
    size_t n;
    lq_session *fork = NULL;
    lq_sampler *sampler = NULL;
    lq_sampler_options options;
    lq_token_prob chosen;
    lq_sampler_options_init(&options);
    atomic_store(&w->begun, true);
    if (w->what == 0) w->status = lq_session_eval(w->session, tokens, 300, LQ_LOGITS_LAST, NULL, 0);
    if (w->what == 1) w->status = lq_session_save(w->session, saved, NULL, 0);
    if (w->what == 2) w->status = lq_session_rewind(w->session, 90, &n);
    if (w->what == 3) w->status = step_tokens(w->batch, &w->session, &one, 1, NULL, 0);
    if (w->what == 4) w->status = lq_session_fork(w->session, &fork);
    if (w->what == 5) {
        w->status = lq_sampler_create(&options, &sampler);
        if (w->status == LQ_OK) w->status = lq_session_sample(w->session, sampler, &chosen, NULL, 0);
    }
    lq_sampler_free(&sampler);
    lq_session_close(&fork);
    return NULL;
}

/* Ends a session at some moment of a call: the call must succeed or say why not, and the next one is refused. */
static void check_end(lq_model *model, lq_batch *batch, int what, int round, int n_seen[2]) {
    worker w = {.session = open_session(model, kinds[round % 2], 100), .batch = batch, .what = what};
    lq_session_info info = {.struct_size = sizeof info};
    lq_kv_usage usage;
    int32_t token = 1;
    atomic_init(&w.begun, false);
    CHECK(pthread_create(&w.thread, NULL, call_once, &w) == 0);
    while (!atomic_load(&w.begun)) sched_yield();
    for (int i = 0; i < round % 10; i++) sched_yield();
    lq_session_end(w.session);
    lq_session_end(w.session);
    CHECK_STATUS(lq_session_eval(w.session, &token, 1, LQ_LOGITS_LAST, NULL, 0), LQ_E_CLOSED);
    CHECK_STATUS(lq_session_reset(w.session), LQ_E_CLOSED);
    CHECK_STATUS(lq_kv_get_usage(lq_session_kv_cache(w.session), &usage), LQ_E_CLOSED);
    CHECK_STATUS(lq_session_get_info(w.session, &info), LQ_OK);
    CHECK(pthread_join(w.thread, NULL) == 0);
    CHECK_STATUS(step_tokens(batch, &w.session, &token, 1, NULL, 0), LQ_E_CLOSED);
    CHECK_MSG(w.status == LQ_OK || w.status == LQ_E_CANCELLED || w.status == LQ_E_CLOSED, "call %d: %d", what,
              (int)w.status);
    n_seen[0] += w.status == LQ_OK;
    n_seen[1] += w.status == LQ_E_CANCELLED;
    lq_session_close(&w.session);
}

static void check_ends(void) {
    lq_model *model = open_tiny(2);
    lq_batch *batch = NULL;
    int n_seen[2] = {0, 0};
    CHECK_STATUS(lq_batch_create(model, 1, 0, 0, &batch), LQ_OK);
    for (int what = 0; what < N_WHAT; what++)
        for (int round = 0; round < N_ROUNDS; round++) check_end(model, batch, what, round, n_seen);
    /* On a busy machine a thread may be done before it is looked at, or not have begun. */
    for (int round = 0; round < N_MOST && (n_seen[0] == 0 || n_seen[1] == 0); round++)
        check_end(model, batch, 0, round, n_seen);
    CHECK_MSG(n_seen[0] > 0 && n_seen[1] > 0, "%d calls were done, %d cancelled", n_seen[0], n_seen[1]);
    lq_batch_close(&batch);
    lq_model_close(&model);
    unlink(saved);
}

/* Closes a session while another thread is surely inside: that thread must leave first. */
static void check_close(const char *kv) {
    lq_model *model = open_tiny(1);
    int n_cancelled = 0;
    for (int round = 0; round < N_ROUNDS || (n_cancelled == 0 && round < N_MOST); round++) {
        worker w = {.session = open_session(model, kv, 100)};
        lq_session_info info = {.struct_size = sizeof info};
        atomic_init(&w.begun, false);
        CHECK(pthread_create(&w.thread, NULL, call_once, &w) == 0);
        while (lq_session_get_tokens(w.session, NULL, 0) == 100) { /* its first chunk is not done */
            CHECK_STATUS(lq_session_get_info(w.session, &info), LQ_OK);
            CHECK(info.kv_usage.n_tokens % 10 == 0);
            sched_yield();
        }
        lq_session_close(&w.session);
        CHECK(pthread_join(w.thread, NULL) == 0);
        CHECK(w.status == LQ_OK || w.status == LQ_E_CANCELLED);
        n_cancelled += w.status == LQ_E_CANCELLED;
    }
    CHECK_MSG(n_cancelled > 0, "%s: no evaluation was cancelled", kv);
    lq_model_close(&model);
}

/* ---- one at a time */

typedef struct looker {
    lq_kv_layer *layer;
    lq_session *session;
    atomic_bool stop;
    pthread_t thread;
} looker;

static void *keep_looking(void *argument) {
    looker *self = argument;
    size_t n;
    float k[512 * 8];
    while (!atomic_load(&self->stop)) {
        lq_status status = lq_kv_get_full(lq_kv_layer_cache(self->layer), 0, 0, NULL, k, NULL, NULL, 512, &n);
        if (status != LQ_OK && status != LQ_E_BUSY) return argument;
    }
    return NULL;
}

static void check_layer(void) {
    looker other = {.layer = NULL};
    lq_kv_layer_options options;
    float q[8] = {1.0f}, out[8];
    uint32_t kept;
    void *failed = NULL;
    lq_kv_layer_options_init(&options);
    options.n_heads = options.n_kv_heads = 1, options.head_dim = 8, options.n_ctx = 512, options.n_threads = 1;
    options.kv.name = "logquant", options.kv.window = 64;
    CHECK_STATUS(lq_kv_layer_create(&options, &other.layer), LQ_OK);
    atomic_init(&other.stop, false);
    CHECK(pthread_create(&other.thread, NULL, keep_looking, &other) == 0);
    for (int i = 0, n_held = 0; i < 3000; i++) {
        lq_status status = lq_kv_layer_attend(other.layer, q, q, q, 1, out);
        CHECK(status == LQ_OK || status == LQ_E_BUSY);
        n_held += status == LQ_OK;
        while (n_held == 500 && lq_kv_layer_rewind(other.layer, 0, &kept) != LQ_OK) continue; /* the other one looks */
        if (n_held == 500) n_held = 0;
    }
    atomic_store(&other.stop, true);
    CHECK(pthread_join(other.thread, &failed) == 0);
    CHECK(failed == NULL);
    lq_kv_layer_close(&other.layer);
}

/* ---- forks */

static void *keep_evaluating(void *argument) {
    looker *self = argument;
    int32_t tokens[N_TOKENS] = {2};
    while (!atomic_load(&self->stop)) {
        if (lq_session_eval(self->session, tokens, 300, LQ_LOGITS_LAST, NULL, 0) != LQ_OK) return argument;
        if (lq_session_reset(self->session) != LQ_OK) return argument;
    }
    return NULL;
}

/* Runs in the child and returns its exit status, 0 = everything was as expected. */
static int use_inherited(lq_model *model, lq_session *idle, lq_session *busy, lq_batch *batch) {
    lq_session *other = NULL;
    lq_session_options options;
    lq_batch *new_batch = NULL;
    int32_t token = 1, held[4];
    size_t n;
    lq_session_options_init(&options);
    if (lq_session_eval(idle, &token, 1, LQ_LOGITS_LAST, NULL, 0) != LQ_E_FORKED) return 1;
    if (lq_session_eval(busy, &token, 1, LQ_LOGITS_LAST, NULL, 0) != LQ_E_FORKED) return 2;
    if (lq_session_rewind(idle, 2, &n) != LQ_E_FORKED) return 3;
    if (lq_session_fork(idle, &other) != LQ_E_FORKED) return 4;
    if (lq_session_save(idle, saved, NULL, 0) != LQ_E_FORKED) return 5;
    if (step_tokens(batch, &idle, &token, 1, NULL, 0) != LQ_E_FORKED) return 6;
    if (lq_session_create(model, &options, &other) != LQ_E_FORKED) return 7;
    if (lq_session_load(model, saved, 0, &other) != LQ_E_FORKED) return 8;
    if (lq_batch_create(model, 1, 0, 0, &new_batch) != LQ_E_FORKED) return 9;
    if (lq_session_get_tokens(idle, held, 4) != 100 || lq_session_get_tokens(busy, held, 4) > 300) return 10;
    lq_session_end(busy);
    lq_batch_close(&batch);
    lq_session_close(&busy);
    lq_session_close(&idle);
    lq_model_close(&model);
    return 0;
}

static void check_fork(int round, uint32_t n_threads) {
    lq_model *model = open_tiny(n_threads);
    lq_session *idle = open_session(model, "logquant", 100);
    looker other = {.session = open_session(model, kinds[round % 2], 0)};
    lq_batch *batch = NULL;
    void *failed = NULL;
    int status = -1;
    CHECK_STATUS(lq_batch_create(model, 2, 0, 0, &batch), LQ_OK);
    atomic_init(&other.stop, false);
    CHECK(pthread_create(&other.thread, NULL, keep_evaluating, &other) == 0);
    while (lq_session_get_tokens(other.session, NULL, 0) == 0) sched_yield();
    for (int i = 0; i < round; i++) sched_yield();
    pid_t child = fork();
    if (child == 0) {
        alarm(30); /* where it hangs */
        _exit(use_inherited(model, idle, other.session, batch));
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_MSG(status == 0, "%u threads, round %d: the child ended with %x", (unsigned)n_threads, round,
              (unsigned)status);
    atomic_store(&other.stop, true);
    CHECK(pthread_join(other.thread, &failed) == 0);
    CHECK(failed == NULL);
    lq_session_close(&idle);
    lq_session_close(&other.session);
    lq_batch_close(&batch);
    lq_model_close(&model);
}

int main(void) {
    check_ends();
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) check_close(kinds[i]);
    check_layer();
    for (int round = 0; round < 20; round++) check_fork(round, round % 3 == 0 ? 1 : 2);
    return check_report("test_session_threads");
}
