/* config.c - reads the hyperparameters, and checks each against a bound before anything is computed from it. */
#include <math.h>
#include <string.h>

#include "core/system.h"
#include "model/keys.h"
#include "model/model.h"

/* These bounds are far above any model made so far. They keep n_heads * head_dim within 32 bits; larger products are
 * computed in 64. */
#define MAX_HEADS 4096
#define MAX_HEAD_DIM 1024
#define MAX_WIDTH (1u << 22)
#define MAX_EXPERTS 4096
#define MAX_CONTEXT (1u << 28)

static lq_status read_sizes(lq_keys *keys, lq_config *c) {
    void *memory;
    LQ_TRY(lq_key_u32(keys, "block_count", 1, LQ_MAX_LAYERS, &c->n_layers));
    LQ_TRY(lq_alloc((uint64_t)c->n_layers * sizeof(lq_layer_shape), "layers", &memory));
    c->layers = memory;
    keys->n_layers = c->n_layers;
    LQ_TRY(lq_key_u32(keys, "embedding_length", 1, MAX_WIDTH, &c->n_embd));
    for (uint32_t i = 0; i < c->n_layers; i++)
        LQ_TRY(lq_key_u32_of_layer(keys, "feed_forward_length", i, 1, MAX_WIDTH, &c->layers[i].n_ff));
    return lq_key_u32(keys, "context_length", 1, MAX_CONTEXT, &c->n_ctx_train);
}

/* Checks a key that repeats another one's value: it must be absent, 0 or equal. */
static lq_status read_same(const lq_keys *keys, const char *suffix, uint32_t wanted) {
    uint32_t value = wanted;
    LQ_TRY(lq_key_optional_u32(keys, suffix, 0, UINT32_MAX, &value));
    return value == wanted || value == 0 ? LQ_OK : lq_key_refused(keys, suffix);
}

/* Reads a layer without KV heads: it has a short convolution in place of attention. */
static lq_status read_short_conv(const lq_keys *keys, lq_layer_shape *s) {
    s->mixer = LQ_MIXER_SHORT_CONV;
    s->n_heads = 0;
    return lq_key_u32(keys, "shortconv.l_cache", 2, LQ_CONV_MAX_TAPS, &s->n_taps);
}

static lq_status read_heads_of_layer(const lq_keys *keys, const lq_config *c, uint32_t layer) {
    lq_layer_shape *s = &c->layers[layer];
    uint32_t value_dim, least = keys->arch->short_conv ? 0 : 1;
    LQ_TRY(lq_key_u32_of_layer(keys, "attention.head_count", layer, 1, MAX_HEADS, &s->n_heads));
    s->n_kv_heads = s->n_heads;
    LQ_TRY(lq_key_optional_u32_of_layer(keys, "attention.head_count_kv", layer, least, s->n_heads, &s->n_kv_heads));
    if (s->n_kv_heads == 0) return read_short_conv(keys, s);
    if (s->n_heads % s->n_kv_heads != 0)
        return lq_fail(LQ_E_FORMAT, "%u attention heads cannot share %u KV heads evenly in layer %u",
                       (unsigned)s->n_heads, (unsigned)s->n_kv_heads, (unsigned)layer + 1);
    s->head_dim = c->n_embd / s->n_heads;
    LQ_TRY(lq_key_optional_u32_of_layer(keys, "attention.key_length", layer, 2, MAX_HEAD_DIM, &s->head_dim));
    if (s->head_dim < 2 || s->head_dim > MAX_HEAD_DIM)
        return lq_fail(LQ_E_FORMAT, "heads of %u values in layer %u: they must have 2 to %d", (unsigned)s->head_dim,
                       (unsigned)layer + 1, MAX_HEAD_DIM);
    value_dim = s->head_dim;
    LQ_TRY(lq_key_optional_u32_of_layer(keys, "attention.value_length", layer, 1, MAX_HEAD_DIM, &value_dim));
    if (value_dim != s->head_dim)
        return lq_fail(LQ_E_UNSUPPORTED, "keys of %u and values of %u a head: only equal sizes are supported",
                       (unsigned)s->head_dim, (unsigned)value_dim);
    return LQ_OK;
}

/* Rope and the scale of scores are the same for all layers with attention, and so must be the size of their heads. */
static lq_status read_common_heads(const lq_keys *keys, lq_config *c) {
    uint32_t first = c->n_layers;
    for (uint32_t i = c->n_layers; i-- > 0;)
        if (c->layers[i].n_kv_heads != 0) first = i;
    if (first == c->n_layers)
        return lq_fail(LQ_E_UNSUPPORTED,
                       "no layer attends: key '%s.attention.head_count_kv' is 0 for all; only models with at least one "
                       "layer of attention are supported",
                       keys->arch->name);
    c->n_heads = c->layers[first].n_heads;
    c->n_kv_heads = c->layers[first].n_kv_heads;
    c->head_dim = c->layers[first].head_dim;
    for (uint32_t i = first; i < c->n_layers; i++) {
        const lq_layer_shape *s = &c->layers[i];
        if (s->n_kv_heads != 0 && s->head_dim != c->head_dim)
            return lq_fail(LQ_E_UNSUPPORTED,
                           "heads of %u values in layer %u and of %u in layer %u; only models whose layers are all "
                           "alike in this are supported",
                           (unsigned)c->head_dim, (unsigned)first + 1, (unsigned)s->head_dim, (unsigned)i + 1);
    }
    return LQ_OK;
}

static lq_status read_heads(const lq_keys *keys, lq_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++) LQ_TRY(read_heads_of_layer(keys, c, i));
    LQ_TRY(read_common_heads(keys, c));
    c->n_rot = c->head_dim;
    LQ_TRY(lq_key_optional_u32(keys, "rope.dimension_count", 2, c->head_dim, &c->n_rot));
    if (c->n_rot % 2 != 0) return lq_fail(LQ_E_FORMAT, "rope over %u values a head: must be even", (unsigned)c->n_rot);
    LQ_TRY(read_same(keys, "attention.key_length_swa", c->head_dim));
    LQ_TRY(read_same(keys, "attention.value_length_swa", c->head_dim));
    LQ_TRY(read_same(keys, "rope.dimension_count_swa", c->n_rot));
    return read_same(keys, "embedding_length_out", c->n_embd);
}

/* Reads attention.sliding_window_pattern: a number n if every nth layer sees the whole context (0: none does), or a
 * flag for each layer, true if it slides (llama.cpp, src/llama-hparams.cpp). */
static lq_status read_pattern(const lq_keys *keys, lq_config *c) {
    static const char suffix[] = "attention.sliding_window_pattern";
    lq_gguf_entry entry;
    uint32_t period = keys->arch->global_period;
    bool found = lq_key_entry(keys, suffix, &entry);
    if (!found || entry.type != LQ_GGUF_ARRAY) {
        if (found) LQ_TRY(lq_key_u32(keys, suffix, 0, UINT32_MAX, &period));
        for (uint32_t i = 0; i < c->n_layers; i++)
            if (period == 0 || (i + 1) % period != 0) c->layers[i].mixer = LQ_MIXER_SLIDING;
        return LQ_OK;
    }
    if (entry.n_items != c->n_layers)
        return lq_fail(LQ_E_FORMAT, "key '%s.%s' holds %llu flags for %u layers", keys->arch->name, suffix,
                       (unsigned long long)entry.n_items, (unsigned)c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        double flag;
        if (!lq_gguf_number_at(&entry, i, &flag) || (flag != 0.0 && flag != 1.0))
            return lq_fail(LQ_E_FORMAT, "key '%s.%s' must hold a flag for each layer, true (1) if it slides",
                           keys->arch->name, suffix);
        if (flag != 0.0) c->layers[i].mixer = LQ_MIXER_SLIDING;
    }
    return LQ_OK;
}

/* Marks layers as sliding even if the window hides nothing: sliding layers may have a rope table of their own. */
static lq_status read_window(const lq_keys *keys, lq_config *c) {
    const lq_arch *arch = keys->arch;
    bool any = false;
    c->window = arch->window;
    if (arch->global_period == 0) return LQ_OK;
    LQ_TRY(lq_key_optional_u32(keys, "attention.sliding_window", 0, MAX_CONTEXT, &c->window));
    if (c->window == 0) return LQ_OK;
    LQ_TRY(read_pattern(keys, c));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (c->layers[i].mixer != LQ_MIXER_SLIDING) continue;
        c->layers[i].window = c->window;
        any = true;
    }
    if (!any) c->window = 0;
    return LQ_OK;
}

/* Reads the numbers of experts. lq_keys_check() refuses shared experts, groups, and routers other than a softmax whose
 * weights add up to 1. */
static lq_status read_experts(const lq_keys *keys, lq_config *c) {
    uint32_t least = keys->arch->experts == LQ_REQUIRED ? 1 : 0;
    if (keys->arch->experts == LQ_ABSENT) return LQ_OK;
    LQ_TRY((least ? lq_key_u32 : lq_key_optional_u32)(keys, "expert_count", least, MAX_EXPERTS, &c->n_experts));
    if (c->n_experts == 0) return LQ_OK;
    LQ_TRY(lq_key_u32(keys, "expert_used_count", 1, c->n_experts, &c->n_experts_used));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        c->layers[i].ffn = LQ_FFN_EXPERTS;
        LQ_TRY(lq_key_optional_u32_of_layer(keys, "expert_feed_forward_length", i, 1, MAX_WIDTH, &c->layers[i].n_ff));
    }
    return LQ_OK;
}

/* A key may switch rope off for the whole model, an architecture for every no_rope_period-th layer. */
static lq_status read_rope(const lq_keys *keys, lq_config *c) {
    uint32_t period = keys->arch->no_rope_period;
    bool is_on = true;
    if (keys->arch->rope_switch) LQ_TRY(lq_key_bool(keys, "rope.scaling.finetuned", &is_on));
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].has_rope = is_on && (period == 0 || (i + 1) % period != 0);
    return LQ_OK;
}

static lq_status read_softcaps(const lq_keys *keys, lq_config *c) {
    if (!keys->arch->softcaps) return LQ_OK;
    c->attn_softcap = keys->arch->attn_softcap;
    c->final_softcap = keys->arch->final_softcap;
    LQ_TRY(lq_key_scale(keys, "attn_logit_softcapping", &c->attn_softcap));
    return lq_key_scale(keys, "final_logit_softcapping", &c->final_softcap);
}

/* Reads Granite's four multipliers (IBM 2024): attention, embedding and residual scale multiply, logit_scale divides.
 * Architectures without them have the first alone. */
static lq_status read_multipliers(const lq_keys *keys, lq_config *c) {
    static const char *const suffixes[] = {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"};
    float *targets[] = {&c->attn_scale, &c->embed_scale, &c->residual_scale, &c->logit_scale};
    for (size_t i = 0; i < (keys->arch->multipliers ? 4u : 1u); i++) {
        float value = 0.0f;
        LQ_TRY(lq_key_scale(keys, suffixes[i], &value));
        if (value != 0.0f) *targets[i] = i == 3 ? 1.0f / value : value;
    }
    return LQ_OK;
}

/* Refuses a hidden_activation that is not the architecture's, by the names that transformers has for it. */
static lq_status read_activation(const lq_keys *keys) {
    static const char *const silu[] = {"silu", "swish"}, *const gelu[] = {"gelu_pytorch_tanh", "gelu_tanh"};
    const char *const *names = keys->arch->activation == LQ_ACT_SILU ? silu : gelu;
    const char *name;
    size_t n;
    bool found;
    LQ_TRY(lq_key_string(keys, "hidden_activation", &name, &n, &found));
    for (size_t i = 0; i < 2 && found; i++)
        if (strlen(names[i]) == n && memcmp(names[i], name, n) == 0) found = false;
    return found ? lq_key_refused(keys, "hidden_activation") : LQ_OK;
}

lq_status lq_config_read(const lq_gguf *gguf, const lq_arch *arch, lq_config *c) {
    lq_keys keys = {gguf, arch, 0};
    LQ_TRY(read_sizes(&keys, c));
    LQ_TRY(read_heads(&keys, c));
    LQ_TRY(read_window(&keys, c));
    LQ_TRY(read_experts(&keys, c));
    LQ_TRY(lq_keys_check(&keys, c->n_experts != 0, c->n_ctx_train));
    LQ_TRY(read_activation(&keys));
    LQ_TRY(read_softcaps(&keys, c));
    LQ_TRY(read_rope(&keys, c));
    LQ_TRY(lq_key_fraction(&keys, "attention.layer_norm_rms_epsilon", &c->norm_eps));
    bool wide = arch->wide_scale_depth != 0 && c->n_layers == arch->wide_scale_depth;
    c->attn_scale = 1.0f / sqrtf((float)(wide ? c->n_embd / c->n_heads : c->head_dim));
    c->embed_scale = arch->scale_embedding ? sqrtf((float)c->n_embd) : 1.0f;
    c->residual_scale = 1.0f;
    c->logit_scale = 1.0f;
    return read_multipliers(&keys, c);
}
