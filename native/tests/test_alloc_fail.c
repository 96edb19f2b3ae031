/* test_alloc_fail.c - makes every allocation, mapping and thread start of a model's life fail once, in turn: the call
 * is refused with a text, and everything allocated before is freed. Evaluation allocates nothing.
 *
 * The linker replaces the functions below by the ones here (--wrap) wherever the library calls them. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>

#include "check.h"
#include "gguf_build.h"
#include "logquant_batch.h"
#include "logquant_kv.h"
#include "logquant_worker.h"
#include "tiny_model.h"

/* ---- failing calls */

static unsigned long n_calls;  /* calls so far that can fail */
static unsigned long fail_at;  /* the number of the call that fails, from 1; 0 = none */
static bool fail_from_then_on; /* all calls after it fail, too */
static long n_live;            /* blocks, mappings and threads held */

static bool fails(void) {
    n_calls++;
    return fail_at != 0 && (n_calls == fail_at || (fail_from_then_on && n_calls > fail_at));
}

static void *counted(void *block) {
    n_live += block != NULL;
    return block;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t n);
void __real_free(void *block);
void *__real_mmap(void *at, size_t n, int protection, int flags, int file, off_t offset);
int __real_munmap(void *at, size_t n);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *options, void *(*main)(void *), void *argument);
int __real_pthread_join(pthread_t thread, void **result);

void *__wrap_malloc(size_t n) { return fails() ? NULL : counted(__real_malloc(n)); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : counted(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    return fails() ? NULL : counted(__real_aligned_alloc(alignment, n));
}
void __wrap_free(void *block) {
    n_live -= block != NULL;
    __real_free(block);
}
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int file, off_t offset) {
    errno = ENOMEM;
    void *memory = fails() ? MAP_FAILED : __real_mmap(at, n, protection, flags, file, offset);
    n_live += memory != MAP_FAILED;
    return memory;
}
int __wrap_munmap(void *at, size_t n) {
    n_live--;
    return __real_munmap(at, n);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *options, void *(*main)(void *), void *argument) {
    int error = fails() ? EAGAIN : __real_pthread_create(thread, options, main, argument);
    n_live += error == 0;
    return error;
}
int __wrap_pthread_join(pthread_t thread, void **result) {
    n_live--;
    return __real_pthread_join(thread, result);
}

/* ---- lives */

static char path[512];
static unsigned long n_eval_calls; /* that could have failed, in evaluation */

enum { N_TOKENS = 300 };

static lq_status evaluate(lq_session *session) {
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = i % TINY_VOCAB;
    unsigned long before = n_calls;
    lq_status status = lq_session_eval(session, tokens, N_TOKENS, LQ_LOGITS_LAST, NULL, 0);
    n_eval_calls += n_calls - before;
    return status;
}

/* Makes a checkpoint and a fork, which rewinds and evaluates, then uses the first session again. */
static lq_status branch(lq_session *session) {
    lq_session *fork = NULL;
    size_t n_evaluated;
    lq_status status = lq_session_checkpoint(session, NULL, 0);
    if (status == LQ_OK) status = lq_session_fork(session, &fork);
    CHECK((status == LQ_OK) == (fork != NULL));
    if (status == LQ_OK) status = lq_session_rewind(fork, N_TOKENS / 2, &n_evaluated);
    if (status == LQ_OK) status = evaluate(fork);
    lq_session_close(&fork);
    if (status == LQ_OK) status = lq_session_rewind(session, N_TOKENS, &n_evaluated);
    return status;
}

static char session_path[512];

static lq_status keep(lq_model *model, lq_session *session) {
    lq_session *loaded = NULL;
    lq_status status = lq_session_save(session, session_path, "extra", 5);
    if (status == LQ_OK) status = lq_session_load(model, session_path, 0, &loaded);
    CHECK((status == LQ_OK) == (loaded != NULL));
    lq_session_close(&loaded);
    return status;
}

/* Opens a model, makes a session, evaluates, branches, closes. */
static lq_status model_life(void) {
    lq_model_options model_options;
    lq_session_options session_options;
    lq_model *model = NULL;
    lq_session *session = NULL;
    lq_model_options_init(&model_options);
    lq_session_options_init(&session_options);
    model_options.n_threads = 3;
    session_options.n_chunk = 64;
    session_options.kv.window = 64;
    lq_status status = lq_model_open(path, &model_options, &model);
    CHECK((status == LQ_OK) == (model != NULL));
    if (status == LQ_OK) status = lq_session_create(model, &session_options, &session);
    if (status == LQ_OK) status = evaluate(session);
    if (status == LQ_OK) status = keep(model, session);
    lq_model_close(&model);
    if (status == LQ_OK) status = branch(session);
    lq_session_close(&session);
    return status;
}

/* Makes a session whose attention is watched, and its fork; reading attention allocates nothing. */
static lq_status watching_life(void) {
    lq_session_options options;
    lq_model_options model_options;
    lq_model *model = NULL;
    lq_session *session = NULL, *fork = NULL;
    uint32_t first = 1;
    size_t n_cells = 0;
    lq_model_options_init(&model_options);
    lq_session_options_init(&options);
    options.n_chunk = 64, options.kv.name = "f16", options.watch_attention = 1;
    lq_status status = lq_model_open(path, &model_options, &model);
    if (status == LQ_OK) status = lq_session_create(model, &options, &session);
    if (status == LQ_OK) status = evaluate(session);
    if (status == LQ_OK) {
        float accumulated[N_TOKENS], sum = 0.0f;
        CHECK_STATUS(lq_kv_get_attention(lq_session_kv_cache(session), 1, 0, accumulated, N_TOKENS, &first, &n_cells),
                     LQ_OK);
        CHECK(first == 0 && n_cells == N_TOKENS);
        for (size_t i = 0; i < n_cells; i++) sum += accumulated[i];
        CHECK(fabsf(sum - 2 * (N_TOKENS % 64)) < 0.01f); /* two query heads; the last chunk */
        status = lq_session_fork(session, &fork);
    }
    lq_session_close(&fork);
    lq_session_close(&session);
    lq_model_close(&model);
    return status;
}

/* Steps sessions together, the second with a type that makes the batch grow. */
static lq_status batch_life(void) {
    lq_session_options options;
    lq_model_options model_options;
    lq_model *model = NULL;
    lq_batch *batch = NULL;
    lq_session *sessions[3] = {NULL};
    lq_model_options_init(&model_options);
    lq_session_options_init(&options);
    options.n_chunk = 1, options.kv.name = "f16";
    lq_status status = lq_model_open(path, &model_options, &model);
    if (status == LQ_OK) status = lq_batch_create(model, 3, 0, 0, &batch);
    CHECK((status == LQ_OK) == (batch != NULL));
    if (status == LQ_OK) status = lq_session_create(model, &options, &sessions[0]);
    options.kv.name = "logquant", options.kv.window = 64;
    if (status == LQ_OK) status = lq_session_create(model, &options, &sessions[1]);
    if (status == LQ_OK) status = lq_session_fork(sessions[1], &sessions[2]);
    lq_model_close(&model);
    for (int32_t step = 0; step < N_TOKENS && status == LQ_OK; step++) {
        int32_t tokens[3] = {step % TINY_VOCAB, 1, 2};
        unsigned long before = n_calls;
        status = step_tokens(batch, sessions, tokens, 3, NULL, 0);
        n_eval_calls += step > 0 ? n_calls - before : 0;
        for (int i = 0; i < 3; i++) /* all or none */
            CHECK(lq_session_get_tokens(sessions[i], NULL, 0) == (size_t)step + (status == LQ_OK));
    }
    for (int i = 0; i < 3; i++) lq_session_close(&sessions[i]);
    lq_batch_close(&batch);
    return status;
}

/* A tentative chunk, a fork that shares a checkpoint, and a session that makes the model's memory grow: what fails
 * takes nothing from the session that is there. */
static lq_status tentative_life(void) {
    lq_session_options options;
    lq_model_options model_options;
    lq_model *model = NULL;
    lq_batch *batch = NULL;
    lq_session *session = NULL, *fork = NULL, *larger = NULL;
    int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 0};
    lq_model_options_init(&model_options);
    lq_session_options_init(&options);
    options.n_chunk = 16, options.max_tentative = 8, options.kv.window = 64;
    lq_status status = lq_model_open(path, &model_options, &model);
    if (status == LQ_OK) status = lq_session_create(model, &options, &session);
    if (status == LQ_OK) status = lq_batch_create(model, 1, 8, 0, &batch);
    lq_step_part part = {.session = session, .tokens = tokens, .n_tokens = 8, .tentative = 1, .mode = LQ_LOGITS_LAST};
    if (status == LQ_OK) status = lq_batch_step(batch, &part, 1);
    if (status == LQ_OK) status = lq_session_commit(session, 5);
    if (status == LQ_OK) status = lq_session_checkpoint(session, "one", 3);
    if (status == LQ_OK) status = lq_session_fork(session, &fork);
    if (status == LQ_OK) {
        status = lq_session_checkpoint(session, "other", 5);
        CHECK(lq_session_get_note(session, 5, NULL, 0) == (status == LQ_OK ? 5 : 3));
        CHECK(lq_session_get_note(fork, 5, NULL, 0) == 3);
    }
    options.n_chunk = 128, options.kv.name = "h2o";
    if (status == LQ_OK) {
        status = lq_session_create(model, &options, &larger);
        if (!fail_from_then_on) CHECK_STATUS(lq_session_eval(session, tokens, 8, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
    }
    lq_session_close(&larger);
    lq_session_close(&fork);
    lq_session_close(&session);
    lq_batch_close(&batch);
    lq_model_close(&model);
    return status;
}

static lq_status layer_life(void) {
    lq_kv_layer_options options;
    lq_kv_layer *layer = NULL;
    lq_kv_layer_options_init(&options);
    options.n_heads = 2, options.n_kv_heads = 1, options.head_dim = 8, options.n_ctx = 512, options.n_threads = 2;
    lq_status status = lq_kv_layer_create(&options, &layer);
    lq_kv_layer_close(&layer);
    return status;
}

/* The table of pages grows with the first pack. */
static lq_status worker_life(void) {
    static uint16_t k[64 * 8], v[64 * 8], order[8];
    static _Alignas(64) uint8_t page[4096];
    lq_kv_worker_options options;
    lq_kv_worker *worker = NULL;
    lq_kv_worker_cells cells = {.k = k, .v = v, .head_bytes = sizeof k, .n_cells = 64};
    lq_kv_worker_options_init(&options);
    options.n_heads = 2, options.n_kv_heads = 1, options.head_dim = 8, options.n_chunk = 8, options.n_threads = 2;
    lq_status status = lq_kv_worker_create(&options, &worker);
    CHECK((status == LQ_OK) == (worker != NULL));
    if (status == LQ_OK) status = lq_kv_worker_pack(worker, &cells, 1, 1, order, page);
    lq_kv_worker_close(&worker);
    return status;
}

static lq_status sampler_life(void) {
    lq_sampler_options options;
    lq_sampler *sampler = NULL;
    int32_t tokens[2] = {1, 2};
    float values[2] = {0.5f, -0.5f};
    lq_sampler_options_init(&options);
    options.n_bias = 2, options.bias_tokens = tokens, options.bias_values = values;
    lq_status status = lq_sampler_create(&options, &sampler);
    lq_sampler_free(&sampler);
    return status;
}

static lq_status vocab_life(void) {
    static const uint64_t offsets[4] = {0, 1, 2, 4};
    static const float scores[3] = {-1.0f, -2.0f, -3.0f};
    static const uint8_t is_piece[3] = {1, 1, 1};
    int32_t token[3], left[3], right[3];
    size_t n_merges;
    return lq_vocab_merges(3, offsets, "abab", scores, is_piece, token, left, right, &n_merges);
}

static lq_status strings_life(void) {
    static const uint64_t offsets[4] = {0, 1, 2, 4};
    uint8_t within[3];
    return lq_strings_within(3, offsets, "abab", NULL, -1, "cab", 3, within);
}

static void check_life(const char *what, lq_status (*life)(void)) {
    fail_at = 0;
    n_calls = n_eval_calls = 0;
    CHECK_STATUS(life(), LQ_OK);
    CHECK_MSG(n_live == 0, "%s: %ld still held", what, n_live);
    unsigned long n = n_calls, n_pages = 2 * (N_TOKENS / 64); /* two evaluations, each page a frame of two pieces */
    CHECK_MSG(n_eval_calls <= 2 * n_pages, "evaluation made %lu calls that can fail", n_eval_calls);
    CHECK_MSG(n > 0, "%s: nothing that could fail", what);
    for (int all = 0; all < 2; all++) {
        fail_from_then_on = all;
        for (fail_at = 1; fail_at <= n; fail_at++) {
            n_calls = 0;
            lq_status status = life();
            CHECK_MSG(status == LQ_E_MEMORY || status == LQ_E_IO, "%s: call %lu of %lu failed, status %d", what,
                      fail_at, n, (int)status);
            CHECK_MSG(strlen(lq_error_message()) > 10, "%s: call %lu failed without a text", what, fail_at);
            CHECK_MSG(n_live == 0, "%s: call %lu of %lu failed, %ld still held", what, fail_at, n, n_live);
        }
    }
    fail_at = 0;
}

int main(void) {
    static bytes b;
    build_tiny_model(&b, "llama");
    make_temporary(path, sizeof path);
    make_temporary(session_path, sizeof session_path);
    write_file(path, b.data, b.n);
    n_live = 0;
    check_life("model", model_life);
    check_life("watched attention", watching_life);
    check_life("batch", batch_life);
    check_life("tentative", tentative_life);
    check_life("KV layer", layer_life);
    check_life("KV worker", worker_life);
    check_life("sampler", sampler_life);
    check_life("vocabulary", vocab_life);
    check_life("strings", strings_life);
    unlink(path);
    unlink(session_path);
    return check_report("test_alloc_fail");
}
