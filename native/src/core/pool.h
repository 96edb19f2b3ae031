/* pool.h - a thread pool for many short parallel loops: it spins briefly between them, then sleeps. */
#ifndef LQ_CORE_POOL_H
#define LQ_CORE_POOL_H

#include <stdbool.h>

#include "core/status.h"

typedef struct lq_pool lq_pool;

/* One call per task index; thread in 0..n_threads-1 tells which private scratch may be used. */
typedef void (*lq_task_fn)(void *context, uint32_t task, uint32_t thread);

/* n_threads counts the caller, which takes part as thread 0. */
lq_status lq_pool_create(uint32_t n_threads, lq_pool **out);
/* Also in a forked child, where a pool of the parent's can be used for nothing else. */
void lq_pool_free(lq_pool *pool);
uint32_t lq_pool_n_threads(const lq_pool *pool);

/* A pool serves one owner at a time: whoever runs loops on it holds the lock meanwhile. */
void lq_pool_lock(lq_pool *pool);
void lq_pool_unlock(lq_pool *pool);

/* Runs tasks 0..n_tasks-1 and returns when all are done: each thread a row of neighbours in order, as evenly as they
 * turn out to be done. Call with the lock held. */
void lq_pool_run(lq_pool *pool, lq_task_fn function, void *context, uint32_t n_tasks);

/* From now on every task is left out once should_stop says so, which may never change its mind; NULL: none is. Whoever
 * asks for this must look himself whether anything was. Call with the lock held. */
void lq_pool_watch(lq_pool *pool, bool (*should_stop)(const void *context), const void *context);

#endif
