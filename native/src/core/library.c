/* library.c - loading shared libraries, for POSIX and Windows. */
#include "core/library.h"

#include <string.h>

#ifdef _WIN32
#include <windows.h>

lq_status lq_library_find(const char *path, const char *symbol, void **out) {
    *out = NULL;
    /* A plain name must not be searched for in the current folder. */
    DWORD where = strpbrk(path, "/\\") != NULL ? LOAD_WITH_ALTERED_SEARCH_PATH : LOAD_LIBRARY_SEARCH_DEFAULT_DIRS;
    HMODULE library = LoadLibraryExA(path, NULL, where);
    if (library == NULL)
        return lq_fail(LQ_E_IO, "%.300s: cannot be loaded: error %lu", path, (unsigned long)GetLastError());
    FARPROC found = GetProcAddress(library, symbol);
    if (found == NULL) return lq_fail(LQ_E_UNSUPPORTED, "%.300s: has no function %s", path, symbol);
    memcpy(out, &found, sizeof *out);
    return LQ_OK;
}

#else
#include <dlfcn.h>

lq_status lq_library_find(const char *path, const char *symbol, void **out) {
    *out = NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return lq_fail(LQ_E_IO, "%.400s", dlerror());
    *out = dlsym(library, symbol);
    if (*out == NULL) return lq_fail(LQ_E_UNSUPPORTED, "%.300s: has no function %s", path, symbol);
    return LQ_OK;
}

#endif
