/* guard.h - lets one thread at a time into an object, none once it is closed, and none in a forked child. */
#ifndef LQ_CORE_GUARD_H
#define LQ_CORE_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>

#include "core/status.h"

typedef struct lq_guard {
    atomic_uint state;
    atomic_uint process; /* lq_process() of the process that made the object */
} lq_guard;

void lq_guard_init(lq_guard *guard);
/* Enters the object until lq_guard_leave(). Errors: LQ_E_BUSY, LQ_E_CLOSED, LQ_E_FORKED. what: the object in their
 * texts, "session". */
lq_status lq_guard_enter(lq_guard *guard, const char *what);
void lq_guard_leave(lq_guard *guard);
/* Closes the object: no thread enters any more, and a thread that is inside is waited for. Returns false in a forked
 * child if a thread of the parent was inside: it will never leave, and the contents, perhaps half changed, must stay
 * untouched. */
bool lq_guard_end(lq_guard *guard);
/* Lets a forked child use an object that has no threads of its own, unless a thread was inside during the fork. */
void lq_guard_adopt(lq_guard *guard);
/* LQ_E_FORKED if the object was made in a process that this one is a forked child of. */
lq_status lq_check_process(uint32_t process, const char *what);

#endif
