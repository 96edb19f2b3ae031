/* test_turns.c - turns are given in the order in which they were asked for, and one thread has one at a time. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "core/turns.h"

enum { N_THREADS = 6, N_ROUNDS = 2000 };

static lq_turns turns;
static int order[N_THREADS], n_served, n_inside, most_inside;

static void *take_once(void *context) {
    lq_turns_take(&turns);
    order[n_served++] = *(const int *)context;
    lq_turns_give(&turns);
    return NULL;
}

static uint64_t n_asked(void) {
    pthread_mutex_lock(&turns.lock);
    uint64_t n = turns.n_taken;
    pthread_mutex_unlock(&turns.lock);
    return n;
}

static void check_order(void) {
    pthread_t threads[N_THREADS];
    int numbers[N_THREADS];
    lq_turns_init(&turns);
    CHECK(!lq_turns_is_held(&turns));
    lq_turns_take(&turns);
    CHECK(lq_turns_is_held(&turns));
    for (int i = 0; i < N_THREADS; i++) { /* each has asked before the next one starts */
        numbers[i] = i;
        CHECK(pthread_create(&threads[i], NULL, take_once, &numbers[i]) == 0);
        while (n_asked() != (uint64_t)i + 2) sched_yield();
    }
    lq_turns_give(&turns);
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N_THREADS; i++) CHECK(order[i] == i);
    CHECK(!lq_turns_is_held(&turns));
    lq_turns_destroy(&turns);
}

static void *take_often(void *context) {
    (void)context;
    for (int i = 0; i < N_ROUNDS; i++) {
        lq_turns_take(&turns);
        if (++n_inside > most_inside) most_inside = n_inside;
        n_inside--;
        lq_turns_give(&turns);
    }
    return NULL;
}

static void check_alone(void) {
    pthread_t threads[N_THREADS];
    lq_turns_init(&turns);
    for (int i = 0; i < N_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, take_often, NULL) == 0);
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(most_inside == 1);
    CHECK(turns.n_given == (uint64_t)N_THREADS * N_ROUNDS);
    lq_turns_destroy(&turns);
}

int main(void) {
    check_order();
    check_alone();
    return check_report("test_turns");
}
