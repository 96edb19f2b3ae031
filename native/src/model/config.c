/* config.c - hyperparameters: every key against a bound, before anything is computed from it. */
#include <math.h>
#include <string.h>

#include "model/keys.h"
#include "model/model.h"

/* Bounds that keep every product of two sizes within 32 bits; far above any model made so far. */
#define MAX_LAYERS 4096
#define MAX_HEADS 4096
#define MAX_HEAD_DIM 1024
#define MAX_WIDTH (1u << 22)
#define MAX_EXPERTS 4096
#define MAX_CONTEXT (1u << 28)

/* Keys that change the arithmetic in ways the architecture does not declare: better refused than ignored. Writers store
 * 0 for "not used", in either kind of number. */
static lq_status refuse_keys(const lq_keys *keys, const char *const *suffixes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float number = 0.0f;
        LQ_TRY(lq_key_number(keys, suffixes[i], &number));
        if (number == 0.0f) continue;
        return lq_fail(LQ_E_UNSUPPORTED, "the model sets '%s.%s', which this build does not run for %s",
                       keys->arch->name, suffixes[i], keys->arch->name);
    }
    return LQ_OK;
}

static lq_status read_sizes(const lq_keys *keys, lq_config *c) {
    LQ_TRY(lq_key_u32(keys, "block_count", 1, MAX_LAYERS, &c->n_layers));
    LQ_TRY(lq_key_u32(keys, "embedding_length", 1, MAX_WIDTH, &c->n_embd));
    LQ_TRY(lq_key_u32(keys, "feed_forward_length", 1, MAX_WIDTH, &c->n_ff));
    LQ_TRY(lq_key_u32(keys, "context_length", 1, MAX_CONTEXT, &c->n_ctx_train));
    return LQ_OK;
}

static lq_status read_heads(const lq_keys *keys, lq_config *c) {
    uint32_t value_dim;
    LQ_TRY(lq_key_u32(keys, "attention.head_count", 1, MAX_HEADS, &c->n_heads));
    c->n_kv_heads = c->n_heads;
    LQ_TRY(lq_key_optional_u32(keys, "attention.head_count_kv", 1, c->n_heads, &c->n_kv_heads));
    if (c->n_heads % c->n_kv_heads != 0)
        return lq_fail(LQ_E_FORMAT, "%u attention heads cannot share %u KV heads evenly", (unsigned)c->n_heads,
                       (unsigned)c->n_kv_heads);
    c->head_dim = c->n_embd / c->n_heads;
    LQ_TRY(lq_key_optional_u32(keys, "attention.key_length", 2, MAX_HEAD_DIM, &c->head_dim));
    if (c->head_dim < 2 || c->head_dim > MAX_HEAD_DIM)
        return lq_fail(LQ_E_FORMAT, "heads of %u values: they must have 2 to %d", (unsigned)c->head_dim, MAX_HEAD_DIM);
    value_dim = c->head_dim;
    LQ_TRY(lq_key_optional_u32(keys, "attention.value_length", 1, MAX_HEAD_DIM, &value_dim));
    if (value_dim != c->head_dim)
        return lq_fail(LQ_E_UNSUPPORTED, "keys of %u and values of %u a head: only equal sizes are supported",
                       (unsigned)c->head_dim, (unsigned)value_dim);
    c->n_rot = c->head_dim;
    LQ_TRY(lq_key_optional_u32(keys, "rope.dimension_count", 2, c->head_dim, &c->n_rot));
    if (c->n_rot % 2 != 0) return lq_fail(LQ_E_FORMAT, "rope over %u values a head: must be even", (unsigned)c->n_rot);
    return LQ_OK;
}

/* A window that hides nothing within the context the model was trained for is none: Phi-3 files with 128k contexts have
 * one of 256k. */
static lq_status read_window(const lq_keys *keys, lq_config *c) {
    const lq_arch *arch = keys->arch;
    if (arch->global_period == 0) return LQ_OK;
    LQ_TRY((arch->window == LQ_REQUIRED ? lq_key_u32 : lq_key_optional_u32)(keys, "attention.sliding_window", 0,
                                                                            MAX_CONTEXT, &c->window));
    if (c->window >= c->n_ctx_train) c->window = 0;
    return LQ_OK;
}

static lq_status read_experts(const lq_keys *keys, lq_config *c) {
    static const char *const foreign[] = {"expert_shared_count", "expert_group_count",
                                          "expert_shared_feed_forward_length"};
    const lq_arch *arch = keys->arch;
    float gating = 1.0f, scale = 1.0f;
    bool normalised = true;
    if (arch->experts != LQ_ABSENT) {
        uint32_t least = arch->experts == LQ_REQUIRED ? 1 : 0;
        LQ_TRY((least ? lq_key_u32 : lq_key_optional_u32)(keys, "expert_count", least, MAX_EXPERTS, &c->n_experts));
    } else {
        static const char *const count[] = {"expert_count"};
        LQ_TRY(refuse_keys(keys, count, 1));
    }
    if (c->n_experts == 0) return LQ_OK;
    LQ_TRY(refuse_keys(keys, foreign, sizeof foreign / sizeof foreign[0]));
    LQ_TRY(lq_key_u32(keys, "expert_used_count", 1, c->n_experts, &c->n_experts_used));
    c->n_ff_expert = c->n_ff;
    LQ_TRY(lq_key_optional_u32(keys, "expert_feed_forward_length", 1, MAX_WIDTH, &c->n_ff_expert));
    LQ_TRY(lq_key_number(keys, "expert_gating_func", &gating));
    LQ_TRY(lq_key_number(keys, "expert_weights_scale", &scale));
    LQ_TRY(lq_key_bool(keys, "expert_weights_norm", &normalised));
    if ((gating != 0.0f && gating != 1.0f) || (scale != 0.0f && scale != 1.0f) || !normalised)
        return lq_fail(LQ_E_UNSUPPORTED,
                       "experts are only run with softmax weights that add up to 1, not as this %s "
                       "model weights them",
                       arch->name);
    return LQ_OK;
}

static lq_status read_softcaps(const lq_keys *keys, lq_config *c) {
    static const char *const suffixes[] = {"attn_logit_softcapping", "final_logit_softcapping"};
    if (!keys->arch->softcaps) return refuse_keys(keys, suffixes, 2);
    c->attn_softcap = keys->arch->attn_softcap;
    c->final_softcap = keys->arch->final_softcap;
    LQ_TRY(lq_key_scale(keys, suffixes[0], &c->attn_softcap));
    return lq_key_scale(keys, suffixes[1], &c->final_softcap);
}

/* Granite's four (IBM 2024): the embedding's, the residual's and the attention's multiply, the logits' divides. */
static lq_status read_multipliers(const lq_keys *keys, lq_config *c) {
    static const char *const suffixes[] = {"embedding_scale", "residual_scale", "attention.scale", "logit_scale"};
    float *targets[] = {&c->embed_scale, &c->residual_scale, &c->attn_scale, &c->logit_scale};
    if (!keys->arch->multipliers) return refuse_keys(keys, suffixes, 4);
    for (size_t i = 0; i < 4; i++) {
        float value = 0.0f;
        LQ_TRY(lq_key_scale(keys, suffixes[i], &value));
        if (value != 0.0f) *targets[i] = i == 3 ? 1.0f / value : value;
    }
    return LQ_OK;
}

lq_status lq_config_read(const lq_gguf *gguf, const lq_arch *arch, lq_config *c) {
    lq_keys keys = {gguf, arch};
    LQ_TRY(read_sizes(&keys, c));
    LQ_TRY(read_heads(&keys, c));
    LQ_TRY(read_window(&keys, c));
    LQ_TRY(read_experts(&keys, c));
    LQ_TRY(read_softcaps(&keys, c));
    LQ_TRY(lq_key_fraction(&keys, "attention.layer_norm_rms_epsilon", &c->norm_eps));
    bool wide = arch->wide_scale_depth != 0 && c->n_layers == arch->wide_scale_depth;
    c->attn_scale = 1.0f / sqrtf((float)(wide ? c->n_embd / c->n_heads : c->head_dim));
    c->embed_scale = arch->scale_embedding ? sqrtf((float)c->n_embd) : 1.0f;
    c->residual_scale = 1.0f;
    c->logit_scale = 1.0f;
    return read_multipliers(&keys, c);
}
