/* system.h - what the operating system is asked for: aligned and reserved memory, free memory, cores. */
#ifndef LQ_CORE_SYSTEM_H
#define LQ_CORE_SYSTEM_H

#include <stdint.h>

#include "core/status.h"

/* Zeroed memory, 64-byte aligned; LQ_E_MEMORY with the purpose in the text. */
lq_status lq_alloc(uint64_t n_bytes, const char *purpose, void **out);
void lq_free(void *memory);

/* Address space that the system backs with memory page by page as it is touched, so that a large budget costs only
 * what is used. Zeroed, page aligned. */
lq_status lq_reserve(uint64_t n_bytes, const char *purpose, void **out);
void lq_release(void *memory, uint64_t n_bytes);

/* Of reserved memory that is full by now and will be read often: asks the system to hold it in huge pages, whose
 * addresses are found sooner. For those that lie in it whole: Linux begins large reservations at one since 6.7. */
void lq_settle(void *memory, uint64_t n_bytes);

/* Seconds since some moment in the past; never goes back. */
double lq_seconds(void);

/* "1.4 GiB" into text. */
void lq_format_bytes(char text[32], uint64_t n_bytes);

#endif
