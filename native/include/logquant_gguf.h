/* logquant_gguf.h - reads model files: metadata, tensor table, vocabularies, decoding of weights.
 *
 * SPDX-License-Identifier: MIT
 *
 * GGUF versions 2 and 3, little-endian: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Conventions as in
 * logquant.h.
 */
#ifndef LOGQUANT_GGUF_H
#define LOGQUANT_GGUF_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Value types as the file format numbers them. */
typedef enum lq_gguf_type {
    LQ_GGUF_U8 = 0,
    LQ_GGUF_I8 = 1,
    LQ_GGUF_U16 = 2,
    LQ_GGUF_I16 = 3,
    LQ_GGUF_U32 = 4,
    LQ_GGUF_I32 = 5,
    LQ_GGUF_F32 = 6,
    LQ_GGUF_BOOL = 7,
    LQ_GGUF_STRING = 8,
    LQ_GGUF_ARRAY = 9,
    LQ_GGUF_U64 = 10,
    LQ_GGUF_I64 = 11,
    LQ_GGUF_F64 = 12
} lq_gguf_type;

/* One metadata entry; pointers are borrowed from the lq_gguf. */
typedef struct lq_gguf_entry {
    const char *key; /* not NUL-terminated: key_bytes bytes */
    size_t key_bytes;
    int32_t type;      /* lq_gguf_type */
    int32_t item_type; /* type of an array's items; equal to type otherwise */
    uint64_t n_items;  /* array length; 1 otherwise */
    const void *data;  /* raw little-endian bytes, possibly unaligned; a string's characters; an array's first item */
    uint64_t data_bytes;
} lq_gguf_entry;

typedef struct lq_gguf_tensor {
    const char *name; /* not NUL-terminated: name_bytes bytes */
    size_t name_bytes;
    const char *type_name; /* "Q4_1"; "?" for a type this build does not know; NUL-terminated */
    int32_t type;          /* as the file numbers it */
    uint32_t n_dims;
    uint64_t dims[4];    /* fastest first, unused ones 1 */
    uint64_t data_bytes; /* 0 where the type is unknown */
} lq_gguf_tensor;

/* Opens and checks a file. If a model has several files, name the first (name-00001-of-0000N.gguf): it opens the
 * others, too. Errors: LQ_E_IO, LQ_E_FORMAT, LQ_E_MEMORY. */
LQ_API lq_status lq_gguf_open(const char *path, lq_gguf **out);
LQ_API void lq_gguf_close(lq_gguf **gguf);
LQ_API uint32_t lq_gguf_version(const lq_gguf *gguf);
LQ_API uint64_t lq_gguf_file_bytes(const lq_gguf *gguf);
LQ_API size_t lq_gguf_n_entries(const lq_gguf *gguf);
LQ_API size_t lq_gguf_n_tensors(const lq_gguf *gguf);
LQ_API lq_status lq_gguf_get_entry(const lq_gguf *gguf, size_t index, lq_gguf_entry *out);
LQ_API lq_status lq_gguf_get_tensor(const lq_gguf *gguf, size_t index, lq_gguf_tensor *out);
/* Index of a key, or -1. */
LQ_API int64_t lq_gguf_find(const lq_gguf *gguf, const char *key);
/* Gathers an array of strings: all characters one after another in chars, string i from offsets[i] to offsets[i + 1]
 * (n_items + 1 offsets, in bytes). Call with offsets and chars NULL to learn n_chars (bytes). */
LQ_API lq_status lq_gguf_get_strings(const lq_gguf *gguf, size_t index, uint64_t *offsets, char *chars,
                                     uint64_t *n_chars);

/* The functions below take strings as lq_gguf_get_strings returns them: offsets [n_strings + 1], rising from 0. */

/* Returns LQ_E_FORMAT, naming the first string (from 0) that is not UTF-8, if there is one. */
LQ_API lq_status lq_strings_check_utf8(size_t n_strings, const uint64_t *offsets, const char *chars);

/* Tells which strings occur in a text: sets within[n_strings] to 1 or 0. wanted, [n_strings] or NULL: 0 leaves a string
 * out. separator, a byte or -1 for none: each wanted string must hold it exactly once (else LQ_E_FORMAT), and is
 * searched for without it. The time is linear in the bytes of text and strings. */
LQ_API lq_status lq_strings_within(size_t n_strings, const uint64_t *offsets, const char *chars, const uint8_t *wanted,
                                   int32_t separator, const char *text, uint64_t n_text_bytes, uint8_t *within);

/* Computes the merges of a score-ordered (SentencePiece BPE) vocabulary: the one pair of pieces that each token is made
 * from when neighbouring pieces are merged by falling score, leftmost first. is_piece[i] == 0 keeps token i (control,
 * byte, user-defined tokens) out of all merges. offsets [n_tokens + 1], scores and is_piece [n_tokens].
 * token[k] is made of left[k] and right[k], all ids; a token that is a single character or cannot be reached has no
 * merge. Merges are sorted in the order in which they apply: by falling score. Of equal scores the leftmost pair comes
 * first, which no fixed order can express; here the longer token comes first, which amounts to the same for runs of one
 * character, where Llama 2's vocabulary has equal scores. The three arrays need room for as many items as there are
 * pieces; *n_merges of them are set. */
LQ_API lq_status lq_vocab_merges(size_t n_tokens, const uint64_t *offsets, const char *chars, const float *scores,
                                 const uint8_t *is_piece, int32_t *token, int32_t *left, int32_t *right,
                                 size_t *n_merges);

/* Decodes n_values weights of a GGUF tensor type (scalar reference code). src_bytes must be exactly their size. */
LQ_API lq_status lq_dequantize(int32_t type, const void *src, uint64_t src_bytes, float *dst, uint64_t n_values);

#ifdef __cplusplus
}
#endif

#endif
