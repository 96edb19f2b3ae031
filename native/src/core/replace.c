/* replace.c - replaces files as a whole: the code that all systems share. */
#include "core/replace.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "core/hash.h"
#include "core/system.h"

#define KEPT_NAME_BYTES 100 /* bytes of the target's name in the temporary one, so that this is never too long */
#define DIGITS 12

lq_status lq_replacement_error(const lq_replacement *replacement, const char *what) {
    int error = errno;
    return lq_fail(LQ_E_IO, "%.300s: cannot %s: %s", replacement->path, what,
                   error != 0 ? strerror(error) : "unknown error");
}

size_t lq_replace_folder_bytes(const lq_replacement *replacement) {
    size_t n = 0;
    for (const char *at = replacement->target; *at != '\0'; at++) {
        bool separates = *at == '/';
#ifdef _WIN32
        separates = separates || *at == '\\' || *at == ':';
#endif
        if (separates) n = (size_t)(at - replacement->target) + 1;
    }
    return n;
}

/* How many bytes of the target's name its temporary files keep; a UTF-8 character is never cut. */
static size_t kept_bytes(const char *name) {
    size_t n = strlen(name);
    if (n <= KEPT_NAME_BYTES) return n;
    n = KEPT_NAME_BYTES;
    while (n > 0 && ((unsigned char)name[n] & 0xc0) == 0x80) n--;
    return n;
}

bool lq_replace_name(lq_replacement *out) {
    static atomic_uint_fast64_t n_names;
    double now = lq_seconds();
    uint64_t bits, place = (uint64_t)(uintptr_t)&n_names; /* differs between processes where addresses are random */
    size_t n_folder = lq_replace_folder_bytes(out);
    const char *name = out->target + n_folder;
    memcpy(&bits, &now, sizeof bits);
    bits = lq_hash_mix(bits ^ lq_hash_mix(place + atomic_fetch_add(&n_names, 1))) & 0xffffffffffffu;
    int n = snprintf(out->temporary, sizeof out->temporary, "%.*s.%.*s.lq-%012llx.tmp", (int)n_folder, out->target,
                     (int)kept_bytes(name), name, (unsigned long long)bits);
    if (n > 0 && (size_t)n < sizeof out->temporary) return true;
    out->temporary[0] = '\0';
    errno = ENAMETOOLONG;
    return false;
}

bool lq_replace_is_ours(const lq_replacement *replacement, const char *name) {
    const char *target = replacement->target + lq_replace_folder_bytes(replacement);
    size_t n = kept_bytes(target);
    if (name[0] != '.' || strncmp(name + 1, target, n) != 0) return false;
    name += 1 + n;
    if (strncmp(name, ".lq-", 4) != 0 || strspn(name + 4, "0123456789abcdef") != DIGITS) return false;
    return strcmp(name + 4 + DIGITS, ".tmp") == 0;
}

lq_status lq_replacement_begin(const char *path, lq_replacement *out) {
    out->file = NULL;
    out->temporary[0] = '\0';
    if (strlen(path) >= sizeof out->path) return lq_fail(LQ_E_IO, "%.60s...: the path is too long", path);
    memcpy(out->path, path, strlen(path) + 1);
    LQ_TRY(lq_replace_look(out));
    lq_replace_sweep(out);
    errno = 0;
    return lq_replace_open(out) ? LQ_OK : lq_replacement_error(out, "write there");
}

lq_status lq_replacement_finish(lq_replacement *replacement) {
    errno = 0;
    lq_status status = LQ_OK;
    if (fflush(replacement->file) != 0 || !lq_replace_commit(replacement))
        status = lq_replacement_error(replacement, "write");
    else
        replacement->temporary[0] = '\0'; /* the file has its final name now */
    lq_replacement_undo(replacement);
    return status;
}

void lq_replacement_undo(lq_replacement *replacement) {
    if (replacement->file != NULL) fclose(replacement->file);
    replacement->file = NULL;
    if (replacement->temporary[0] != '\0') lq_replace_erase(replacement->temporary);
    replacement->temporary[0] = '\0';
}
