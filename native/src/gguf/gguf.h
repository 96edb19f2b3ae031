/* gguf.h - a GGUF file, read-only and memory-mapped: typed getters and the tensor table. It knows nothing of models.
 *
 * Everything the file says is checked once, in lq_gguf_open: counts against the bytes that are left, every length and
 * offset with checked arithmetic, tensor data inside the file. After that, data and sizes below can be trusted to lie
 * in the mapping; what values mean (head counts, vocabulary sizes) has to be checked by whoever uses them. */
#ifndef LQ_GGUF_H
#define LQ_GGUF_H

#include <stdbool.h>

#include "core/status.h"
#include "formats/formats.h"
#include "logquant_gguf.h"

/* Tensor as found in the file; name is not NUL-terminated. */
typedef struct lq_gguf_tensor_info {
    const char *name;
    size_t name_bytes;
    int32_t type;
    const lq_format *format; /* NULL: a type this build does not know (data and data_bytes are then NULL and 0) */
    uint32_t n_dims;         /* 1..4 */
    uint64_t dims[4];        /* fastest first, each >= 1, unused ones 1; dims[0] a multiple of the block length */
    const uint8_t *data;     /* in the mapping; aligned as the file aligns it */
    uint64_t data_bytes;
} lq_gguf_tensor_info;

/* Finds a tensor by name, in constant time on average; NULL if absent. */
const lq_gguf_tensor_info *lq_gguf_find_tensor(const lq_gguf *gguf, const char *name);
const lq_gguf_tensor_info *lq_gguf_tensor_at(const lq_gguf *gguf, size_t index);

/* The bytes of the mapped files: one, or all parts of a model. */
size_t lq_gguf_n_files(const lq_gguf *gguf);
const uint8_t *lq_gguf_file_at(const lq_gguf *gguf, size_t index, uint64_t *n_bytes);

/* LQ_E_IO if a file was cut short since it was opened; call it before much of a file is read. */
lq_status lq_gguf_check_whole(const lq_gguf *gguf);

/* Typed getters. Any integer type is accepted for u32/u64 if the value fits; F32 and F64 for f32.
 * If found is NULL, an absent key is LQ_E_FORMAT; otherwise *found tells, and an absent key leaves *out unchanged.
 * A key of another type, or a value that does not fit, is LQ_E_FORMAT with the key in the text. */
lq_status lq_gguf_u32(const lq_gguf *gguf, const char *key, uint32_t *out, bool *found);
/* Reads a key that holds one number, or an array of n_items numbers, of which it takes the one at index: writers store
 * some numbers once for each layer. n_items 0: no array is accepted. */
lq_status lq_gguf_u32_at(const lq_gguf *gguf, const char *key, uint64_t index, uint64_t n_items, uint32_t *out,
                         bool *found);
lq_status lq_gguf_f32(const lq_gguf *gguf, const char *key, float *out, bool *found);
lq_status lq_gguf_bool(const lq_gguf *gguf, const char *key, bool *out, bool *found);
/* *chars: borrowed, not NUL-terminated. */
lq_status lq_gguf_string(const lq_gguf *gguf, const char *key, const char **chars, size_t *n_bytes, bool *found);
/* Length and item type of an array. */
lq_status lq_gguf_array(const lq_gguf *gguf, const char *key, int32_t *item_type, uint64_t *n_items, const void **data,
                        bool *found);
/* Reads item index (below n_items) of an entry as a number, a bool as 0 or 1; false if it is neither. */
bool lq_gguf_number_at(const lq_gguf_entry *entry, uint64_t index, double *out);
/* The path that the file was opened with, for messages. */
const char *lq_gguf_path(const lq_gguf *gguf);

#endif
