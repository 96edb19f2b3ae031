/* pool.c - workers join a job only if they are awake in time: the caller never waits for a sleeper.
 *
 * `state` packs what workers and caller agree on: generation << 32 | open << 31 | number of workers inside. A worker
 * enters an open job by compare-and-swap; the caller closes it once no task is left, then waits until nobody is inside.
 * The job's fields are written only while the job is closed and empty.
 *
 * Each thread has a range of consecutive tasks, its share, and takes them from the front; once it is empty, it takes
 * the back half of another thread's. Consecutive tasks read neighbouring memory, which a thread prefetches during the
 * task before; if tasks were handed out one by one, each would begin with a wait for memory. */
#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "core/process.h"
#include "core/system.h"

#define STATE_OPEN ((uint64_t)1 << 31)
#define STATE_INSIDE (STATE_OPEN - 1)
#define STATE_GENERATION_SHIFT 32

/* About 50 microseconds on current CPUs: longer than the serial work between two loops of one token. */
#define SPIN_ROUNDS 2000

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("isb")
#else
#define RELAX() ((void)0)
#endif

/* range = next task | end << 32; the share is empty if they are equal. */
typedef struct share {
    _Alignas(64) _Atomic uint64_t range;
} share;

typedef struct worker {
    share share;
    struct lq_pool *pool;
    pthread_t thread;
    uint32_t index;
} worker;

struct lq_pool {
    _Alignas(64) _Atomic uint64_t state;
    share share; /* the caller's */
    _Alignas(64) lq_task_fn function;
    void *context;
    bool (*should_stop)(const void *context); /* or NULL */
    const void *stop_context;
    _Atomic uint32_t n_sleeping;
    _Atomic bool stop;
    uint32_t n_threads;
    uint32_t n_started; /* workers whose thread exists */
    uint32_t process;   /* the process that has them: lq_process() */
    pthread_mutex_t owner;
    pthread_mutex_t sleep_mutex;
    pthread_cond_t wake;
    worker workers[];
};

static uint64_t range_of(uint64_t next, uint64_t end) { return next | end << 32; }

static _Atomic uint64_t *share_of(lq_pool *pool, uint32_t thread) {
    return thread == 0 ? &pool->share.range : &pool->workers[thread - 1].share.range;
}

/* Takes the next task of a thread's own share; false if there is none. */
static bool take_next(_Atomic uint64_t *own, uint32_t *task) {
    uint64_t range = atomic_load_explicit(own, memory_order_relaxed);
    for (;;) {
        uint32_t next = (uint32_t)range, end = (uint32_t)(range >> 32);
        if (next == end) return false;
        *task = next;
        if (atomic_compare_exchange_weak_explicit(own, &range, range + 1, memory_order_relaxed, memory_order_relaxed))
            return true;
    }
}

/* Moves the back half of another thread's share to `own`, which is empty; false if all shares are empty. */
static bool take_half(lq_pool *pool, uint32_t thread, _Atomic uint64_t *own) {
    for (uint32_t i = 1; i < pool->n_threads; i++) {
        _Atomic uint64_t *other = share_of(pool, (thread + i) % pool->n_threads);
        uint64_t range = atomic_load_explicit(other, memory_order_relaxed);
        for (;;) {
            uint32_t next = (uint32_t)range, end = (uint32_t)(range >> 32), middle = next + (end - next) / 2;
            if (next == end) break;
            if (atomic_compare_exchange_weak_explicit(other, &range, range_of(next, middle), memory_order_relaxed,
                                                      memory_order_relaxed)) {
                atomic_store_explicit(own, range_of(middle, end), memory_order_relaxed);
                return true;
            }
        }
    }
    return false;
}

static bool is_stopped(const lq_pool *pool) {
    return pool->should_stop != NULL && pool->should_stop(pool->stop_context);
}

static void run_tasks(lq_pool *pool, uint32_t thread) {
    _Atomic uint64_t *own = share_of(pool, thread);
    uint32_t task;
    do {
        while (take_next(own, &task))
            if (!is_stopped(pool)) pool->function(pool->context, task, thread);
    } while (take_half(pool, thread, own));
}

/* Enters the open job unless it is the one already served; true if inside. */
static bool try_enter(lq_pool *pool, uint64_t *served) {
    uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    while ((state & STATE_OPEN) && (state >> STATE_GENERATION_SHIFT) != *served) {
        if (atomic_compare_exchange_weak_explicit(&pool->state, &state, state + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *served = state >> STATE_GENERATION_SHIFT;
            return true;
        }
    }
    return false;
}

static bool is_new_job(lq_pool *pool, uint64_t served) {
    uint64_t state = atomic_load(&pool->state);
    return (state & STATE_OPEN) && (state >> STATE_GENERATION_SHIFT) != served;
}

static void sleep_until_job(lq_pool *pool, uint64_t served) {
    pthread_mutex_lock(&pool->sleep_mutex);
    /* Count the sleeper before looking for a job: the caller publishes its job before it reads n_sleeping, so one of
     * the two sees the other. */
    atomic_fetch_add(&pool->n_sleeping, 1);
    while (!atomic_load(&pool->stop) && !is_new_job(pool, served)) pthread_cond_wait(&pool->wake, &pool->sleep_mutex);
    atomic_fetch_sub(&pool->n_sleeping, 1);
    pthread_mutex_unlock(&pool->sleep_mutex);
}

static void *worker_main(void *argument) {
    worker *self = argument;
    lq_pool *pool = self->pool;
    uint64_t served = 0;
    while (!atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
        bool inside = false;
        for (int round = 0; round < SPIN_ROUNDS && !inside; round++) {
            inside = try_enter(pool, &served);
            if (!inside) RELAX();
        }
        if (inside) {
            run_tasks(pool, self->index);
            atomic_fetch_sub_explicit(&pool->state, 1, memory_order_release);
        } else {
            sleep_until_job(pool, served);
        }
    }
    return NULL;
}

lq_status lq_pool_create(uint32_t n_threads, lq_pool **out) {
    lq_pool *pool;
    void *memory;
    *out = NULL;
    if (n_threads < 1 || n_threads > 1024)
        return lq_fail(LQ_E_ARG, "threads must be 1 to 1024, not %u", (unsigned)n_threads);
    LQ_TRY(lq_alloc(sizeof *pool + (uint64_t)(n_threads - 1) * sizeof pool->workers[0], "thread pool", &memory));
    pool = memory;
    pool->n_threads = n_threads;
    pool->process = lq_process();
    pthread_mutex_init(&pool->owner, NULL);
    pthread_mutex_init(&pool->sleep_mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        pool->workers[i].pool = pool;
        pool->workers[i].index = i + 1;
        if (pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]) != 0) {
            lq_pool_free(pool);
            return lq_fail(LQ_E_MEMORY, "cannot start thread %u of %u; try fewer threads", (unsigned)(i + 2),
                           (unsigned)n_threads);
        }
        pool->n_started++;
    }
    *out = pool;
    return LQ_OK;
}

void lq_pool_free(lq_pool *pool) {
    if (pool == NULL) return;
    if (pool->process != lq_process()) { /* a forked child has no workers to join, and its locks may be held for ever */
        lq_free(pool);
        return;
    }
    pthread_mutex_lock(&pool->sleep_mutex);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep_mutex);
    for (uint32_t i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->sleep_mutex);
    pthread_mutex_destroy(&pool->owner);
    lq_free(pool);
}

uint32_t lq_pool_n_threads(const lq_pool *pool) { return pool->n_threads; }

void lq_pool_lock(lq_pool *pool) { pthread_mutex_lock(&pool->owner); }

void lq_pool_unlock(lq_pool *pool) { pthread_mutex_unlock(&pool->owner); }

void lq_pool_watch(lq_pool *pool, bool (*should_stop)(const void *context), const void *context) {
    pool->should_stop = should_stop;
    pool->stop_context = context;
}

void lq_pool_run(lq_pool *pool, lq_task_fn function, void *context, uint32_t n_tasks) {
    if (pool->n_threads == 1 || n_tasks <= 1) {
        for (uint32_t task = 0; task < n_tasks && !is_stopped(pool); task++) function(context, task, 0);
        return;
    }
    pool->function = function;
    pool->context = context;
    for (uint64_t i = 0, next = 0, end; i < pool->n_threads; i++, next = end) {
        end = n_tasks * (i + 1) / pool->n_threads;
        atomic_store_explicit(share_of(pool, (uint32_t)i), range_of(next, end), memory_order_relaxed);
    }
    uint64_t generation = (atomic_load_explicit(&pool->state, memory_order_relaxed) >> STATE_GENERATION_SHIFT) + 1;
    /* A new worker counts generation 0 as served, so skip it when 32 bits wrap. */
    if ((generation & 0xffffffffu) == 0) generation = 1;
    atomic_store(&pool->state, generation << STATE_GENERATION_SHIFT | STATE_OPEN);
    if (atomic_load(&pool->n_sleeping) != 0) {
        pthread_mutex_lock(&pool->sleep_mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->sleep_mutex);
    }
    run_tasks(pool, 0);
    atomic_fetch_and(&pool->state, ~STATE_OPEN);
    for (uint32_t round = 0; (atomic_load_explicit(&pool->state, memory_order_acquire) & STATE_INSIDE) != 0; round++) {
        if (round < SPIN_ROUNDS) {
            RELAX();
        } else {
            sched_yield(); /* the worker inside may have lost its core */
        }
    }
}
