/* files.c - files that are replaced as a whole, for POSIX and Windows. */
#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#endif
#include "core/files.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "core/system.h"

#ifdef _WIN32
#include <io.h>
#include <process.h>
#include <windows.h>
#else
#include <unistd.h>
#endif

#define BUFFER_BYTES 65536 /* a multiple of 8: the checksum is by words */
#define MAX_PATH_BYTES 4096
#define TEMPORARY_BYTES (MAX_PATH_BYTES + 32)
#define SEED 0x70796c6f67717561u

struct lq_file_writer {
    FILE *file;
    uint64_t checksum;
    size_t n_buffered;
    char path[MAX_PATH_BYTES];
    char temporary[TEMPORARY_BYTES];
    uint8_t buffer[BUFFER_BYTES];
};

/* ---- what differs between systems */

#ifdef _WIN32

static bool widen(const char *path, wchar_t wide[TEMPORARY_BYTES]) {
    return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, TEMPORARY_BYTES) != 0;
}

static FILE *open_beside(const char *path, char temporary[TEMPORARY_BYTES]) {
    wchar_t wide[TEMPORARY_BYTES];
    snprintf(temporary, TEMPORARY_BYTES, "%s.%ld.tmp", path, (long)_getpid());
    return widen(temporary, wide) ? _wfopen(wide, L"wb") : NULL;
}

static int sync_file(FILE *file) { return _commit(_fileno(file)); }

static int replace(const char *from, const char *to) {
    wchar_t wide_from[TEMPORARY_BYTES], wide_to[TEMPORARY_BYTES];
    if (!widen(from, wide_from) || !widen(to, wide_to)) return -1;
    return MoveFileExW(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) ? 0 : -1;
}

static void erase(const char *path) {
    wchar_t wide[TEMPORARY_BYTES];
    if (widen(path, wide)) _wremove(wide);
}

#else

/* A name of its own, so that two threads may save to one path; for the user alone, since conversations are private. */
static FILE *open_beside(const char *path, char temporary[TEMPORARY_BYTES]) {
    snprintf(temporary, TEMPORARY_BYTES, "%s.XXXXXX", path);
    int handle = mkstemp(temporary);
    if (handle < 0) return NULL;
    FILE *file = fdopen(handle, "wb");
    if (file == NULL) {
        close(handle);
        remove(temporary);
    }
    return file;
}

static int sync_file(FILE *file) { return fsync(fileno(file)); }
static int replace(const char *from, const char *to) { return rename(from, to); }
static void erase(const char *path) { remove(path); }

#endif

/* ---- writing */

static lq_status system_error(const lq_file_writer *writer, const char *what) {
    int error = errno;
    return lq_fail(LQ_E_IO, "%.300s: cannot %s: %s", writer->path, what,
                   error != 0 ? strerror(error) : "unknown error");
}

lq_status lq_file_create(const char *path, lq_file_writer **out) {
    void *memory;
    *out = NULL;
    if (strlen(path) >= MAX_PATH_BYTES) return lq_fail(LQ_E_IO, "%.60s...: the path is too long", path);
    LQ_TRY(lq_alloc(sizeof(lq_file_writer), "file", &memory));
    lq_file_writer *writer = memory;
    memcpy(writer->path, path, strlen(path) + 1);
    writer->checksum = SEED;
    errno = 0;
    writer->file = open_beside(path, writer->temporary);
    if (writer->file == NULL) {
        lq_status status = system_error(writer, "write there");
        lq_free(writer);
        return status;
    }
    *out = writer;
    return LQ_OK;
}

static uint64_t add_words(uint64_t checksum, const uint8_t *bytes, uint64_t n_bytes) {
    for (; n_bytes >= 8; bytes += 8, n_bytes -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        checksum = lq_hash_mix(checksum ^ word);
    }
    if (n_bytes == 0) return checksum;
    uint64_t word = (uint64_t)n_bytes << 56; /* so that a tail of zeros counts */
    for (uint64_t i = 0; i < n_bytes; i++) word |= (uint64_t)bytes[i] << (8 * i);
    return lq_hash_mix(checksum ^ word);
}

uint64_t lq_checksum(const void *bytes, uint64_t n_bytes) { return add_words(SEED, bytes, n_bytes); }

static lq_status flush(lq_file_writer *writer) {
    size_t n = writer->n_buffered;
    writer->checksum = add_words(writer->checksum, writer->buffer, n);
    writer->n_buffered = 0;
    errno = 0;
    if (n != 0 && fwrite(writer->buffer, 1, n, writer->file) != n) return system_error(writer, "write");
    return LQ_OK;
}

lq_status lq_file_write(lq_file_writer *writer, const void *bytes, uint64_t n_bytes) {
    const uint8_t *at = bytes;
    while (n_bytes != 0) {
        size_t room = BUFFER_BYTES - writer->n_buffered, n = n_bytes < room ? (size_t)n_bytes : room;
        memcpy(writer->buffer + writer->n_buffered, at, n);
        writer->n_buffered += n;
        at += n;
        n_bytes -= n;
        if (writer->n_buffered == BUFFER_BYTES) LQ_TRY(flush(writer));
    }
    return LQ_OK;
}

static lq_status finish(lq_file_writer *writer) {
    LQ_TRY(flush(writer));
    errno = 0;
    if (fwrite(&writer->checksum, 1, sizeof writer->checksum, writer->file) != sizeof writer->checksum ||
        fflush(writer->file) != 0 || sync_file(writer->file) != 0)
        return system_error(writer, "write");
    int failed = fclose(writer->file);
    writer->file = NULL;
    if (failed != 0 || replace(writer->temporary, writer->path) != 0) return system_error(writer, "write");
    return LQ_OK;
}

lq_status lq_file_commit(lq_file_writer **writer) {
    lq_status status = finish(*writer);
    if (status != LQ_OK) {
        lq_file_abandon(writer);
        return status;
    }
    lq_free(*writer);
    *writer = NULL;
    return LQ_OK;
}

void lq_file_abandon(lq_file_writer **writer) {
    if (writer == NULL || *writer == NULL) return;
    lq_file_writer *held = *writer;
    *writer = NULL;
    if (held->file != NULL) fclose(held->file);
    erase(held->temporary);
    lq_free(held);
}
