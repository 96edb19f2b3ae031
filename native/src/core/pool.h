/* pool.h - a thread pool for many short parallel loops: it spins briefly between them, then sleeps. */
#ifndef LQ_CORE_POOL_H
#define LQ_CORE_POOL_H

#include <stdbool.h>

#include "core/status.h"

typedef struct lq_pool lq_pool;

/* Runs one task. thread, 0..n_threads-1, says which private scratch memory it may use. */
typedef void (*lq_task_fn)(void *context, uint32_t task, uint32_t thread);

/* n_threads counts the caller, which takes part as thread 0. */
lq_status lq_pool_create(uint32_t n_threads, lq_pool **out);
/* May also be called in a forked child, which can do nothing else with a pool of its parent. */
void lq_pool_free(lq_pool *pool);
uint32_t lq_pool_n_threads(const lq_pool *pool);

/* A pool serves one owner at a time: whoever runs loops on it holds the lock meanwhile. */
void lq_pool_lock(lq_pool *pool);
void lq_pool_unlock(lq_pool *pool);

/* Runs tasks 0..n_tasks-1 and returns when all are done. Each thread runs consecutive tasks in order; faster threads
 * take over tasks from slower ones. Call with the lock held. */
void lq_pool_run(lq_pool *pool, lq_task_fn function, void *context, uint32_t n_tasks);

/* From now on, skips every task once should_stop returns true, which it must then do for good; NULL skips none. The
 * caller must check by itself whether tasks were skipped. Call with the lock held. */
void lq_pool_watch(lq_pool *pool, bool (*should_stop)(const void *context), const void *context);

#endif
