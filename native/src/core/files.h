/* files.h - writes a file with a checksum so that it exists whole or not at all (replace.h). lq_file_replace() is in
 * logquant.h. */
#ifndef LQ_CORE_FILES_H
#define LQ_CORE_FILES_H

#include "core/status.h"

typedef struct lq_file_writer lq_file_writer;

/* Begins a file that will replace what path leads to. Errors: LQ_E_IO with the system's reason, LQ_E_MEMORY. */
lq_status lq_file_create(const char *path, lq_file_writer **out);
lq_status lq_file_write(lq_file_writer *writer, const void *bytes, uint64_t n_bytes);
/* Appends the checksum of all that was written (8 bytes), flushes the file to the disk, and renames it to its path,
 * where it replaces an existing file. Clears *writer in any case; on failure no new file is left. */
lq_status lq_file_commit(lq_file_writer **writer);
/* Discards what was written so far. Clears *writer. */
void lq_file_abandon(lq_file_writer **writer);

/* The checksum that commit appends, 64 bits. It detects every one-byte error; a larger one goes unnoticed with
 * probability 2^-64. */
uint64_t lq_checksum(const void *bytes, uint64_t n_bytes);

#endif
