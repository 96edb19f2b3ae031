/* keys.c - reads hyperparameters by name, and refuses keys that this build does not follow. */
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

static bool is_array(const lq_keys *keys, const char *suffix) {
    lq_gguf_entry entry;
    return lq_key_entry(keys, suffix, &entry) && entry.type == LQ_GGUF_ARRAY;
}

/* Reads the integer of one layer and checks its bounds. If found is NULL, the key is required. */
static lq_status read_u32(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least, uint32_t most,
                          uint32_t *out, bool *found) {
    key_name key = full_name(keys, suffix);
    char of_layer[40] = "";
    uint32_t value = *out;
    LQ_TRY(lq_gguf_u32_at(keys->gguf, key.text, layer, keys->n_layers, &value, found));
    if (found != NULL && !*found) return LQ_OK;
    *out = value;
    if (value >= least && value <= most) return LQ_OK;
    if (is_array(keys, suffix)) snprintf(of_layer, sizeof of_layer, " for layer %u", (unsigned)layer + 1);
    return lq_fail(LQ_E_FORMAT, "key '%s' is %u%s; it must be %u to %u", key.text, (unsigned)value, of_layer,
                   (unsigned)least, (unsigned)most);
}

/* Reads an integer that all layers must share. */
static lq_status read_same_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out,
                               bool *found) {
    uint32_t other = 0;
    LQ_TRY(read_u32(keys, suffix, 0, least, most, out, found));
    for (uint32_t i = 1; i < keys->n_layers && is_array(keys, suffix); i++) {
        LQ_TRY(read_u32(keys, suffix, i, 0, UINT32_MAX, &other, NULL));
        if (other != *out) return lq_key_differs(keys, suffix, *out, other, i);
    }
    return LQ_OK;
}

lq_status lq_key_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    return read_same_u32(keys, suffix, least, most, out, NULL);
}

lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    bool found;
    return read_same_u32(keys, suffix, least, most, out, &found);
}

lq_status lq_key_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least, uint32_t most,
                              uint32_t *out) {
    return read_u32(keys, suffix, layer, least, most, out, NULL);
}

lq_status lq_key_optional_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least,
                                       uint32_t most, uint32_t *out) {
    bool found;
    return read_u32(keys, suffix, layer, least, most, out, &found);
}

lq_status lq_key_differs(const lq_keys *keys, const char *suffix, uint32_t first, uint32_t other, uint32_t layer) {
    return lq_fail(LQ_E_UNSUPPORTED,
                   "key '%s' is %u for the first layer and %u for layer %u; only models whose layers are all alike in "
                   "this are supported",
                   full_name(keys, suffix).text, (unsigned)first, (unsigned)other, (unsigned)layer + 1);
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

typedef enum key_kind {
    READ,
    NO_EFFECT,
    REFUSED,
    OF_EXPERTS,
    SOFTCAPS,
    MULTIPLIERS,
    EXPERTS,
    SHORT_CONV,
    WINDOW
} key_kind;

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

/* Whether a key of this kind is refused unless its value is neutral. */
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
    case SHORT_CONV:
        return !arch->short_conv;
    case WINDOW:
        return arch->global_period == 0;
    }
    return true;
}

/* Whether all numbers of an entry are neutral. Other types of values never are: their meaning is not known here. */
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
