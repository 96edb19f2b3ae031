/* replace_posix.c - replaces files on POSIX systems. */
#if !defined(_WIN32)
#if defined(__linux__)
#define _GNU_SOURCE /* O_TMPFILE, flock */
#endif
#include "core/replace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_LINKS 40 /* as many as Linux follows */
#define MAX_TRIES 100

/* ---- where a path leads */

/* Follows links of the last component only: those of the others the system follows when it renames, too. */
static bool follow_links(lq_replacement *out) {
    char to[LQ_PATH_BYTES];
    memcpy(out->target, out->path, strlen(out->path) + 1);
    for (int i = 0; i < MAX_LINKS; i++) {
        ssize_t n = readlink(out->target, to, sizeof to - 1);
        if (n < 0) return true; /* no link, or no such file yet; opening reports any other error */
        to[n] = '\0';
        size_t n_folder = to[0] == '/' ? 0 : lq_replace_folder_bytes(out);
        if (n_folder + (size_t)n >= sizeof out->target) {
            errno = ENAMETOOLONG;
            return false;
        }
        memcpy(out->target + n_folder, to, (size_t)n + 1);
    }
    errno = ELOOP;
    return false;
}

static const char *kind(mode_t mode) {
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

/* Refuses targets that are no regular files: a rename would replace them by one, for root even a device. */
static lq_status check_target(const lq_replacement *r, struct stat *old, bool *exists) {
    const char *name = r->target + lq_replace_folder_bytes(r);
    *exists = stat(r->target, old) == 0;
    if (!*exists && (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)) {
        errno = errno == ENOENT ? EISDIR : errno;
        return lq_replacement_error(r, "write there");
    }
    if (*exists && !S_ISREG(old->st_mode))
        return lq_fail(LQ_E_IO, "%.300s: cannot write there: it is %s, no regular file; name another one", r->path,
                       kind(old->st_mode));
    return LQ_OK;
}

lq_status lq_replace_look(lq_replacement *out) {
    struct stat old;
    bool exists;
    if (!follow_links(out)) return lq_replacement_error(out, "write there");
    LQ_TRY(check_target(out, &old, &exists));
    /* Renaming needs only the folder's permission, but a file that is write-protected must stay as it is. */
    if (exists && faccessat(AT_FDCWD, out->target, W_OK, AT_EACCESS) != 0)
        return lq_replacement_error(out, "write there");
    return LQ_OK;
}

/* ---- the temporary file: its writer locks it as long as it lives, on whatever machine or in whatever container */

static const char *folder_of(const lq_replacement *r, char folder[LQ_PATH_BYTES]) {
    size_t n = lq_replace_folder_bytes(r);
    if (n == 0) return ".";
    memcpy(folder, r->target, n);
    folder[n] = '\0';
    return folder;
}

static void sweep_one(const char *path) {
    struct stat about;
    int file = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (file < 0) return;
    /* The lock fails while the writer lives, or if the file system has no locks: then the file stays. */
    if (fstat(file, &about) == 0 && S_ISREG(about.st_mode) && flock(file, LOCK_EX | LOCK_NB) == 0) unlink(path);
    close(file);
}

void lq_replace_sweep(const lq_replacement *replacement) {
    char path[LQ_PATH_BYTES];
    size_t n_folder = lq_replace_folder_bytes(replacement);
    DIR *folder = opendir(folder_of(replacement, path));
    if (folder == NULL) return;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        size_t n = strlen(entry->d_name);
        if (!lq_replace_is_ours(replacement, entry->d_name) || n_folder + n >= sizeof path) continue;
        memcpy(path, replacement->target, n_folder);
        memcpy(path + n_folder, entry->d_name, n + 1);
        sweep_one(path);
    }
    closedir(folder);
}

/* Locks a new file. False if another process swept it between its creation and its lock. */
static bool claim(int file, bool named) {
    struct stat about;
    if (flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
    return !named || (fstat(file, &about) == 0 && about.st_nlink != 0);
}

/* Opens a file without a name, which vanishes when its writer dies. It gets a name through /proc. */
static int open_unnamed(const lq_replacement *r) {
#if defined(O_TMPFILE)
    char folder[LQ_PATH_BYTES], through[64];
    int file = open(folder_of(r, folder), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) return -1;
    snprintf(through, sizeof through, "/proc/self/fd/%d", file);
    if (access(through, F_OK) == 0 && claim(file, false)) return file;
    close(file);
#else
    (void)r;
#endif
    return -1;
}

static int open_named(lq_replacement *out) {
    for (int i = 0; i < MAX_TRIES && lq_replace_name(out); i++) {
        int file = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (file >= 0 && claim(file, true)) return file;
        int error = errno;
        if (file >= 0) close(file);
        errno = error;
        if (file < 0 && error != EEXIST) break;
    }
    out->temporary[0] = '\0';
    return -1;
}

bool lq_replace_open(lq_replacement *out) {
    int handle = open_unnamed(out);
    if (handle < 0) handle = open_named(out);
    if (handle < 0) return false;
    out->file = fdopen(handle, "wb");
    if (out->file != NULL) return true;
    int error = errno;
    close(handle);
    if (out->temporary[0] != '\0') unlink(out->temporary);
    out->temporary[0] = '\0';
    errno = error;
    return false;
}

/* ---- renaming it to the target */

/* Gives the new file the old one's owner, group and permissions. If the group cannot be kept, its permissions are
 * removed, so that no other group gets them. */
static bool keep_rights(int file, const struct stat *old) {
    struct stat about;
    mode_t mode = old->st_mode & 0777;
    if (fstat(file, &about) != 0) return false;
    if (about.st_uid != old->st_uid || about.st_gid != old->st_gid) {
        if (fchown(file, old->st_uid, old->st_gid) != 0 && about.st_gid != old->st_gid &&
            fchown(file, (uid_t)-1, old->st_gid) != 0)
            mode &= ~(mode_t)070;
    }
    return fchmod(file, mode) == 0;
}

static bool give_name(lq_replacement *r, int file) {
    char through[64];
    snprintf(through, sizeof through, "/proc/self/fd/%d", file);
    for (int i = 0; i < MAX_TRIES && lq_replace_name(r); i++) {
        if (linkat(AT_FDCWD, through, AT_FDCWD, r->temporary, AT_SYMLINK_FOLLOW) == 0) return true;
        if (errno != EEXIST) break;
    }
    r->temporary[0] = '\0';
    return false;
}

static bool copy(int from, int to) {
    char block[65536];
    off_t at = 0;
    for (;;) {
        ssize_t n = pread(from, block, sizeof block, at);
        if (n == 0) return fsync(to) == 0;
        ssize_t done = n < 0 ? -1 : write(to, block, (size_t)n);
        if (done > 0)
            at += done;
        else if (errno != EINTR)
            return false;
    }
}

/* Makes sure that the file has its temporary name. Where a policy forbids naming an unnamed file (hard links on
 * Android), copies it into one that has a name from the start. Returns that file, or -1 with errno. */
static int with_name(lq_replacement *r, int file) {
    if (r->temporary[0] != '\0' || give_name(r, file)) return file;
    int named = open_named(r);
    if (named < 0 || copy(file, named)) return named;
    int error = errno;
    close(named);
    errno = error;
    return -1;
}

bool lq_replace_commit(lq_replacement *replacement) {
    struct stat old;
    int file = fileno(replacement->file);
    if (fsync(file) != 0) return false;
    bool exists = stat(replacement->target, &old) == 0;
    if (exists && !S_ISREG(old.st_mode)) { /* it was replaced meanwhile */
        errno = S_ISDIR(old.st_mode) ? EISDIR : EINVAL;
        return false;
    }
    int named = with_name(replacement, file);
    if (named < 0) return false;
    bool done = (!exists || keep_rights(named, &old)) && rename(replacement->temporary, replacement->target) == 0;
    int error = errno;
    if (named != file) close(named);
    errno = error;
    return done;
}

void lq_replace_erase(const char *path) { unlink(path); }

#else
typedef int lq_replace_posix_nothing; /* C does not allow a file without declarations */
#endif
