/* guard.c - one atomic word with two flags: a thread is inside, the object is closed. */
#define _POSIX_C_SOURCE 200809L
#include "core/guard.h"

#include <sched.h>
#include <time.h>

#include "core/process.h"

#define INSIDE 1u
#define CLOSED 2u

#define YIELDS 100            /* about as long as a small model takes for a token */
#define PAUSE_NS (100 * 1000) /* sleep between checks after that */

void lq_guard_init(lq_guard *guard) {
    atomic_init(&guard->state, 0);
    atomic_init(&guard->process, lq_process());
}

lq_status lq_check_process(uint32_t process, const char *what) {
    if (process == lq_process()) return LQ_OK;
    return lq_fail(LQ_E_FORKED,
                   "the %s is from before this process was forked, and its threads stayed in the parent; "
                   "load the model after the fork, in each process that uses it",
                   what);
}

lq_status lq_guard_enter(lq_guard *guard, const char *what) {
    unsigned state = 0;
    LQ_TRY(lq_check_process(atomic_load_explicit(&guard->process, memory_order_relaxed), what));
    if (atomic_compare_exchange_strong(&guard->state, &state, INSIDE)) return LQ_OK;
    if (state & CLOSED) return lq_fail(LQ_E_CLOSED, "the %s is closed; make a new one", what);
    return lq_fail(LQ_E_BUSY, "the %s is in use by another thread; give each thread its own %s", what, what);
}

void lq_guard_adopt(lq_guard *guard) {
    if ((atomic_load(&guard->state) & INSIDE) == 0) atomic_store(&guard->process, lq_process());
}

void lq_guard_leave(lq_guard *guard) { atomic_fetch_and(&guard->state, ~INSIDE); }

bool lq_guard_end(lq_guard *guard) {
    struct timespec pause = {0, PAUSE_NS};
    unsigned state = atomic_fetch_or(&guard->state, CLOSED);
    if (atomic_load(&guard->process) != lq_process()) return (state & INSIDE) == 0;
    for (unsigned round = 0; (atomic_load(&guard->state) & INSIDE) != 0; round++) {
        if (round < YIELDS)
            sched_yield();
        else
            nanosleep(&pause, NULL);
    }
    return true;
}
