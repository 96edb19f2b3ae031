/* turns.h - a lock that is given in the order in which it was asked for. A mutex may be taken again and again by the
 * thread that just left it, while others wait. */
#ifndef LQ_CORE_TURNS_H
#define LQ_CORE_TURNS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct lq_turns {
    pthread_mutex_t lock; /* held for a moment */
    pthread_cond_t changed;
    uint64_t n_taken; /* turns that were asked for */
    uint64_t n_given; /* turns that are over */
} lq_turns;

void lq_turns_init(lq_turns *turns);
void lq_turns_destroy(lq_turns *turns);
/* Waits for all who asked before; every take needs a give by the same thread. */
void lq_turns_take(lq_turns *turns);
void lq_turns_give(lq_turns *turns);
/* For a forked child, in which nobody can be waiting: whether a thread of the parent had the lock. */
bool lq_turns_is_held(lq_turns *turns);

#endif
