/* tiny_model.h - builds model files of a few kilobytes that run: two layers, two query heads and one KV head of 8, a
 * vocabulary of 8, F32 weights that follow a pattern. Together its architectures have every kind of tensor and key. */
#ifndef LQ_TEST_TINY_MODEL_H
#define LQ_TEST_TINY_MODEL_H

#include "gguf_build.h"
#include "logquant_batch.h"

enum { TINY_EMBD = 16, TINY_FF = 8, TINY_HEAD = 8, TINY_VOCAB = 8, TINY_LAYERS = 2, TINY_EXPERTS = 3 };

static const char *const tiny_archs[] = {"llama", "gemma2", "qwen3moe", "phi3"};
#define N_TINY_ARCHS (sizeof tiny_archs / sizeof tiny_archs[0])

/* Collects tensor infos and keys until their counts are known. */
typedef struct tiny_file {
    bytes keys, tensors;
    unsigned n_keys, n_tensors;
    unsigned long long offset;
    const char *arch;
} tiny_file;

static inline void tiny_tensor(tiny_file *f, const char *name, unsigned n_dims, unsigned n_cols, unsigned n_rows,
                               unsigned n_stacked) {
    unsigned long long dims[3] = {n_cols, n_rows, n_stacked};
    put_tensor(&f->tensors, name, n_dims, dims, 0, f->offset);
    f->offset += (n_cols * n_rows * n_stacked * sizeof(float) + 31) / 32 * 32;
    f->n_tensors++;
}

static inline void tiny_layer_tensor(tiny_file *f, int layer, const char *name, unsigned n_cols, unsigned n_rows,
                                     unsigned n_stacked) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    tiny_tensor(f, full, n_stacked > 1 ? 3 : (n_rows > 1 ? 2 : 1), n_cols, n_rows, n_stacked);
}

static inline void tiny_number(tiny_file *f, const char *suffix, unsigned value) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", f->arch, suffix);
    put_key(&f->keys, key, LQ_GGUF_U32);
    put_int(&f->keys, value, 4);
    f->n_keys++;
}

static inline void tiny_float(tiny_file *f, const char *suffix, float value) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", f->arch, suffix);
    put_key(&f->keys, key, LQ_GGUF_F32);
    put(&f->keys, &value, 4);
    f->n_keys++;
}

/* Adds the factor of a matrix, or n factors of a stack of matrices. */
static inline void tiny_factors(tiny_file *f, int layer, const char *name, unsigned n) {
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.scale", layer, name);
    tiny_tensor(f, full, 1, n, 1, 1);
    snprintf(full, sizeof full, "blk.%d.%s.input_scale", layer, name);
    tiny_tensor(f, full, 1, n, 1, 1);
}

/* Adds a key with one number for each layer. */
static inline void tiny_numbers(tiny_file *f, const char *suffix, unsigned first, unsigned others) {
    char key[64];
    snprintf(key, sizeof key, "%s.%s", f->arch, suffix);
    put_array(&f->keys, key, LQ_GGUF_U32, TINY_LAYERS);
    for (int i = 0; i < TINY_LAYERS; i++) put_int(&f->keys, i == 0 ? first : others, 4);
    f->n_keys++;
}

static inline void tiny_layer(tiny_file *f, int layer) {
    unsigned q = 2 * TINY_HEAD, kv = TINY_HEAD;
    tiny_layer_tensor(f, layer, "attn_norm", TINY_EMBD, 1, 1);
    tiny_layer_tensor(f, layer, "ffn_norm", TINY_EMBD, 1, 1);
    tiny_layer_tensor(f, layer, "attn_output", q, TINY_EMBD, 1);
    if (strcmp(f->arch, "gemma2") == 0) {
        tiny_layer_tensor(f, layer, "post_attention_norm", TINY_EMBD, 1, 1);
        tiny_layer_tensor(f, layer, "post_ffw_norm", TINY_EMBD, 1, 1);
    }
    if (strcmp(f->arch, "phi3") == 0) {
        tiny_layer_tensor(f, layer, "attn_qkv", TINY_EMBD, q + 2 * kv, 1);
        tiny_factors(f, layer, "attn_qkv", 1);
        tiny_layer_tensor(f, layer, "ffn_up", TINY_EMBD, 2 * TINY_FF, 1);
        tiny_layer_tensor(f, layer, "ffn_down", TINY_FF, TINY_EMBD, 1);
        return;
    }
    tiny_layer_tensor(f, layer, "attn_q", TINY_EMBD, q, 1);
    tiny_layer_tensor(f, layer, "attn_k", TINY_EMBD, kv, 1);
    tiny_layer_tensor(f, layer, "attn_v", TINY_EMBD, kv, 1);
    if (strcmp(f->arch, "qwen3moe") == 0) {
        tiny_layer_tensor(f, layer, "attn_q_norm", TINY_HEAD, 1, 1);
        tiny_layer_tensor(f, layer, "attn_k_norm", TINY_HEAD, 1, 1);
        tiny_layer_tensor(f, layer, "ffn_gate_inp", TINY_EMBD, TINY_EXPERTS, 1);
        tiny_layer_tensor(f, layer, "ffn_gate_exps", TINY_EMBD, TINY_FF, TINY_EXPERTS);
        tiny_factors(f, layer, "ffn_gate_exps", TINY_EXPERTS);
        tiny_layer_tensor(f, layer, "ffn_up_exps", TINY_EMBD, TINY_FF, TINY_EXPERTS);
        tiny_layer_tensor(f, layer, "ffn_down_exps", TINY_FF, TINY_EMBD, TINY_EXPERTS);
        return;
    }
    tiny_layer_tensor(f, layer, "ffn_gate", TINY_EMBD, TINY_FF, 1);
    tiny_layer_tensor(f, layer, "ffn_up", TINY_EMBD, TINY_FF, 1);
    tiny_layer_tensor(f, layer, "ffn_down", TINY_FF, TINY_EMBD, 1);
}

static inline void tiny_keys(tiny_file *f) {
    put_key(&f->keys, "general.architecture", LQ_GGUF_STRING), put_string(&f->keys, f->arch);
    f->n_keys++;
    tiny_number(f, "block_count", TINY_LAYERS);
    tiny_number(f, "embedding_length", TINY_EMBD);
    tiny_number(f, "feed_forward_length", TINY_FF);
    tiny_number(f, "context_length", 512);
    tiny_number(f, "attention.head_count", 2);
    tiny_numbers(f, "attention.head_count_kv", 1, 1);
    tiny_number(f, "attention.key_length", TINY_HEAD);
    tiny_number(f, "rope.dimension_count", TINY_HEAD);
    tiny_float(f, "rope.freq_base", 10000.0f);
    tiny_float(f, "attention.layer_norm_rms_epsilon", 1e-5f);
    if (strcmp(f->arch, "gemma2") == 0) {
        tiny_number(f, "attention.sliding_window", 20);
        tiny_numbers(f, "attention.sliding_window_pattern", 0, 1);
        tiny_float(f, "rope.freq_base_swa", 5000.0f);
        tiny_float(f, "attn_logit_softcapping", 2.0f);
        tiny_float(f, "final_logit_softcapping", 3.0f);
    } else if (strcmp(f->arch, "qwen3moe") == 0) {
        tiny_number(f, "expert_count", TINY_EXPERTS);
        tiny_number(f, "expert_used_count", 2);
        tiny_number(f, "expert_feed_forward_length", TINY_FF);
    } else if (strcmp(f->arch, "phi3") == 0) {
        tiny_number(f, "rope.scaling.original_context_length", 256);
        tiny_float(f, "rope.scaling.attn_factor", 1.1f);
        tiny_tensor(f, "rope_factors_short.weight", 1, TINY_HEAD / 2, 1, 1);
        tiny_tensor(f, "rope_factors_long.weight", 1, TINY_HEAD / 2, 1, 1);
    } else {
        put_key(&f->keys, "llama.rope.scaling.type", LQ_GGUF_STRING), put_string(&f->keys, "yarn");
        f->n_keys++;
        tiny_float(f, "rope.scaling.factor", 4.0f);
        tiny_float(f, "residual_scale", 0.5f);
    }
}

static inline void build_tiny_model(bytes *b, const char *arch) {
    static tiny_file f;
    memset(&f, 0, sizeof f);
    f.arch = arch;
    tiny_keys(&f);
    tiny_tensor(&f, "token_embd.weight", 2, TINY_EMBD, TINY_VOCAB, 1);
    tiny_tensor(&f, "output_norm.weight", 1, TINY_EMBD, 1, 1);
    for (int i = 0; i < TINY_LAYERS; i++) tiny_layer(&f, i);
    put_header(b, 3, f.n_tensors, f.n_keys);
    put(b, f.keys.data, f.keys.n);
    put(b, f.tensors.data, f.tensors.n);
    while (b->n % 32) put_int(b, 0, 1);
    for (unsigned long long i = 0; i < f.offset; i += 4) { /* positive ones for factors */
        float weight = 0.1f + (float)((int)(i / 4 * 7 % 11)) * 0.05f;
        put(b, &weight, 4);
    }
}

/* Steps each session by one token; logits: NULL, or room for n_logits floats, [n][TINY_VOCAB]. */
static inline lq_status step_tokens(lq_batch *batch, lq_session *const *sessions, const int32_t *tokens, size_t n,
                                    float *logits, size_t n_logits) {
    static _Thread_local lq_step_part parts[64];
    for (size_t i = 0; sessions != NULL && i < n && i < 64; i++) { /* more are refused by their number */
        size_t room = n_logits > i * TINY_VOCAB ? n_logits - i * TINY_VOCAB : 0;
        parts[i] = (lq_step_part){.session = sessions[i],
                                  .tokens = tokens != NULL ? &tokens[i] : NULL,
                                  .n_tokens = 1,
                                  .mode = LQ_LOGITS_LAST,
                                  .logits = logits != NULL ? logits + i * TINY_VOCAB : NULL,
                                  .n_logits = room};
    }
    return lq_batch_step(batch, sessions != NULL ? parts : NULL, n);
}

/* The model that build_tiny_model() makes; the file is gone when this returns. */
static inline lq_model *open_tiny_model(const char *arch, uint32_t n_threads) {
    static bytes b;
    char path[512];
    lq_model_options options;
    lq_model *model = NULL;
    build_tiny_model(&b, arch);
    make_temporary(path, sizeof path);
    write_file(path, b.data, b.n);
    lq_model_options_init(&options);
    options.n_threads = n_threads;
    CHECK_STATUS(lq_model_open(path, &options, &model), LQ_OK);
    unlink(path);
    return model;
}

#endif
