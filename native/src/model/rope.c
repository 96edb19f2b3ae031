/* rope.c - computes rotation frequencies: plain, scaled (linear, YaRN), or divided by factors that the file holds
 * (Llama 3, LongRoPE). */
#include <math.h>
#include <string.h>

#include "core/system.h"
#include "model/keys.h"
#include "model/model.h"

typedef enum scaling_kind { SCALING_NONE = 0, SCALING_LINEAR, SCALING_YARN, SCALING_FACTORS } scaling_kind;

typedef struct scaling {
    scaling_kind kind;
    float factor;
    float beta_fast, beta_slow; /* turns within the original context: a pair below slow is scaled, above fast not */
    float n_ctx_original;
    float magnitude;
} scaling;

static const double pi = 3.14159265358979323846;

static lq_status read_kind(const lq_keys *keys, bool has_factor, scaling_kind *out) {
    static const struct {
        const char *name;
        scaling_kind kind;
    } kinds[] = {
        {"none", SCALING_NONE}, {"linear", SCALING_LINEAR}, {"yarn", SCALING_YARN}, {"longrope", SCALING_FACTORS}};
    const char *name;
    size_t n;
    bool found;
    LQ_TRY(lq_key_string(keys, "rope.scaling.type", &name, &n, &found));
    *out = has_factor ? SCALING_LINEAR : SCALING_NONE; /* where the file names no kind */
    if (!found) return LQ_OK;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        *out = kinds[i].kind;
        if (strlen(kinds[i].name) == n && memcmp(kinds[i].name, name, n) == 0) return LQ_OK;
    }
    return lq_fail(LQ_E_UNSUPPORTED,
                   "rope scaling '%.*s' is not supported; this build has: none, linear, yarn, longrope",
                   (int)(n < 40 ? n : 40), name);
}

/* YaRN stretches q and k by 0.1 ln(factor) + 1 (Peng et al. 2023, arXiv 2309.00071, section 3.4), LongRoPE by
 * sqrt(1 + ln(factor) / ln(original)) (Ding et al. 2024, arXiv 2402.13753); a file's attn_factor replaces the latter
 * and multiplies the former. */
static float default_magnitude(const scaling *s, const lq_config *c) {
    double ratio = (double)c->n_ctx_train / s->n_ctx_original;
    if (s->kind == SCALING_YARN && s->factor > 1.0f) return 0.1f * logf(s->factor) + 1.0f;
    if (s->kind == SCALING_FACTORS && ratio > 1.0 && s->n_ctx_original > 1.0f)
        return (float)sqrt(1.0 + log(ratio) / log((double)s->n_ctx_original));
    return 1.0f;
}

static lq_status read_scaling(const lq_keys *keys, const lq_config *c, bool long_factors, scaling *s) {
    float attn_factor = 0.0f, old_factor = 0.0f;
    *s = (scaling){.beta_fast = 32.0f, .beta_slow = 1.0f, .n_ctx_original = (float)c->n_ctx_train};
    LQ_TRY(lq_key_scale(keys, "rope.scale_linear", &old_factor)); /* the key in files of 2023 */
    s->factor = old_factor;
    LQ_TRY(lq_key_scale(keys, "rope.scaling.factor", &s->factor));
    LQ_TRY(read_kind(keys, s->factor > 0.0f, &s->kind));
    if (s->kind == SCALING_NONE && long_factors) s->kind = SCALING_FACTORS;
    if (s->kind == SCALING_NONE || s->factor == 0.0f) s->factor = 1.0f;
    LQ_TRY(lq_key_positive(keys, "rope.scaling.original_context_length", &s->n_ctx_original));
    LQ_TRY(lq_key_positive(keys, "rope.scaling.yarn_beta_fast", &s->beta_fast));
    LQ_TRY(lq_key_positive(keys, "rope.scaling.yarn_beta_slow", &s->beta_slow));
    LQ_TRY(lq_key_scale(keys, "rope.scaling.attn_factor", &attn_factor));
    s->magnitude = default_magnitude(s, c);
    if (attn_factor > 0.0f) s->magnitude = s->kind == SCALING_YARN ? s->magnitude * attn_factor : attn_factor;
    return LQ_OK;
}

/* The index of the pair, not rounded, that turns n_turns times within the original context. */
static double pair_of(double n_turns, const scaling *s, double base, uint32_t n_rot) {
    return n_rot * log(s->n_ctx_original / (n_turns * 2.0 * pi)) / (2.0 * log(base));
}

/* How much of pair i is scaled, from 0 to 1 (arXiv 2309.00071, section 3.2). */
static double scaled_part(const scaling *s, double base, uint32_t n_rot, uint32_t i) {
    if (s->kind != SCALING_YARN) return 1.0;
    double low = floor(pair_of(s->beta_fast, s, base, n_rot)), high = ceil(pair_of(s->beta_slow, s, base, n_rot));
    low = low > 0.0 ? low : 0.0;
    high = high < n_rot - 1.0 ? high : n_rot - 1.0;
    double part = (i - low) / (high > low ? high - low : 0.001);
    return part < 0.0 ? 0.0 : (part > 1.0 ? 1.0 : part);
}

static lq_status fill(const lq_model *model, lq_rope_table *table, double base, const scaling *s,
                      const float *factors) {
    uint32_t n_rot = model->config.n_rot;
    void *memory;
    LQ_TRY(lq_alloc(n_rot / 2 * sizeof(float), "rope table", &memory));
    table->frequencies = memory;
    table->magnitude = s->magnitude;
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double frequency = pow(base, -2.0 * i / n_rot), part = scaled_part(s, base, n_rot, i);
        frequency *= part / s->factor + (1.0 - part);
        table->frequencies[i] = (float)(factors != NULL ? frequency / factors[i] : frequency);
    }
    return LQ_OK;
}

/* Gives sliding layers a table of their own if their rotation differs, even if their window hides nothing: most
 * architectures do not scale it, because sliding layers never look far. */
static lq_status load_sliding(lq_model *model, const lq_keys *keys, float base, bool has_factors, const scaling *s) {
    static const scaling plain = {.factor = 1.0f, .magnitude = 1.0f};
    const lq_arch *arch = model->arch;
    float base_sliding = arch->rope_base_sliding > 0.0f ? arch->rope_base_sliding : base;
    if (model->config.window == 0) return LQ_OK;
    LQ_TRY(lq_key_positive(keys, "rope.local.freq_base", &base_sliding));
    LQ_TRY(lq_key_positive(keys, "rope.freq_base_swa", &base_sliding));
    if (base_sliding == base && arch->scale_sliding) return LQ_OK;
    if (has_factors) return lq_key_refused(keys, "rope.freq_base_swa");
    return fill(model, &model->rope_sliding, base_sliding, arch->scale_sliding ? s : &plain, NULL);
}

lq_status lq_rope_load(lq_model *model, const float *factors, const float *long_factors) {
    lq_keys keys = {model->gguf, model->arch, 0};
    float base = model->arch->rope_base;
    scaling s;
    LQ_TRY(lq_key_positive(&keys, "rope.global.freq_base", &base));
    LQ_TRY(lq_key_positive(&keys, "rope.freq_base", &base));
    LQ_TRY(read_scaling(&keys, &model->config, long_factors != NULL, &s));
    if (s.kind == SCALING_FACTORS && factors == NULL)
        return lq_fail(LQ_E_FORMAT,
                       "rope scaling 'longrope' without the tensors rope_factors_short, rope_factors_long");
    model->config.n_ctx_original = (uint32_t)s.n_ctx_original;
    LQ_TRY(fill(model, &model->rope_global, base, &s, factors));
    if (long_factors != NULL) LQ_TRY(fill(model, &model->rope_long, base, &s, long_factors));
    return load_sliding(model, &keys, base, factors != NULL, &s);
}

const lq_rope_table *lq_rope_of_context(const lq_model *model, uint32_t n_ctx) {
    bool is_long = model->rope_long.frequencies != NULL && n_ctx > model->config.n_ctx_original;
    return is_long ? &model->rope_long : &model->rope_global;
}
