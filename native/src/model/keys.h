/* keys.h - the hyperparameters of an architecture in a file: typed, bounded, named in every message. */
#ifndef LQ_MODEL_KEYS_H
#define LQ_MODEL_KEYS_H

#include "gguf/gguf.h"
#include "model/arch.h"

typedef struct lq_keys {
    const lq_gguf *gguf;
    const lq_arch *arch; /* whose name precedes every suffix */
} lq_keys;

/* An absent optional key leaves *out alone. */
lq_status lq_key_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
lq_status lq_key_optional_u32(const lq_keys *keys, const char *suffix, uint32_t least, uint32_t most, uint32_t *out);
lq_status lq_key_bool(const lq_keys *keys, const char *suffix, bool *out); /* optional */
/* Optional; an integer or a float: writers differ. Finite. */
lq_status lq_key_number(const lq_keys *keys, const char *suffix, float *out);
lq_status lq_key_scale(const lq_keys *keys, const char *suffix, float *out);    /* a number from 0 to 1e30 */
lq_status lq_key_positive(const lq_keys *keys, const char *suffix, float *out); /* the same, but not 0 */
lq_status lq_key_fraction(const lq_keys *keys, const char *suffix, float *out); /* required, 0 <= value < 1 */
/* Optional; true if it is there. Borrowed characters, not NUL-terminated. */
lq_status lq_key_string(const lq_keys *keys, const char *suffix, const char **chars, size_t *n_bytes, bool *found);

#endif
