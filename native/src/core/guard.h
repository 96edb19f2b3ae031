/* guard.h - lets one thread at a time into an object, none once it is closed, and none in a forked child. */
#ifndef LQ_CORE_GUARD_H
#define LQ_CORE_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>

#include "core/status.h"

typedef struct lq_guard {
    atomic_uint state;
    atomic_uint process; /* that the object was made in */
} lq_guard;

void lq_guard_init(lq_guard *guard);
/* LQ_OK: inside, until lq_guard_leave(). Else LQ_E_BUSY, LQ_E_CLOSED or LQ_E_FORKED; what: "session", for their words.
 */
lq_status lq_guard_enter(lq_guard *guard, const char *what);
void lq_guard_leave(lq_guard *guard);
/* Nobody enters any more; waits until whoever is inside has left. False where nobody ever will: in a forked child, of
 * an object that a thread of the parent was inside. Its contents may be half changed, and must stay untouched. */
bool lq_guard_end(lq_guard *guard);
/* For objects without threads: one from before a fork belongs to the child, too, unless somebody was inside. */
void lq_guard_adopt(lq_guard *guard);
/* LQ_E_FORKED if the object was made in a process that this one is a forked child of. */
lq_status lq_check_process(uint32_t process, const char *what);

#endif
