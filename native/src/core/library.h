/* library.h - loads shared libraries while the program runs. */
#ifndef LQ_CORE_LIBRARY_H
#define LQ_CORE_LIBRARY_H

#include "core/status.h"

/* Loads a library, which stays for the life of the process, and finds a symbol in it. path: a file, or a plain name
 * that the system searches for. LQ_E_IO: the library, or one that it needs, is missing; LQ_E_UNSUPPORTED: it has no
 * such symbol. */
lq_status lq_library_find(const char *path, const char *symbol, void **out);

#endif
