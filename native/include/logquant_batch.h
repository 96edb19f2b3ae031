/* logquant_batch.h - many sessions of one model in one step: weights are read once for all of them.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h.
 *
 * A batch is memory: activations and scratch for one token of up to n_max sessions. It belongs to no session, so that a
 * server makes one for as many conversations as it will ever serve at once, and each step names those that have a token
 * now; sessions come, go, fork and step elsewhere in between as they like. It is an object of its own, and no hidden
 * part of the model, so that its memory is asked for (and refused) when the server starts, not in the middle of an
 * answer.
 */
#ifndef LOGQUANT_BATCH_H
#define LOGQUANT_BATCH_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lq_batch lq_batch;

enum { LQ_BATCH_MAX = 1024 }; /* sessions of a step, at most */

/* Memory for steps of up to n_max sessions (1 to LQ_BATCH_MAX) of this model. memory_budget: bytes it may allocate; 0 =
 * what is available now. Errors: LQ_E_ARG, LQ_E_MEMORY. */
LQ_API lq_status lq_batch_create(lq_model *model, uint32_t n_max, uint64_t memory_budget, lq_batch **out);
/* Sessions do not need it; the model lives on as long as the batch does. Waits for a step in another thread. */
LQ_API void lq_batch_close(lq_batch **batch);

/* Appends tokens[i] to sessions[i], i < n, and evaluates all of them in one pass. Sessions may differ in all but their
 * model: length, context, KV cache type; forks of each other may be among them. Each has its logits afterwards
 * (lq_session_sample). logits: NULL, or room for n_logits >= n * n_vocab floats, [n][n_vocab].
 *
 * Errors, found before anything is evaluated: LQ_E_ARG (a NULL, no sessions or more than n_max, another model's
 * session, a session twice, a token outside the vocabulary, too little room), LQ_E_FULL (one session has no room for
 * its token), LQ_E_BUSY (another thread is inside the batch or one of the sessions), LQ_E_MEMORY. LQ_E_CANCELLED,
 * within one layer: lq_session_cancel() of any of them, as long as every one of them can take its token back (KV cache
 * types without pages can, those with pages their first token); else the step is finished. After every error all
 * sessions have the tokens and logits that they had before; those that drop their oldest pages may have dropped them
 * already.
 *
 * To a session a step is a piece of one token, like lq_session_eval of one. What is exact: the same step (the same
 * sessions in the same state and order, as many threads, the same CPU level) gives the same bits. A token in other
 * company, or alone, gives the same bits on one thread as long as at most two sessions take part; else the same up
 * to rounding: sums are added in another order, and where a KV cache type chooses tokens by the attention that they
 * received, two that received equally much may change places. Levels above scalar round activations to 8 bits, which
 * makes more of a last bit, as with another number of threads: 4 to 9 % of the largest logit and .003 nats in the mean
 * (q4_0: 26 % and .05 nats); nothing at the scalar level. docs/benchmarks.md has it by type. Checkpoints, forks and
 * saved sessions hold what was evaluated, exactly; what lq_session_rewind() has to evaluate again it evaluates alone,
 * in the same pieces.
 *
 * Nothing is allocated per step but the pages of the sessions' caches and, when a session's cache type needs more
 * scratch memory than any session before it, that memory, within the budget. One thread at a time. */
LQ_API lq_status lq_batch_step(lq_batch *batch, lq_session *const *sessions, const int32_t *tokens, size_t n,
                               float *logits, size_t n_logits);

#ifdef __cplusplus
}
#endif

#endif
