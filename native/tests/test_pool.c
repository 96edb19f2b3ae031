/* test_pool.c - tests the pool: every task runs exactly once, whichever workers are awake; sleeping workers are woken;
 * loops may be tiny. */
#define _POSIX_C_SOURCE 200809L
#include <stdatomic.h>
#include <time.h>

#include "check.h"
#include "core/pool.h"

#define MAX_TASKS 300

typedef struct counts {
    atomic_uint runs[MAX_TASKS];
    atomic_uint bad_thread;
    unsigned n_threads;
    unsigned plain[MAX_TASKS]; /* not atomic: the pool itself must order these writes before lq_pool_run returns */
} counts;

static void count_task(void *context, uint32_t task, uint32_t thread) {
    counts *c = context;
    atomic_fetch_add(&c->runs[task], 1);
    c->plain[task]++;
    if (thread >= c->n_threads) atomic_fetch_add(&c->bad_thread, 1);
}

static void check_threads(uint32_t n_threads) {
    static counts c;
    lq_pool *pool;
    unsigned total = 0, expected = 0, plain = 0;
    memset(&c, 0, sizeof c);
    c.n_threads = n_threads;
    CHECK_STATUS(lq_pool_create(n_threads, &pool), LQ_OK);
    CHECK(lq_pool_n_threads(pool) == n_threads);
    for (unsigned round = 0; round < 2000; round++) {
        uint32_t n = round % MAX_TASKS;
        lq_pool_lock(pool);
        lq_pool_run(pool, count_task, &c, n);
        lq_pool_unlock(pool);
        expected += n;
        if (round % 500 == 0) { /* long enough for every worker to fall asleep */
            struct timespec pause = {0, 5000000};
            nanosleep(&pause, NULL);
        }
    }
    for (unsigned i = 0; i < MAX_TASKS; i++) {
        total += atomic_load(&c.runs[i]);
        plain += c.plain[i];
    }
    CHECK_MSG(total == expected, "%u threads: %u task runs, expected %u", n_threads, total, expected);
    CHECK_MSG(plain == expected, "%u threads: %u ordered writes, expected %u", n_threads, plain, expected);
    CHECK(atomic_load(&c.bad_thread) == 0);
    lq_pool_free(pool);
}

/* From the third on, every task raises a flag. No thread may begin a task after it has seen the flag, which it has at
 * the latest after raising it itself; and the pool must work as before afterwards. */
static void raise_flag(void *context, uint32_t task, uint32_t thread) {
    atomic_uint *flags = context; /* raised, and how many ran */
    (void)task;
    (void)thread;
    if (atomic_fetch_add(&flags[1], 1) >= 2) atomic_store(&flags[0], 1);
}

static bool is_raised(const void *context) {
    const atomic_uint *flags = context;
    return atomic_load(&flags[0]) != 0;
}

static void check_watching(uint32_t n_threads) {
    lq_pool *pool;
    CHECK_STATUS(lq_pool_create(n_threads, &pool), LQ_OK);
    for (int round = 0; round < 200; round++) {
        atomic_uint flags[2] = {0, 0};
        lq_pool_lock(pool);
        lq_pool_watch(pool, is_raised, flags);
        lq_pool_run(pool, raise_flag, flags, 30000);
        CHECK(atomic_load(&flags[0]) == 1);
        CHECK_MSG(atomic_load(&flags[1]) <= 2 + n_threads, "%u threads: %u tasks ran", n_threads,
                  atomic_load(&flags[1]));
        if (n_threads == 1) CHECK(atomic_load(&flags[1]) == 3);
        unsigned before = atomic_load(&flags[1]);
        lq_pool_run(pool, raise_flag, flags, 100);
        CHECK(atomic_load(&flags[1]) == before);
        lq_pool_watch(pool, NULL, NULL);
        lq_pool_run(pool, raise_flag, flags, 100);
        CHECK(atomic_load(&flags[1]) == before + 100);
        lq_pool_unlock(pool);
    }
    lq_pool_free(pool);
}

int main(void) {
    lq_pool *pool = NULL;
    static const uint32_t sizes[] = {1, 2, 3, 8};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) check_threads(sizes[i]);
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) check_watching(sizes[i]);
    CHECK_STATUS(lq_pool_create(0, &pool), LQ_E_ARG);
    CHECK(pool == NULL);
    CHECK_STATUS(lq_pool_create(1025, &pool), LQ_E_ARG);
    lq_pool_free(NULL);
    return check_report("test_pool");
}
