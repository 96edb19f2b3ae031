/* formats.h - GGUF tensor types as data: block struct sizes and scalar decoding.
 *
 * To add a type: one file pair x.c/x.h with the block struct, a size assertion and lq_dequantize_x(), and one line in
 * formats.def. It then runs everywhere through decoding; fast paths are added per backend later. */
#ifndef LQ_FORMATS_H
#define LQ_FORMATS_H

#include <stddef.h>
#include <stdint.h>

/* Decodes n_values (a multiple of the block length) from consecutive blocks. src may be unaligned. */
typedef void (*lq_dequantize_fn)(float *dst, const void *src, size_t n_values);

typedef struct lq_format {
    int32_t type;         /* as GGUF numbers it */
    const char *name;     /* "Q4_1" */
    uint32_t block_len;   /* values a block, 1 for plain types */
    uint32_t block_bytes; /* bytes a block */
    lq_dequantize_fn dequantize;
} lq_format;

/* GGUF type numbers of the formats in formats.def: LQ_TYPE_F32 ... */
enum {
#define LQ_FORMAT(id, name, number, block_len, block_bytes) LQ_TYPE_##name = number,
#include "formats/formats.def"
#undef LQ_FORMAT
};

/* One past the largest type number in formats.def: the size of tables indexed by type. */
#define LQ_TYPE_COUNT 48

/* The format of a type number, or NULL if this build does not know it. */
const lq_format *lq_format_find(int32_t type);

/* Bytes of a row of n_values; 0 if n_values is no multiple of the block length. */
static inline size_t lq_format_row_bytes(const lq_format *format, size_t n_values) {
    if (n_values % format->block_len != 0) return 0;
    return n_values / format->block_len * format->block_bytes;
}

#endif
