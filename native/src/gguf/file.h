/* file.h - what an open GGUF file consists of; shared by the parser (gguf.c) and the getters (gguf_get.c). */
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
    uint64_t total_bytes; /* of this file and its parts */
    lq_gguf **parts;      /* [n_parts] the files after the first, whose data tensors point into; NULL = one file */
    uint32_t n_parts;
};

/* One file, whatever it says of parts. */
lq_status lq_gguf_open_file(const char *path, lq_gguf **out);
/* split.c: opens the other parts where the file is the first of several, and takes their tensors in. */
lq_status lq_gguf_join(lq_gguf *gguf);

/* "u32"; NULL for a number the format does not define. */
const char *lq_gguf_type_name(int32_t type);
/* Bytes of a fixed-size value; 0 for strings, arrays and unknown types. */
uint32_t lq_gguf_type_bytes(int32_t type);

#endif
