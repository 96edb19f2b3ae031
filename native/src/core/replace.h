/* replace.h - a file that takes the place of another, or of none, in one step: whole, or not at all.
 *
 * It is written beside its place, without a name where the system can do that, and renamed when it is complete.
 * Symbolic links are followed: what they lead to is replaced, and they stay. An existing file's permissions stay, and
 * its owner and group where that is allowed; a new file is for its owner alone, since conversations are private.
 * Another hard link to the old file keeps the old contents. */
#ifndef LQ_CORE_REPLACE_H
#define LQ_CORE_REPLACE_H

#include <stdbool.h>
#include <stdio.h>

#include "core/status.h"

#define LQ_PATH_BYTES 4096

typedef struct lq_replacement {
    FILE *file;                    /* open for writing between begin and finish; NULL otherwise */
    char path[LQ_PATH_BYTES];      /* as the caller named it */
    char target[LQ_PATH_BYTES];    /* where it leads */
    char temporary[LQ_PATH_BYTES]; /* the file's name until it is in its place; "" while it has none */
} lq_replacement;

/* Removes what writers of the same path left behind that were killed, and opens a file to write to. LQ_E_IO with the
 * system's reason, or where the path leads to what is no regular file, which is refused before anything is lost;
 * nothing is left to undo then. */
lq_status lq_replacement_begin(const char *path, lq_replacement *out);
/* Makes sure that what was written is on the disk, and puts it in its place. On failure what was there stays, and
 * nothing else is left. Closes the file in any case. */
lq_status lq_replacement_finish(lq_replacement *replacement);
/* Closes the file and forgets what was written; nothing after finish or a begin that failed. */
void lq_replacement_undo(lq_replacement *replacement);

/* LQ_E_IO: the path, what cannot be done, the system's reason (errno). */
lq_status lq_replacement_error(const lq_replacement *replacement, const char *what);

/* ---- between replace.c and the systems: replace_posix.c, replace_windows.c */

/* Where a path leads, links followed, in out->target. LQ_E_IO for what is no regular file. */
lq_status lq_replace_look(lq_replacement *out);
/* Removes temporary files of the same target whose writers are gone. */
void lq_replace_sweep(const lq_replacement *replacement);
/* Opens the file; false with errno. */
bool lq_replace_open(lq_replacement *out);
/* The file's buffer is flushed: to the disk and to its place. False with errno. */
bool lq_replace_commit(lq_replacement *replacement);
/* Removes a file by its name. */
void lq_replace_erase(const char *path);

/* The next name to try for a temporary file, in out->temporary: in the target's folder, of the form
 * ".NAME.lq-0123456789ab.tmp", a long NAME cut. False with errno if there is no room for it. */
bool lq_replace_name(lq_replacement *out);
/* Whether a file in that folder is a temporary one of the same target, by its name. */
bool lq_replace_is_ours(const lq_replacement *replacement, const char *name);
/* Bytes of the target before its last component, the separator included. */
size_t lq_replace_folder_bytes(const lq_replacement *replacement);

#endif
