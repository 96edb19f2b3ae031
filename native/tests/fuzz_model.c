/* fuzz_model.c - opens any bytes as a model: it is refused with one line of text, or makes a session and evaluates.
 *
 * See fuzz_mutate.h. Run it under sanitizers: it searches for hyperparameters that do not fit their tensors. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "fuzz_mutate.h"
#include "tiny_model.h"

static char path[512];
static unsigned long n_opened, n_evaluated;

static void check_refusal(lq_status status) {
    const char *text = lq_error_message();
    if ((status == LQ_E_FORMAT || status == LQ_E_UNSUPPORTED || status == LQ_E_MEMORY || status == LQ_E_ARG) &&
        strlen(text) > 10 && !strchr(text, '\n'))
        return;
    fprintf(stderr, "fuzz_model: a poor refusal, %d: %s; the input is in %s\n", (int)status, text, path);
    abort();
}

static void run_model(lq_model *model) {
    static const char *const kv_names[] = {"logquant", "f16", "q8_0", "logquant-small"};
    lq_session_options options;
    lq_session *session = NULL;
    lq_model_info info = {.struct_size = sizeof info};
    int32_t tokens[80];
    CHECK_STATUS(lq_model_get_info(model, &info), LQ_OK);
    lq_session_options_init(&options);
    options.n_ctx = 100, options.n_chunk = 50, options.allow_long = 1;
    options.memory_budget = 1u << 26; /* sizes beyond it are refused, not tried */
    options.kv.name = kv_names[n_opened % 4];
    lq_status status = lq_session_create(model, &options, &session);
    if (status != LQ_OK) {
        check_refusal(status);
        return;
    }
    for (int i = 0; i < 80; i++) tokens[i] = (int32_t)((uint32_t)i * 7 % info.n_vocab);
    CHECK_STATUS(lq_session_eval(session, tokens, 80, LQ_LOGITS_LAST, NULL, 0), LQ_OK);
    n_evaluated++;
    lq_session_close(&session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lq_model_options options;
    lq_model *model = NULL;
    if (!path[0]) make_temporary(path, sizeof path);
    write_file(path, data, size);
    lq_model_options_init(&options);
    options.n_threads = 1;
    lq_status status = lq_model_open(path, &options, &model);
    if (status != LQ_OK) {
        check_refusal(status);
        return 0;
    }
    n_opened++;
    run_model(model);
    lq_model_close(&model);
    return 0;
}

#ifndef LQ_LIBFUZZER

int main(int argc, char **argv) {
    static bytes seeds[N_TINY_ARCHS];
    for (size_t i = 0; i < N_TINY_ARCHS; i++) build_tiny_model(&seeds[i], tiny_archs[i]);
    if (fuzz_corpus(argc, argv, seeds, N_TINY_ARCHS)) return 0;
    for (size_t i = 0; i < N_TINY_ARCHS; i++) {
        LLVMFuzzerTestOneInput(seeds[i].data, seeds[i].n);
        CHECK_MSG(n_evaluated == i + 1, "%s does not run: %s", tiny_archs[i], lq_error_message());
    }
    unsigned long n = fuzz_mutations(argc, argv, 3000, seeds, N_TINY_ARCHS);
    CHECK_MSG(n_evaluated > n / 20 && n_opened < n / 20 * 19, "%lu of %lu opened, %lu evaluated", n_opened, n,
              n_evaluated);
    unlink(path);
    return check_report("fuzz_model");
}

#endif
