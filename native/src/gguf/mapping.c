/* mapping.c - read-only file mapping for POSIX and Windows. */
#ifndef _WIN32
#define _POSIX_C_SOURCE 200809L
#endif
#include "gguf/mapping.h"

#ifdef _WIN32

#include <windows.h>

static lq_status system_error(const char *path, const char *what) {
    return lq_fail(LQ_E_IO, "%s: cannot %s: Windows error %lu", path, what, (unsigned long)GetLastError());
}

lq_status lq_mapping_open(const char *path, lq_mapping *out) {
    wchar_t wide[32768];
    LARGE_INTEGER size;
    HANDLE view = NULL;
    lq_status status = LQ_OK;
    *out = (lq_mapping){NULL, 0, -1};
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 32768) == 0)
        return lq_fail(LQ_E_IO, "%s: the path is not valid UTF-8 or is too long", path);
    HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE) return system_error(path, "open");
    if (GetFileType(file) != FILE_TYPE_DISK || !GetFileSizeEx(file, &size)) {
        status = lq_fail(LQ_E_IO, "%s: not a regular file", path);
    } else if (size.QuadPart == 0) {
        status = lq_fail(LQ_E_FORMAT, "%s: the file is empty", path);
    } else if ((uint64_t)size.QuadPart > SIZE_MAX) {
        status = lq_fail(LQ_E_IO, "%s: the file is larger than this process can address", path);
    } else if (!(view = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL))) {
        status = system_error(path, "map");
    } else if (!(out->bytes = MapViewOfFile(view, FILE_MAP_READ, 0, 0, 0))) {
        status = system_error(path, "map");
    } else {
        out->n_bytes = (uint64_t)size.QuadPart;
    }
    if (view) CloseHandle(view); /* the view keeps both alive */
    CloseHandle(file);
    return status;
}

bool lq_mapping_is_whole(const lq_mapping *mapping) {
    (void)mapping;
    return true;
}

void lq_mapping_close(lq_mapping *mapping) {
    if (mapping->bytes) UnmapViewOfFile(mapping->bytes);
    *mapping = (lq_mapping){NULL, 0, -1};
}

#else

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static lq_status system_error(const char *path, const char *what, int error) {
    char text[128];
    if (strerror_r(error, text, sizeof text) != 0)
        return lq_fail(LQ_E_IO, "%s: cannot %s: error %d", path, what, error);
    return lq_fail(LQ_E_IO, "%s: cannot %s: %s", path, what, text);
}

static lq_status map_descriptor(const char *path, int file, lq_mapping *out) {
    struct stat about;
    if (fstat(file, &about) != 0) return system_error(path, "read", errno);
    if (S_ISDIR(about.st_mode)) return lq_fail(LQ_E_IO, "%s: is a directory, not a file", path);
    if (!S_ISREG(about.st_mode)) return lq_fail(LQ_E_IO, "%s: not a regular file", path);
    if (about.st_size == 0) return lq_fail(LQ_E_FORMAT, "%s: the file is empty", path);
    if ((uint64_t)about.st_size > SIZE_MAX)
        return lq_fail(LQ_E_IO, "%s: the file is larger than this process can address", path);
    void *bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED) return system_error(path, "map", errno);
    out->bytes = bytes;
    out->n_bytes = (uint64_t)about.st_size;
    return LQ_OK;
}

lq_status lq_mapping_open(const char *path, lq_mapping *out) {
    int file;
    *out = (lq_mapping){NULL, 0, -1};
    /* O_NONBLOCK: opening a FIFO that nobody writes to would wait forever. It changes nothing for regular files. */
    do file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (file < 0 && errno == EINTR);
    if (file < 0) return system_error(path, "open", errno);
    lq_status status = map_descriptor(path, file, out);
    if (status == LQ_OK)
        out->file = file;
    else
        close(file);
    return status;
}

bool lq_mapping_is_whole(const lq_mapping *mapping) {
    struct stat about;
    return fstat(mapping->file, &about) != 0 || (uint64_t)about.st_size >= mapping->n_bytes;
}

void lq_mapping_close(lq_mapping *mapping) {
    if (mapping->bytes) {
        munmap((void *)mapping->bytes, (size_t)mapping->n_bytes);
        close(mapping->file);
    }
    *mapping = (lq_mapping){NULL, 0, -1};
}

#endif
