/* process.c - counts forks by a handler, because asking for the process id would cost a system call each time. */
#include "core/process.h"

#if defined(_WIN32)
uint32_t lq_process(void) { return 0; }
#else
#include <pthread.h>
#include <stdatomic.h>

static atomic_uint n_forks;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void count_fork(void) { atomic_fetch_add(&n_forks, 1); }

static void watch_forks(void) { (void)pthread_atfork(NULL, NULL, count_fork); }

uint32_t lq_process(void) {
    pthread_once(&once, watch_forks);
    return atomic_load_explicit(&n_forks, memory_order_relaxed);
}
#endif
