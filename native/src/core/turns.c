/* turns.c - a lock that is given in the order in which it was asked for. */
#include "core/turns.h"

void lq_turns_init(lq_turns *turns) {
    pthread_mutex_init(&turns->lock, NULL);
    pthread_cond_init(&turns->changed, NULL);
    turns->n_taken = turns->n_given = 0;
}

void lq_turns_destroy(lq_turns *turns) {
    pthread_mutex_destroy(&turns->lock);
    pthread_cond_destroy(&turns->changed);
}

void lq_turns_take(lq_turns *turns) {
    pthread_mutex_lock(&turns->lock);
    uint64_t turn = turns->n_taken++;
    while (turns->n_given != turn) pthread_cond_wait(&turns->changed, &turns->lock);
    pthread_mutex_unlock(&turns->lock);
}

void lq_turns_give(lq_turns *turns) {
    pthread_mutex_lock(&turns->lock);
    turns->n_given++;
    pthread_cond_broadcast(&turns->changed);
    pthread_mutex_unlock(&turns->lock);
}

bool lq_turns_is_held(lq_turns *turns) {
    if (pthread_mutex_trylock(&turns->lock) != 0) return true;
    bool held = turns->n_taken != turns->n_given;
    pthread_mutex_unlock(&turns->lock);
    return held;
}
