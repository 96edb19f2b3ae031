/* files.h - writing a file with a checksum so that it is there whole or not at all (replace.h). lq_file_replace() is in
 * logquant.h. */
#ifndef LQ_CORE_FILES_H
#define LQ_CORE_FILES_H

#include "core/status.h"

typedef struct lq_file_writer lq_file_writer;

/* Begins a file that will replace what path leads to. LQ_E_IO with the system's reason, LQ_E_MEMORY. */
lq_status lq_file_create(const char *path, lq_file_writer **out);
lq_status lq_file_write(lq_file_writer *writer, const void *bytes, uint64_t n_bytes);
/* Appends the checksum of all that was written (8 bytes), makes sure that it is on the disk, and puts the file in its
 * place, where it replaces what was there. Clears *writer in any case; on failure nothing is left. */
lq_status lq_file_commit(lq_file_writer **writer);
/* Removes what was written so far. */
void lq_file_abandon(lq_file_writer **writer);

/* The checksum that commit appends: 64 bits, changed by any change of one byte, and of a longer text but for 1 in 2^64.
 */
uint64_t lq_checksum(const void *bytes, uint64_t n_bytes);

#endif
