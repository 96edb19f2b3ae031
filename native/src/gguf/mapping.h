/* mapping.h - a whole file, read-only in memory. */
#ifndef LQ_GGUF_MAPPING_H
#define LQ_GGUF_MAPPING_H

#include "core/status.h"

typedef struct lq_mapping {
    const uint8_t *bytes; /* page aligned; NULL when nothing is mapped */
    uint64_t n_bytes;
} lq_mapping;

/* Maps a regular, non-empty file. Errors: LQ_E_IO with the system's reason, LQ_E_FORMAT for an empty file.
 * A file that is cut short by someone else while it is mapped cannot be guarded against: do not write to model files.
 */
lq_status lq_mapping_open(const char *path, lq_mapping *out);
void lq_mapping_close(lq_mapping *mapping);

#endif
