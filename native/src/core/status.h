/* status.h - how every fallible function reports: lq_status, and one line of text in a thread-local slot. */
#ifndef LQ_CORE_STATUS_H
#define LQ_CORE_STATUS_H

#include "logquant.h"

#if defined(__GNUC__)
#define LQ_PRINTF(format_index, first_arg) __attribute__((format(printf, format_index, first_arg)))
#else
#define LQ_PRINTF(format_index, first_arg)
#endif

/* Stores the text (cut at 511 bytes) and returns status, so that callers write: return lq_fail(LQ_E_ARG, "..."). */
lq_status lq_fail(lq_status status, const char *format, ...) LQ_PRINTF(2, 3);

#define LQ_TRY(expression)                                                                                             \
    do {                                                                                                               \
        lq_status lq_try_status_ = (expression);                                                                       \
        if (lq_try_status_ != LQ_OK) return lq_try_status_;                                                            \
    } while (0)

#endif
