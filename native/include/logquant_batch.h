/* logquant_batch.h - many sessions of one model in one step: weights are read once for all of them.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h.
 *
 * A batch reserves memory for steps, in the workspace in which all sessions of the model compute. It belongs to no
 * session: a server creates one for as many conversations as it will ever serve at once, and each step lists the
 * sessions that have tokens now. Between steps sessions may be created, closed, forked and evaluated alone. A batch is
 * an object of its own, not a hidden part of the model, so that its memory is requested (and refused) when the server
 * starts, not in the middle of an answer. */
#ifndef LOGQUANT_BATCH_H
#define LOGQUANT_BATCH_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lq_batch lq_batch;

enum {
    LQ_BATCH_MAX = 1024,        /* sessions of a step, at most */
    LQ_BATCH_MAX_TOKENS = 65536 /* tokens of a step, at most */
};

/* Creates a batch for steps of up to n_max sessions (1 to LQ_BATCH_MAX) of this model with n_tokens tokens in total
 * (n_max to LQ_BATCH_MAX_TOKENS; 0 = n_max, one each). memory_budget: bytes it may allocate; 0 = what is available now.
 * Errors: LQ_E_ARG, LQ_E_MEMORY. */
LQ_API lq_status lq_batch_create(lq_model *model, uint32_t n_max, uint32_t n_tokens, uint64_t memory_budget,
                                 lq_batch **out);
/* Closing a batch does not affect its sessions; a batch keeps its model alive. Waits for a step in another thread. */
LQ_API void lq_batch_close(lq_batch **batch);

/* One session's share of a step: its next tokens. */
typedef struct lq_step_part {
    lq_session *session;
    const int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;     /* 1 to the session's n_chunk */
    uint32_t tentative;    /* nonzero: the tokens, at most the session's max_tentative, become history only when
                              lq_session_commit() says how many of them do */
    uint32_t mode;         /* lq_logits_mode: logits of no token, the last one, or all */
    float *logits; /* NULL, or the buffer for them: [n_vocab], or [n_tokens][n_vocab]; LQ_LOGITS_ALL requires it unless
                      the tokens are tentative */
    size_t n_logits; /* capacity of logits, in floats */
} lq_step_part;

/* Appends each part's tokens to its session, and evaluates all of them in one pass; a part may have one token or many.
 * The sessions share the model and may differ in all else: length, context, KV cache type; some may be forks of others.
 * Afterwards a session has logits (lq_session_sample) unless its mode is LQ_LOGITS_NONE; a session with a tentative
 * part has them once the part is committed.
 *
 * Errors, found before anything is evaluated: LQ_E_ARG (a NULL, no parts, more sessions or tokens than the batch has
 * room for, another model's session, a session twice, a token outside the vocabulary, a logits buffer that is too
 * small, a session whose tentative tokens wait for a commit), LQ_E_FULL (one session has no room for its tokens),
 * LQ_E_BUSY (another thread is inside the batch or one of the sessions), LQ_E_MEMORY. LQ_E_CANCELLED:
 * lq_session_cancel() was called for any of them, as for lq_session_eval. After each of these errors all sessions have
 * the tokens and logits that they had before; those that drop their oldest pages may have dropped them already.
 *
 * For its session a part is one piece, like an lq_session_eval of as many tokens. What is exact:
 * - The same step (the same parts in the same order, sessions in the same state, as many threads, the same CPU level)
 *   gives the same bits.
 * - A tentative part gives the same bits whatever the other parts are, logits included. Any other part of three tokens
 *   or more leaves the same bits in the cache, and also if it is evaluated alone, unless the model has experts; its
 *   logits agree up to rounding.
 * - A part of one token gives the same bits with other parts or alone, on one thread, if at most two sessions take
 *   part.
 *
 * Otherwise results agree up to rounding: sums are added in another order, and where a KV cache type selects tokens by
 * accumulated attention, two tokens with equal sums may change places. Levels above scalar round activations to 8 bits,
 * which amplifies a difference in the last bit, as another number of threads does: 4 to 9 % of the largest logit and
 * .003 nats in the mean (q4_0: 26 % and .05 nats); nothing at the scalar level. docs/benchmarks.md lists it by type.
 * Checkpoints, forks and saved sessions hold exactly what was evaluated; what lq_session_rewind() has to evaluate again
 * it evaluates alone, in the same pieces.
 *
 * A step allocates nothing but pages of the sessions' caches and what it takes to undo long parts. One thread at a
 * time. */
LQ_API lq_status lq_batch_step(lq_batch *batch, const lq_step_part *parts, size_t n);

#ifdef __cplusplus
}
#endif

#endif
