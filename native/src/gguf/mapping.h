/* mapping.h - maps a whole file into memory, read-only. */
#ifndef LQ_GGUF_MAPPING_H
#define LQ_GGUF_MAPPING_H

#include <stdbool.h>

#include "core/status.h"

typedef struct lq_mapping {
    const uint8_t *bytes; /* page aligned; NULL when nothing is mapped */
    uint64_t n_bytes;
    int file; /* POSIX: stays open as long as the mapping, so that the size can be checked */
} lq_mapping;

/* Maps a regular, non-empty file. Errors: LQ_E_IO with the system's reason, LQ_E_FORMAT for an empty file.
 * If someone cuts a mapped file short, reading what was cut off ends the process (SIGBUS): a library cannot prevent
 * that without a signal handler. lq_mapping_is_whole() makes it unlikely. Windows does not let a mapped file be cut. */
lq_status lq_mapping_open(const char *path, lq_mapping *out);
/* Whether the file still holds all that was mapped; one system call. */
bool lq_mapping_is_whole(const lq_mapping *mapping);
void lq_mapping_close(lq_mapping *mapping);

#endif
