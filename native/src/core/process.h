/* process.h - which process this is: a forked child inherits memory, but no threads. */
#ifndef LQ_CORE_PROCESS_H
#define LQ_CORE_PROCESS_H

#include <stdint.h>

/* A number that is another one in every child of a fork, from the first call on: what was made under another number has
 * lost its threads, and perhaps one that was in the midst of changing it. */
uint32_t lq_process(void);

#endif
