/* lq_run.c - the smallest program on logquant.h: continues token ids greedily and prints the new ones.
 *
 *     lq_run MODEL.gguf N_NEW ID [ID ...]
 */
#include <stdio.h>
#include <stdlib.h>

#include "logquant.h"

static int fail(const char *what) {
    fprintf(stderr, "lq_run: %s: %s\n", what, lq_error_message());
    return 1;
}

static int generate(lq_session *session, lq_sampler *sampler, const int32_t *prompt, size_t n_prompt, long n_new) {
    lq_token_prob next;
    if (lq_session_eval(session, prompt, n_prompt, LQ_LOGITS_LAST, NULL, 0) != LQ_OK) return fail("prompt");
    for (long i = 0; i < n_new; i++) {
        if (lq_session_sample(session, sampler, &next, NULL, 0) != LQ_OK) return fail("sample");
        printf("%d\n", (int)next.token);
        if (lq_session_eval(session, &next.token, 1, LQ_LOGITS_LAST, NULL, 0) != LQ_OK) return fail("token");
    }
    return 0;
}

int main(int argc, char **argv) {
    lq_model *model = NULL;
    lq_session *session = NULL;
    lq_sampler *sampler = NULL;
    lq_model_options model_options;
    lq_session_options session_options;
    lq_sampler_options sampler_options;
    int exit_code = 1;
    if (argc < 4) {
        fprintf(stderr, "usage: lq_run MODEL.gguf N_NEW ID [ID ...]\n");
        return 2;
    }
    size_t n_prompt = (size_t)argc - 3;
    int32_t *prompt = malloc(n_prompt * sizeof *prompt);
    if (prompt == NULL) return 1;
    for (size_t i = 0; i < n_prompt; i++) prompt[i] = (int32_t)strtol(argv[3 + i], NULL, 10);

    lq_model_options_init(&model_options);
    lq_session_options_init(&session_options);
    lq_sampler_options_init(&sampler_options);
    sampler_options.temperature = 0.0f;
    if (lq_model_open(argv[1], &model_options, &model) != LQ_OK) {
        fail("model");
    } else if (lq_session_create(model, &session_options, &session) != LQ_OK) {
        fail("session");
    } else if (lq_sampler_create(&sampler_options, &sampler) != LQ_OK) {
        fail("sampler");
    } else {
        exit_code = generate(session, sampler, prompt, n_prompt, strtol(argv[2], NULL, 10));
    }
    lq_sampler_free(&sampler);
    lq_session_close(&session);
    lq_model_close(&model);
    free(prompt);
    return exit_code;
}
