/* replace_windows.c - replaces files on Windows. */
#if defined(_WIN32)
#include "core/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <string.h>
#include <sys/stat.h>
#include <windows.h>

#define MAX_TRIES 100

static bool widen(const char *path, wchar_t wide[LQ_PATH_BYTES]) {
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, LQ_PATH_BYTES) != 0) return true;
    errno = EINVAL;
    return false;
}

static bool narrow(const wchar_t *wide, char path[LQ_PATH_BYTES]) {
    return WideCharToMultiByte(CP_UTF8, 0, wide, -1, path, LQ_PATH_BYTES, NULL, NULL) != 0;
}

/* Follows a link by opening it and asking for the opened file's path. */
lq_status lq_replace_look(lq_replacement *out) {
    wchar_t wide[LQ_PATH_BYTES], final[LQ_PATH_BYTES];
    memcpy(out->target, out->path, strlen(out->path) + 1);
    if (!widen(out->path, wide)) return lq_replacement_error(out, "write there");
    HANDLE file = CreateFileW(wide, FILE_READ_ATTRIBUTES, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                              OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (file == INVALID_HANDLE_VALUE) return LQ_OK; /* there is no such file yet; opening reports any other error */
    BY_HANDLE_FILE_INFORMATION about = {0};
    bool is_disk = GetFileType(file) == FILE_TYPE_DISK && GetFileInformationByHandle(file, &about);
    bool is_link = (GetFileAttributesW(wide) & FILE_ATTRIBUTE_REPARSE_POINT) != 0;
    DWORD n = is_link ? GetFinalPathNameByHandleW(file, final, LQ_PATH_BYTES, FILE_NAME_NORMALIZED) : 0;
    CloseHandle(file);
    if (!is_disk || (about.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0)
        return lq_fail(LQ_E_IO, "%.300s: cannot write there: it is %s, no regular file; name another one", out->path,
                       is_disk ? "a directory" : "a device");
    if (n != 0 && n < LQ_PATH_BYTES && !narrow(final, out->target)) {
        errno = ENAMETOOLONG;
        return lq_replacement_error(out, "write there");
    }
    return LQ_OK;
}

/* Tries to delete all temporary files: Windows keeps those that a living process holds open. */
void lq_replace_sweep(const lq_replacement *replacement) {
    char path[LQ_PATH_BYTES];
    wchar_t wide[LQ_PATH_BYTES];
    WIN32_FIND_DATAW found;
    size_t n_folder = lq_replace_folder_bytes(replacement);
    if (n_folder + 8 >= sizeof path) return;
    memcpy(path, replacement->target, n_folder);
    memcpy(path + n_folder, ".*.tmp", 7);
    if (!widen(path, wide)) return;
    HANDLE search = FindFirstFileW(wide, &found);
    if (search == INVALID_HANDLE_VALUE) return;
    do {
        char name[LQ_PATH_BYTES];
        if (!narrow(found.cFileName, name) || !lq_replace_is_ours(replacement, name)) continue;
        if (n_folder + strlen(name) >= sizeof path) continue;
        memcpy(path + n_folder, name, strlen(name) + 1);
        lq_replace_erase(path);
    } while (FindNextFileW(search, &found));
    FindClose(search);
}

bool lq_replace_open(lq_replacement *out) {
    wchar_t wide[LQ_PATH_BYTES];
    for (int i = 0; i < MAX_TRIES && lq_replace_name(out) && widen(out->temporary, wide); i++) {
        int file = _wopen(wide, _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
        if (file >= 0 && (out->file = _fdopen(file, "wb")) != NULL) return true;
        if (file >= 0) _close(file);
        if (errno != EEXIST) break;
    }
    out->temporary[0] = '\0';
    return false;
}

/* Closes the file first: Windows cannot rename an open one. */
bool lq_replace_commit(lq_replacement *replacement) {
    wchar_t from[LQ_PATH_BYTES], to[LQ_PATH_BYTES];
    if (_commit(_fileno(replacement->file)) != 0) return false;
    int failed = fclose(replacement->file);
    replacement->file = NULL;
    if (failed != 0 || !widen(replacement->temporary, from) || !widen(replacement->target, to)) return false;
    if (MoveFileExW(from, to, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return true;
    errno = GetLastError() == ERROR_ACCESS_DENIED ? EACCES : EIO;
    return false;
}

void lq_replace_erase(const char *path) {
    wchar_t wide[LQ_PATH_BYTES];
    if (widen(path, wide)) DeleteFileW(wide);
}

#else
typedef int lq_replace_windows_nothing; /* C does not allow a file without declarations */
#endif
