/* keys.c - hyperparameters by name. */
#include "model/keys.h"

#include <math.h>
#include <stdio.h>

typedef struct key_name {
    char text[128];
} key_name;

static key_name full_name(const lq_keys *keys, const char *suffix) {
    key_name key;
    snprintf(key.text, sizeof key.text, "%s.%s", keys->arch->name, suffix);
    return key;
}

static lq_status bounded(const char *key, uint32_t value, uint32_t least, uint32_t most) {
    if (value >= least && value <= most) return LQ_OK;
    return lq_fail(LQ_E_FORMAT, "key '%s' is %u; it must be %u to %u", key, (unsigned)value, (unsigned)least,
                   (unsigned)most);
}

lq_status lq_key_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    key_name key = full_name(keys, suffix);
    LQ_TRY(lq_gguf_u32_of_each(keys->gguf, key.text, keys->n_layers, out, NULL));
    return bounded(key.text, *out, least, most);
}

lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    key_name key = full_name(keys, suffix);
    bool found;
    LQ_TRY(lq_gguf_u32_of_each(keys->gguf, key.text, keys->n_layers, out, &found));
    return found ? bounded(key.text, *out, least, most) : LQ_OK;
}

lq_status lq_key_bool(const lq_keys *keys, const char *suffix, bool *out) {
    bool found;
    return lq_gguf_bool(keys->gguf, full_name(keys, suffix).text, out, &found);
}

lq_status lq_key_number(const lq_keys *keys, const char *suffix, float *out) {
    key_name key = full_name(keys, suffix);
    uint32_t integer = 0;
    float number = 0.0f;
    bool found;
    if (lq_gguf_find(keys->gguf, key.text) < 0) return LQ_OK;
    if (lq_gguf_u32(keys->gguf, key.text, &integer, &found) == LQ_OK)
        number = (float)integer;
    else
        LQ_TRY(lq_gguf_f32(keys->gguf, key.text, &number, &found));
    if (!isfinite(number)) return lq_fail(LQ_E_FORMAT, "key '%s' must be a finite number", key.text);
    *out = number;
    return LQ_OK;
}

lq_status lq_key_scale(const lq_keys *keys, const char *suffix, float *out) {
    float number = *out;
    LQ_TRY(lq_key_number(keys, suffix, &number));
    if (!(number >= 0.0f && number < 1e30f))
        return lq_fail(LQ_E_FORMAT, "key '%s' must be a number from 0 to 1e30", full_name(keys, suffix).text);
    *out = number;
    return LQ_OK;
}

lq_status lq_key_positive(const lq_keys *keys, const char *suffix, float *out) {
    float number = *out;
    LQ_TRY(lq_key_number(keys, suffix, &number));
    if (!(number > 0.0f && number < 1e30f))
        return lq_fail(LQ_E_FORMAT, "key '%s' must be a positive number", full_name(keys, suffix).text);
    *out = number;
    return LQ_OK;
}

lq_status lq_key_fraction(const lq_keys *keys, const char *suffix, float *out) {
    key_name key = full_name(keys, suffix);
    LQ_TRY(lq_gguf_f32(keys->gguf, key.text, out, NULL));
    if (!(*out >= 0.0f && *out < 1.0f)) return lq_fail(LQ_E_FORMAT, "key '%s' must be between 0 and 1", key.text);
    return LQ_OK;
}

lq_status lq_key_string(const lq_keys *keys, const char *suffix, const char **chars, size_t *n_bytes, bool *found) {
    return lq_gguf_string(keys->gguf, full_name(keys, suffix).text, chars, n_bytes, found);
}

bool lq_key_entry(const lq_keys *keys, const char *suffix, lq_gguf_entry *out) {
    int64_t index = lq_gguf_find(keys->gguf, full_name(keys, suffix).text);
    return index >= 0 && lq_gguf_get_entry(keys->gguf, (size_t)index, out) == LQ_OK;
}

/* ---- keys that are refused */

typedef enum key_kind { READ, NO_EFFECT, REFUSED, OF_EXPERTS, SOFTCAPS, MULTIPLIERS, EXPERTS, WINDOW } key_kind;

typedef struct key_rule {
    const char *suffix;
    key_kind kind;
    double neutral, also_neutral;
} key_rule;

static const key_rule rules[] = {
#define LQ_KEY(suffix, kind, neutral, also_neutral) {suffix, kind, neutral, also_neutral},
#include "model/keys.def"
#undef LQ_KEY
};

/* Whether a key of this kind is refused where it is not neutral. */
static bool is_refused(key_kind kind, const lq_arch *arch, bool with_experts) {
    switch (kind) {
    case READ:
    case NO_EFFECT:
        return false;
    case REFUSED:
        return true;
    case OF_EXPERTS:
        return with_experts;
    case SOFTCAPS:
        return !arch->softcaps;
    case MULTIPLIERS:
        return !arch->multipliers;
    case EXPERTS:
        return arch->experts == LQ_ABSENT;
    case WINDOW:
        return arch->global_period == 0;
    }
    return true;
}

/* All its numbers are; what is no number, says something that nobody here understands. */
static bool is_neutral(const lq_gguf_entry *entry, const key_rule *rule, uint32_t n_ctx_train) {
    for (uint64_t i = 0; i < entry->n_items; i++) {
        double number;
        if (!lq_gguf_number_at(entry, i, &number)) return false;
        if (number == rule->neutral || number == rule->also_neutral) continue;
        if (!(rule->kind == WINDOW && number >= n_ctx_train)) return false;
    }
    return true;
}

lq_status lq_key_refused(const lq_keys *keys, const char *suffix) {
    return lq_fail(LQ_E_UNSUPPORTED, "the model sets '%s.%s', which this build does not run for %s", keys->arch->name,
                   suffix, keys->arch->name);
}

lq_status lq_keys_check(const lq_keys *keys, bool with_experts, uint32_t n_ctx_train) {
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        lq_gguf_entry entry;
        if (!is_refused(rules[i].kind, keys->arch, with_experts) || !lq_key_entry(keys, rules[i].suffix, &entry))
            continue;
        if (!is_neutral(&entry, &rules[i], n_ctx_train)) return lq_key_refused(keys, rules[i].suffix);
    }
    return LQ_OK;
}
