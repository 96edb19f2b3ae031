/* keys.h - the hyperparameters of an architecture in a file: typed, bounded, named in every message. */
#ifndef LQ_MODEL_KEYS_H
#define LQ_MODEL_KEYS_H

#include "gguf/gguf.h"
#include "model/arch.h"

typedef struct lq_keys {
    const lq_gguf *gguf;
    const lq_arch *arch; /* whose name precedes every suffix */
    uint32_t n_layers;   /* an integer may be an array of so many, one for each layer; 0: it may not */
} lq_keys;

/* LQ_E_UNSUPPORTED if the file has a key that changes what the model computes, and is not followed (keys.def).
 * with_experts: the model has some. n_ctx_train: a sliding window as long as that hides nothing. */
lq_status lq_keys_check(const lq_keys *keys, bool with_experts, uint32_t n_ctx_train);
/* The same for one key that must be absent or say so. */
lq_status lq_key_refused(const lq_keys *keys, const char *suffix);
/* The entry, or false. */
bool lq_key_entry(const lq_keys *keys, const char *suffix, lq_gguf_entry *out);
/* One integer for the model: an array must hold equal ones, or it is LQ_E_UNSUPPORTED. An absent optional key leaves
 * *out alone. */
lq_status lq_key_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
/* The integer of one layer: the number that the file has for all, or the layer's in an array. */
lq_status lq_key_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least, uint32_t most,
                              uint32_t *out);
lq_status lq_key_optional_u32_of_layer(const lq_keys *keys, const char *suffix, uint32_t layer, uint32_t least,
                                       uint32_t most, uint32_t *out);
/* LQ_E_UNSUPPORTED: two layers have different integers of a key that all must share. */
lq_status lq_key_differs(const lq_keys *keys, const char *suffix, uint32_t first, uint32_t other, uint32_t layer);
lq_status lq_key_bool(const lq_keys *keys, const char *suffix, bool *out); /* optional */
/* Optional; an integer or a float: writers differ. Finite. */
lq_status lq_key_number(const lq_keys *keys, const char *suffix, float *out);
lq_status lq_key_scale(const lq_keys *keys, const char *suffix, float *out);    /* a number from 0 to 1e30 */
lq_status lq_key_positive(const lq_keys *keys, const char *suffix, float *out); /* the same, but not 0 */
lq_status lq_key_fraction(const lq_keys *keys, const char *suffix, float *out); /* required, 0 <= value < 1 */
/* Optional; true if it is there. Borrowed characters, not NUL-terminated. */
lq_status lq_key_string(const lq_keys *keys, const char *suffix, const char **chars, size_t *n_bytes, bool *found);

#endif
