/* status.c - the thread-local error text. */
#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char error_text[512] = "no error";

lq_status lq_fail(lq_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(error_text, sizeof error_text, format, args);
    va_end(args);
    /* Keep it one line for the user, whatever bytes a file name or key contains. */
    for (char *c = error_text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
    return status;
}

const char *lq_error_message(void) { return error_text; }
