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
    LQ_TRY(lq_gguf_u32(keys->gguf, key.text, out, NULL));
    return bounded(key.text, *out, least, most);
}

lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out) {
    key_name key = full_name(keys, suffix);
    bool found;
    LQ_TRY(lq_gguf_u32(keys->gguf, key.text, out, &found));
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
