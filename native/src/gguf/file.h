/* file.h - the contents of an open GGUF file, shared by the parser (gguf.c, split.c) and the getters (gguf_get.c). */
#ifndef LQ_GGUF_FILE_H
#define LQ_GGUF_FILE_H

#include "gguf/gguf.h"
#include "gguf/mapping.h"
#include "gguf/names.h"

struct lq_gguf {
    lq_mapping file;
    uint32_t version;
    uint32_t alignment;
    size_t n_entries;
    size_t n_tensors;
    lq_gguf_entry *entries;       /* [n_entries] in file order */
    lq_gguf_tensor_info *tensors; /* [n_tensors] in file order */
    lq_name_table keys;
    lq_name_table names;
    char *path;
    uint64_t total_bytes; /* bytes of this file and of its other parts */
    lq_gguf **parts;      /* [n_parts] the files after the first, which tensors may point into; NULL = one file */
    uint32_t n_parts;
};

/* Opens one file by itself, even if it is a part of several. */
lq_status lq_gguf_open_file(const char *path, lq_gguf **out);
/* split.c: if the file is the first of several, opens the others and adds their tensors to its table. */
lq_status lq_gguf_join(lq_gguf *gguf);

/* The name of a value type, such as "u32"; NULL for a number the format does not define. */
const char *lq_gguf_type_name(int32_t type);
/* Bytes of a fixed-size value; 0 for strings, arrays and unknown types. */
uint32_t lq_gguf_type_bytes(int32_t type);

#endif
