/* fuzz_session.c - loads any bytes as a saved session: it is refused with one line of text, or evaluates, rewinds,
 * forks.
 *
 * See fuzz_mutate.h. Each input is tried as it is (a single changed byte must be detected), and with its size and its
 * checksum corrected, so that the code behind their checks runs. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "core/files.h"
#include "fuzz_mutate.h"
#include "tiny_model.h"

#define N_MODELS 2
#define N_TOKENS 640
#define SIZE_AT 16 /* of the head's file_bytes */
#define HEAD_BYTES 240

static char path[512];
static lq_model *models[N_MODELS];
static unsigned long n_loaded, n_refused;

static void check_refusal(lq_status status) {
    const char *text = lq_error_message();
    n_refused++;
    if ((status == LQ_E_FORMAT || status == LQ_E_UNSUPPORTED || status == LQ_E_MEMORY || status == LQ_E_ARG) &&
        strlen(text) > 10 && !strchr(text, '\n'))
        return;
    fprintf(stderr, "fuzz_session: a poor refusal, %d: %s; the input is in %s\n", (int)status, text, path);
    abort();
}

static void must(lq_status status) {
    if (status == LQ_OK) return;
    fprintf(stderr, "fuzz_session: a loaded session fails, %d: %s; the input is in %s\n", (int)status,
            lq_error_message(), path);
    abort();
}

static void use(lq_session *session) {
    lq_session_info info = {.struct_size = sizeof info};
    lq_session *fork = NULL;
    int32_t tokens[70];
    size_t n_evaluated;
    must(lq_session_get_info(session, &info));
    uint32_t room = info.n_limit - info.n_tokens, n = room < 70 ? room : 70;
    for (int32_t i = 0; i < 70; i++) tokens[i] = i * 7 % TINY_VOCAB;
    must(lq_session_fork(session, &fork));
    if (n != 0) must(lq_session_eval(session, tokens, n, LQ_LOGITS_LAST, NULL, 0));
    must(lq_session_rewind(fork, info.n_tokens / 2, &n_evaluated));
    lq_session_close(&fork);
}

static lq_status load(const uint8_t *data, size_t size) {
    lq_status status = LQ_E_ARG;
    write_file(path, data, size);
    for (int i = 0; i < N_MODELS; i++) {
        lq_session *session = NULL;
        status = lq_session_load(models[i], path, 1u << 26, &session);
        if (status == LQ_OK) {
            n_loaded++;
            use(session);
            lq_session_close(&session);
            return LQ_OK;
        }
        check_refusal(status);
    }
    return status;
}

/* Saves a session of the i-th kind with a short history, and reads its file into b. */
static void make_seed(bytes *b, unsigned i) {
    static const char *const names[] = {"logquant", "f16", "logquant-small", "q4_0", "h2o"};
    lq_session_options options;
    lq_session *session = NULL;
    int32_t tokens[N_TOKENS];
    lq_session_options_init(&options);
    options.n_ctx = 300, options.n_chunk = 50, options.allow_long = 1;
    options.kv.name = names[i / N_MODELS % 5];
    if (i / N_MODELS % 5 == 0 || i / N_MODELS % 5 == 4) options.kv.window = 64;
    if (i >= 5 * N_MODELS) options.on_full = LQ_ON_FULL_DROP, options.n_ctx = 500, options.kv.window = 0;
    if (i >= 5 * N_MODELS) options.kv.name = i % 4 < 2 ? "logquant-paper" : "f16";
    for (int32_t t = 0; t < N_TOKENS; t++) tokens[t] = t * 5 % TINY_VOCAB;
    size_t n = i >= 5 * N_MODELS ? N_TOKENS : 230;
    CHECK_STATUS(lq_session_create(models[i % N_MODELS], &options, &session), LQ_OK);
    CHECK_STATUS(lq_session_eval(session, tokens, n, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
    CHECK_STATUS(lq_session_save(session, path, "extra", 5), LQ_OK);
    lq_session_close(&session);
    FILE *file = fopen(path, "rb");
    b->n = file != NULL ? fread(b->data, 1, sizeof b->data, file) : 0;
    if (file != NULL) fclose(file);
    CHECK(b->n > HEAD_BYTES && b->n < sizeof b->data);
}

static void open_models(void) {
    static const char *const archs[N_MODELS] = {"llama", "gemma2"};
    static bytes b;
    lq_model_options options;
    lq_model_options_init(&options);
    options.n_threads = 1;
    make_temporary(path, sizeof path);
    for (int i = 0; i < N_MODELS; i++) {
        build_tiny_model(&b, archs[i]);
        write_file(path, b.data, b.n);
        CHECK_STATUS(lq_model_open(path, &options, &models[i]), LQ_OK);
        unlink(path); /* it is mapped: nothing may be written over it */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bytes b;
    if (models[0] == NULL) open_models();
    load(data, size);
    if (size < HEAD_BYTES + 8 || size > sizeof b.data) return 0;
    memcpy(b.data, data, size);
    uint64_t n_bytes = size;
    memcpy(b.data + SIZE_AT, &n_bytes, sizeof n_bytes);
    uint64_t sum = lq_checksum(b.data, size - sizeof sum);
    memcpy(b.data + size - sizeof sum, &sum, sizeof sum);
    load(b.data, size);
    return 0;
}

#ifndef LQ_LIBFUZZER

/* Checks that every single changed byte is detected. */
static void check_every_byte(const bytes *seed) {
    static bytes b;
    lq_session *session = NULL;
    for (size_t at = 0; at < seed->n; at += at < 2048 ? 1 : 97) {
        b = *seed;
        b.data[at] ^= (unsigned char)(1u << at % 8);
        write_file(path, b.data, b.n);
        lq_status status = lq_session_load(models[0], path, 0, &session);
        CHECK_MSG(status == LQ_E_FORMAT || status == LQ_E_UNSUPPORTED, "byte %zu changed: %d", at, (int)status);
        CHECK(session == NULL);
    }
}

int main(int argc, char **argv) {
    enum { N_SEEDS = 7 * N_MODELS };
    static bytes seeds[N_SEEDS];
    open_models();
    for (unsigned i = 0; i < N_SEEDS; i++) make_seed(&seeds[i], i);
    if (fuzz_corpus(argc, argv, seeds, N_SEEDS)) return 0;
    for (unsigned i = 0; i < N_SEEDS; i++) {
        LLVMFuzzerTestOneInput(seeds[i].data, seeds[i].n);
        CHECK_MSG(n_loaded == 2 * (i + 1ul), "seed %u is not loaded: %s", i, lq_error_message());
    }
    check_every_byte(&seeds[0]);
    unsigned long n = fuzz_mutations(argc, argv, 3000, seeds, N_SEEDS);
    CHECK_MSG(n_loaded > n / 20 && n_refused > n, "%lu inputs: %lu loaded, %lu refused", n, n_loaded, n_refused);
    for (int i = 0; i < N_MODELS; i++) lq_model_close(&models[i]);
    unlink(path);
    return check_report("fuzz_session");
}

#endif
