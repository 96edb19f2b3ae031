/* test_pass.c - tests forward passes with rows of floats in place of tokens, and with several parts of any size. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "check.h"
#include "session/inside.h"
#include "tiny_model.h"

enum { N_TOKENS = 12 };

static lq_session *open_session(lq_model *model, const char *kv) {
    lq_session_options options;
    lq_session *session = NULL;
    lq_session_options_init(&options);
    options.n_ctx = 64, options.n_chunk = 32, options.max_tentative = 8;
    options.kv.name = kv;
    CHECK_STATUS(lq_session_create(model, &options, &session), LQ_OK);
    return session;
}

/* Computes the rows that embed() makes of tokens. */
static void embed(const lq_model *model, const int32_t *tokens, uint32_t n, float *rows) {
    const lq_weight *table = &model->token_embd;
    for (uint32_t i = 0; i < n; i++) {
        float *row = rows + i * table->n_cols;
        table->format->dequantize(row, (const uint8_t *)table->data + (size_t)tokens[i] * table->row_bytes,
                                  table->n_cols);
        for (uint32_t j = 0; j < table->n_cols; j++) row[j] *= model->config.embed_scale;
    }
}

static void check_rows(const char *arch) {
    static const char *const kvs[] = {"logquant", "f16", "q8_0"};
    static float rows[N_TOKENS * TINY_EMBD], logits[3][N_TOKENS * TINY_VOCAB];
    int32_t tokens[N_TOKENS];
    lq_model *model = open_tiny_model(arch, 2);
    lq_batch *batch = NULL;
    CHECK_STATUS(lq_batch_create(model, 4, 64, 0, &batch), LQ_OK);
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)(i * 5 % TINY_VOCAB);
    embed(model, tokens, N_TOKENS, rows);
    for (int k = 0; k < 3; k++) {
        lq_session *by_id = open_session(model, kvs[k]), *by_row = open_session(model, kvs[k]);
        lq_session *other = open_session(model, kvs[k]);
        lq_pass_part id_part = lq_session_part(by_id, tokens, N_TOKENS, N_TOKENS, logits[0]);
        lq_pass_part row_part = lq_session_part(by_row, NULL, N_TOKENS, N_TOKENS, logits[1]);
        lq_pass_part beside = lq_session_part(other, tokens, 1, 1, logits[2]);
        row_part.rows = rows;
        lq_pass_part parts[] = {beside, row_part}; /* rows of floats that begin within the pass */
        CHECK_STATUS(lq_kv_cache_reserve(by_id->cache, N_TOKENS), LQ_OK);
        CHECK_STATUS(lq_kv_cache_reserve(by_row->cache, N_TOKENS), LQ_OK);
        CHECK_STATUS(lq_kv_cache_reserve(other->cache, 1), LQ_OK);
        CHECK_STATUS(lq_workspace_forward(model, &id_part, 1), LQ_OK);
        CHECK_STATUS(lq_workspace_forward(model, parts, 2), LQ_OK);
        CHECK_MSG(memcmp(logits[0], logits[1], sizeof logits[0]) == 0 || strcmp(arch, "qwen3moe") == 0,
                  "%s, %s: rows of floats are not the tokens whose embeddings they are", arch, kvs[k]);
        CHECK(lq_kv_cache_n_tokens(by_row->cache) == N_TOKENS);
        lq_session_close(&by_id);
        lq_session_close(&by_row);
        lq_session_close(&other);
    }
    lq_batch_close(&batch);
    lq_model_close(&model);
}

/* Checks that 100 sessions share the workspace of one. */
static void check_one_workspace(void) {
    lq_model *model = open_tiny_model("llama", 2);
    lq_session *sessions[100];
    lq_session_options options;
    lq_memory first, next;
    lq_session_options_init(&options);
    options.n_ctx = 64;
    CHECK_STATUS(lq_session_plan(model, &options, &first), LQ_OK);
    CHECK(first.workspace_bytes > 0);
    CHECK(lq_workspace_bytes(model) == 0);
    for (int i = 0; i < 100; i++) {
        CHECK_STATUS(lq_session_create(model, &options, &sessions[i]), LQ_OK);
        CHECK_STATUS(lq_session_plan(model, &options, &next), LQ_OK);
        CHECK(next.workspace_bytes == 0);
        CHECK(next.total_bytes == first.total_bytes - first.workspace_bytes);
    }
    CHECK(lq_workspace_bytes(model) == first.workspace_bytes);
    options.n_ctx = 128;
    CHECK_STATUS(lq_session_plan(model, &options, &next), LQ_OK);
    CHECK(next.workspace_bytes > first.workspace_bytes); /* it is made anew, as large as this one needs */
    for (int i = 0; i < 100; i++) lq_session_close(&sessions[i]);
    CHECK(lq_workspace_bytes(model) == 0);
    lq_model_close(&model);
}

int main(void) {
    for (size_t i = 0; i < N_TINY_ARCHS; i++) check_rows(tiny_archs[i]);
    check_one_workspace();
    return check_report("test_pass");
}
