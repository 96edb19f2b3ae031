/* replace.h - creates a file, or replaces an existing one, in one step: whole, or not at all.
 *
 * The new file is written in the target's folder, without a name if the system can do that, and renamed when it is
 * complete. Symbolic links are followed: the file they lead to is replaced, the links stay. An existing file keeps its
 * permissions, and its owner and group where that is allowed; only the owner may read a new file, since conversations
 * are private. Another hard link to the old file keeps the old contents. */
#ifndef LQ_CORE_REPLACE_H
#define LQ_CORE_REPLACE_H

#include <stdbool.h>
#include <stdio.h>

#include "core/status.h"

#define LQ_PATH_BYTES 4096

typedef struct lq_replacement {
    FILE *file;                    /* open for writing between begin and finish; NULL otherwise */
    char path[LQ_PATH_BYTES];      /* as the caller named it */
    char target[LQ_PATH_BYTES];    /* the same after following links */
    char temporary[LQ_PATH_BYTES]; /* the file's name until it is renamed to target; "" while it has none */
} lq_replacement;

/* Removes temporary files of killed writers of the same path, and opens a file to write to. LQ_E_IO, with the system's
 * reason, also if the path leads to something that is no regular file. After a failure nothing has to be undone. */
lq_status lq_replacement_begin(const char *path, lq_replacement *out);
/* Flushes the file to the disk and renames it to the target. On failure an existing file stays, and no other file is
 * left. Closes the file in any case. */
lq_status lq_replacement_finish(lq_replacement *replacement);
/* Closes the file and discards it; does nothing after finish or a begin that failed. */
void lq_replacement_undo(lq_replacement *replacement);

/* Returns LQ_E_IO with the path, what could not be done, and the system's reason (errno). */
lq_status lq_replacement_error(const lq_replacement *replacement, const char *what);

/* ---- between replace.c and the systems: replace_posix.c, replace_windows.c */

/* Follows the links of out->path and sets out->target. LQ_E_IO if that exists and is no regular file. */
lq_status lq_replace_look(lq_replacement *out);
/* Removes temporary files of the same target whose writers no longer run. */
void lq_replace_sweep(const lq_replacement *replacement);
/* Opens the new file; on failure returns false and sets errno. */
bool lq_replace_open(lq_replacement *out);
/* Flushes the file, whose buffer must be empty, to the disk and renames it to the target. On failure returns false and
 * sets errno. */
bool lq_replace_commit(lq_replacement *replacement);
/* Removes a file by its name. */
void lq_replace_erase(const char *path);

/* Sets out->temporary to the next name to try for a temporary file, in the target's folder and of the form
 * ".NAME.lq-0123456789ab.tmp", where a long NAME is cut. If the path gets too long, returns false and sets errno. */
bool lq_replace_name(lq_replacement *out);
/* Whether the name of a file in that folder is that of a temporary file of the same target. */
bool lq_replace_is_ours(const lq_replacement *replacement, const char *name);
/* How many bytes of the target precede its last component, the separator included. */
size_t lq_replace_folder_bytes(const lq_replacement *replacement);

#endif
