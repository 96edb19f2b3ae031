/* keys.h - reads an architecture's hyperparameters from a file, with types and bounds; every error names the key. */
#ifndef LQ_MODEL_KEYS_H
#define LQ_MODEL_KEYS_H

#include "gguf/gguf.h"
#include "model/arch.h"

typedef struct lq_keys {
    const lq_gguf *gguf;
    const lq_arch *arch; /* its name precedes every suffix */
    uint32_t n_layers;   /* an integer may be an array of this length, one for each layer; 0: no arrays */
} lq_keys;

/* Returns LQ_E_UNSUPPORTED if the file has a key that changes what the model computes and that this build does not
 * follow (keys.def). with_experts: the model has experts. n_ctx_train: a sliding window this long hides nothing. */
lq_status lq_keys_check(const lq_keys *keys, bool with_experts, uint32_t n_ctx_train);
/* Returns LQ_E_UNSUPPORTED with the text for such a key. */
lq_status lq_key_refused(const lq_keys *keys, const char *suffix);
/* Finds a key's entry; false if there is none. */
bool lq_key_entry(const lq_keys *keys, const char *suffix, lq_gguf_entry *out);
/* Read one integer for the whole model; an array must hold equal ones, else LQ_E_UNSUPPORTED. An absent optional key
 * leaves *out unchanged. */
lq_status lq_key_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
/* Read the integer of one layer: the one number that the file has for all layers, or the layer's item of an array. */
lq_status lq_key_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least, uint32_t most,
                              uint32_t *out);
lq_status lq_key_optional_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least,
                                       uint32_t most, uint32_t *out);
/* Returns LQ_E_UNSUPPORTED: two layers differ in a key that all layers must share. */
lq_status lq_key_differs(const lq_keys *keys, const char *suffix, uint32_t first, uint32_t other, uint32_t layer);
lq_status lq_key_bool(const lq_keys *keys, const char *suffix, bool *out); /* optional */
/* Reads an optional finite number, an integer or a float in the file: writers differ. */
lq_status lq_key_number(const lq_keys *keys, const char *suffix, float *out);
lq_status lq_key_scale(const lq_keys *keys, const char *suffix, float *out);    /* a number from 0 to 1e30 */
lq_status lq_key_positive(const lq_keys *keys, const char *suffix, float *out); /* the same, but not 0 */
lq_status lq_key_fraction(const lq_keys *keys, const char *suffix, float *out); /* required, 0 <= value < 1 */
/* Reads an optional string: borrowed characters, not NUL-terminated. *found: the key is there. */
lq_status lq_key_string(const lq_keys *keys, const char *suffix, const char **chars, size_t *n_bytes, bool *found);

#endif
