/* inside.h - what a session is made of; for session.c (life, evaluation), points.c (checkpoints, going back, forks),
 * file.c (saving, loading) and batch.c (several at once). */
#ifndef LQ_SESSION_INSIDE_H
#define LQ_SESSION_INSIDE_H

#include <pthread.h>

#include "core/guard.h"
#include "session/models.h"
#include "session/workspace.h"

/* A session's state at some number of tokens, less what never changes: whole pages, cells, tokens. Forks share it. */
typedef struct lq_checkpoint {
    atomic_uint n_refs;
    uint32_t n_tokens;
    bool has_logits;
    uint64_t n_bytes; /* of this struct with all its data */
    size_t n_note;
    uint8_t note[LQ_NOTE_BYTES]; /* the caller's */
    float *logits;               /* [n_vocab] behind the struct, if has_logits */
    uint8_t *state;              /* behind them: the pieces of lq_kv_cache_walk(), one after the other */
} lq_checkpoint;

/* The resolved form of session options. */
typedef struct lq_session_layout {
    lq_kv_spec kv;
    bool allow_long;
    bool drops; /* the oldest pages, when the context is full */
    uint32_t max_checkpoints;
    uint64_t max_checkpoint_bytes;
    lq_work_need need; /* of the model's workspace */
    lq_memory memory;
    uint64_t device_bytes[LQ_MAX_DEVICES]; /* parts of memory.total_bytes by the model's devices */
} lq_session_layout;

/* lq_session_cancel(): until the next evaluation. */
#define LQ_CANCEL_ONCE 1u

struct lq_session {
    lq_model *model; /* held */
    lq_session_layout layout;
    lq_kv_cache *cache;
    bool holds_workspace;      /* the model's */
    const lq_rope_table *rope; /* of global layers; the model's */
    uint32_t n_ctx;
    uint32_t n_room;       /* tokens that the next two have room for */
    int32_t *tokens;       /* [n_room] */
    uint8_t *starts;       /* [n_room] bits: a piece that was evaluated at once begins at this token */
    uint8_t *tentative;    /* [n_room] bits, at those tokens: the piece is what was taken in of a tentative chunk */
    float *logits;         /* [n_vocab] of the last token, once they were asked for: lq_session_fetch_logits() */
    float *device_logits;  /* the same where the output head is; NULL: they come to the host at once */
    bool logits_on_host;   /* the former are the last token's, if there are any */
    float *pending_logits; /* [max_tentative][n_vocab] of the tentative chunk's last n_pending_logits tokens */
    uint32_t n_pending_logits;
    uint32_t n_pending;   /* tokens of a tentative chunk, which are behind those held */
    atomic_uint n_tokens; /* written by the owner, read by anyone */
    atomic_uint has_logits;
    atomic_uint cancel; /* LQ_CANCEL_ONCE, LQ_PASS_ABANDON */
    lq_guard guard;
    pthread_mutex_t look;   /* held where tokens, points and usage change, and where they are read from outside */
    lq_kv_usage usage;      /* of the cache, as it was left last */
    double token_seconds;   /* of the last piece that was no short one; 0: none was */
    lq_checkpoint **points; /* [max_checkpoints] by rising number of tokens */
    uint32_t n_points;
    uint64_t point_bytes;
    /* The tokens from answer_start on were sampled one after the other, the newest at sampled_at. */
    uint32_t answer_start;
    uint32_t sampled_at;
    int32_t sampled;
    void *extra; /* what was stored with a session that was loaded */
    size_t n_extra;
};

/* session.c */
/* Around every use of what the owner alone may use: LQ_E_BUSY, LQ_E_CLOSED, LQ_E_FORKED. */
lq_status lq_session_enter(lq_session *session);
lq_status lq_session_leave(lq_session *session, lq_status status);
/* Forgets an lq_session_cancel() that came before. */
void lq_session_uncancel(lq_session *session);
/* Notes what the cache holds, for lq_session_get_info(): whenever that has changed. */
void lq_session_note_usage(lq_session *session);
/* Around what `look` stands for; never for long. */
void lq_session_lock(const lq_session *session);
void lq_session_unlock(const lq_session *session);
/* An empty session. */
lq_status lq_session_make(lq_model *model, const lq_session_layout *layout, lq_session **out);
lq_status lq_session_resolve(const lq_model *model, const lq_session_options *options, lq_session_layout *out);
lq_status lq_session_check_budget(const lq_model *model, const lq_session_options *options,
                                  const lq_session_layout *layout);
/* Room for a history of n_tokens. */
lq_status lq_session_grow(lq_session *session, uint32_t n_tokens);
lq_status lq_session_check_tokens(const lq_model *model, const int32_t *tokens, size_t n_tokens);
/* LQ_E_FULL if n_tokens more than held do not fit. */
lq_status lq_session_check_room(const lq_session *session, uint32_t held, size_t n_tokens);
/* Sees to the memory of n_tokens more (at most a chunk); where the context is full the oldest go now. */
lq_status lq_session_prepare(lq_session *session, uint32_t n_tokens);
/* Sees to it that logits are in s->logits, if the session has any. LQ_E_INTERNAL: the device failed. */
lq_status lq_session_fetch_logits(lq_session *session);
/* The session's next n tokens, for lq_forward(). logits: for n_logits rows; NULL: one row, which becomes the session's.
 */
lq_pass_part lq_session_part(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits, float *logits);
/* They were evaluated, as one piece: they are history. The session's own logits, if it was given any, are not on the
 * host yet unless they are computed there. */
void lq_session_take(lq_session *session, const int32_t *tokens, uint32_t n);
/* The same of a tentative chunk: its next n tokens with n_logits rows of logits in pending_logits, for lq_forward();
 * they were evaluated, and are pending; the first n of those pending are history, the others are forgotten. */
lq_pass_part lq_session_tentative_part(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits);
void lq_session_hold_pending(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits);
void lq_session_take_pending(lq_session *session, uint32_t n);
/* LQ_E_ARG if a tentative chunk waits for lq_session_commit(). */
lq_status lq_session_check_pending(const lq_session *session);
/* Evaluates tokens that were checked, piece by piece. */
lq_status lq_session_run(lq_session *session, const int32_t *tokens, uint32_t n_tokens, lq_logits_mode mode,
                         float *logits);
/* Evaluates what a tentative chunk brought once more, in the same way. */
lq_status lq_session_run_tentative(lq_session *session, const int32_t *tokens, uint32_t n, bool wants_logits);
/* points.c: puts the session where it can go back to without evaluating, at most n_keep; returns the tokens held. With
 * needs_logits, n_keep itself only if its logits are known. */
uint32_t lq_session_go_back(lq_session *session, uint32_t n_keep, bool needs_logits);
/* points.c: what it takes to undo a piece of n tokens that is evaluated next, where the cache cannot and the piece
 * takes so long that it may have to be cancelled. NULL: neither, or no memory for it (at most what checkpoints may
 * take): then the piece is finished whatever happens. */
lq_checkpoint *lq_session_before(lq_session *session, uint32_t n);
/* Lets go of it; undo: brings the cache back to it first. */
void lq_session_after(lq_session *session, lq_checkpoint *before, bool undo);
void lq_session_drop_checkpoints(lq_session *session, uint32_t n_tokens); /* those after n_tokens */
void lq_session_forget_dropped(lq_session *session); /* checkpoints whose pages went to make room */

static inline bool lq_session_starts(const lq_session *s, uint32_t token) {
    return (s->starts[token / 8] >> token % 8 & 1) != 0;
}

static inline bool lq_session_was_tentative(const lq_session *s, uint32_t token) {
    return (s->tentative[token / 8] >> token % 8 & 1) != 0;
}

#endif
