/* logquant_batch.h - many sessions of one model in one step: weights are read once for all of them.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h.
 *
 * A batch is room for steps, in the memory that all sessions of the model compute in. It belongs to no session, so that
 * a server makes one for as many conversations as it will ever serve at once, and each step names those that have
 * tokens now; sessions come, go, fork and step elsewhere in between as they like. It is an object of its own, and no
 * hidden part of the model, so that its memory is asked for (and refused) when the server starts, not in the middle of
 * an answer.
 */
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

/* Room for steps of up to n_max sessions (1 to LQ_BATCH_MAX) of this model with n_tokens tokens together (n_max to
 * LQ_BATCH_MAX_TOKENS; 0 = n_max, one each). memory_budget: bytes it may allocate; 0 = what is available now. Errors:
 * LQ_E_ARG, LQ_E_MEMORY. */
LQ_API lq_status lq_batch_create(lq_model *model, uint32_t n_max, uint32_t n_tokens, uint64_t memory_budget,
                                 lq_batch **out);
/* Sessions do not need it; the model lives on as long as the batch does. Waits for a step in another thread. */
LQ_API void lq_batch_close(lq_batch **batch);

/* What one session has in a step: its next tokens. */
typedef struct lq_step_part {
    lq_session *session;
    const int32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;     /* 1 to the session's n_chunk */
    uint32_t tentative;    /* nonzero, with at most the session's max_tentative tokens: none of them is history before
                              lq_session_commit() says how many are */
    uint32_t mode;         /* lq_logits_mode: logits of none of them, the last one, or all */
    float *logits;   /* NULL, or where to write them: [n_vocab], or [n_tokens][n_vocab]; with LQ_LOGITS_ALL it must be
                        there unless the tokens are tentative */
    size_t n_logits; /* floats that there is room for */
} lq_step_part;

/* Appends each part's tokens to its session, and evaluates all of them in one pass: a token of some, many of others.
 * Sessions may differ in all but their model: length, context, KV cache type; forks of each other may be among them. A
 * session has logits afterwards (lq_session_sample) unless they were not asked for; of a tentative part once it is
 * committed.
 *
 * Errors, found before anything is evaluated: LQ_E_ARG (a NULL, no parts, more sessions or tokens than there is room
 * for, another model's session, a session twice, a token outside the vocabulary, too little room for logits, tentative
 * tokens that wait in a session), LQ_E_FULL (one session has no room for its tokens), LQ_E_BUSY (another thread is
 * inside the batch or one of the sessions), LQ_E_MEMORY. LQ_E_CANCELLED: lq_session_cancel() of any of them, as for
 * lq_session_eval. After every error all sessions have the tokens and logits that they had before; those that drop
 * their oldest pages may have dropped them already.
 *
 * To a session its part is one piece, like lq_session_eval of as many tokens. What is exact: the same step (the same
 * parts in the same order, sessions in the same state, as many threads, the same CPU level) gives the same bits. A part
 * of several tokens that are not tentative, in other company, or alone, gives the same bits if it has three tokens or
 * more and the model has no experts; a tentative part gives the same bits in every company. A token in other company,
 * or alone, gives the same bits on one thread as long as at most two sessions take part; else the same up to rounding:
 * sums are added in another order, and where a KV cache type chooses tokens by the attention that they accumulated, two
 * that accumulated equally much may change places. Levels above scalar round activations to 8 bits, which makes more of
 * a last bit, as with another number of threads: 4 to 9 % of the largest logit and .003 nats in the mean (q4_0: 26 %
 * and .05 nats); nothing at the scalar level. docs/benchmarks.md has it by type. Checkpoints, forks and saved sessions
 * hold what was evaluated, exactly; what lq_session_rewind() has to evaluate again it evaluates alone, in the same
 * pieces.
 *
 * Nothing is allocated per step but the pages of the sessions' caches, and what it takes to undo a long part. One
 * thread at a time. */
LQ_API lq_status lq_batch_step(lq_batch *batch, const lq_step_part *parts, size_t n);

#ifdef __cplusplus
}
#endif

#endif
