/* process.h - tells a process from its forked children, which inherit its memory but no threads. */
#ifndef LQ_CORE_PROCESS_H
#define LQ_CORE_PROCESS_H

#include <stdint.h>

/* Returns a number that changes in every forked child, from the first call on. An object made under another number has
 * lost its threads, perhaps one that was in the midst of changing it. */
uint32_t lq_process(void);

#endif
