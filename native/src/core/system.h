/* system.h - services of the operating system: aligned and reserved memory, time, sizes as text. */
#ifndef LQ_CORE_SYSTEM_H
#define LQ_CORE_SYSTEM_H

#include <stdint.h>

#include "core/status.h"

/* Allocates zeroed memory, 64-byte aligned. LQ_E_MEMORY with the purpose in the text. */
lq_status lq_alloc(uint64_t n_bytes, const char *purpose, void **out);
void lq_free(void *memory);

/* Reserves address space that the system backs with memory page by page as it is touched, so that a large budget costs
 * only what is used. Zeroed, page aligned. */
lq_status lq_reserve(uint64_t n_bytes, const char *purpose, void **out);
void lq_release(void *memory, uint64_t n_bytes);

/* Hint: this reserved memory is now full and will be read often. Asks the system for huge pages, which cost fewer TLB
 * misses, where whole ones lie in it: Linux aligns large reservations to them since 6.7. */
void lq_settle(void *memory, uint64_t n_bytes);

/* Seconds since some moment in the past, by a clock that never goes back. */
double lq_seconds(void);

/* Writes a size like "1.4 GiB" to text. */
void lq_format_bytes(char text[32], uint64_t n_bytes);

#endif
