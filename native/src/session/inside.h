/* inside.h - what a session is made of; for plan.c (options, memory), session.c (life, evaluation), points.c
 * (checkpoints, going back, forks), file.c (saving, loading) and batch.c (several at once). */
#ifndef LQ_SESSION_INSIDE_H
#define LQ_SESSION_INSIDE_H

#include <pthread.h>

#include "core/guard.h"
#include "session/models.h"
#include "session/workspace.h"

/* A session's state at n_tokens tokens, without what never changes: complete pages, cells, tokens. Forks share it. */
typedef struct lq_checkpoint {
    atomic_uint n_refs;
    uint32_t n_tokens;
    bool has_logits;
    uint64_t n_bytes; /* bytes of this struct with all its data */
    size_t n_note;
    uint8_t note[LQ_NOTE_BYTES]; /* the caller's */
    float *logits;               /* [n_vocab] after the struct, if has_logits */
    uint8_t *state;              /* after them: the pieces of lq_kv_cache_walk(), one after the other */
} lq_checkpoint;

/* What session options resolve to. */
typedef struct lq_session_layout {
    lq_kv_spec kv;
    bool allow_long;
    bool drops; /* true: drops the oldest pages when the context is full */
    uint32_t max_checkpoints;
    uint64_t max_checkpoint_bytes;
    lq_work_need need; /* what it needs of the model's workspace */
    lq_memory memory;
    uint64_t device_bytes[LQ_MAX_DEVICES]; /* memory.total_bytes, by device */
} lq_session_layout;

/* Set by lq_session_cancel(), until the next evaluation. */
#define LQ_CANCEL_ONCE 1u

struct lq_session {
    lq_model *model; /* held */
    lq_session_layout layout;
    lq_kv_cache *cache;
    bool holds_workspace;      /* whether it holds the model's workspace */
    const lq_rope_table *rope; /* of global layers; the model's */
    uint32_t n_ctx;
    uint32_t n_room;       /* tokens that the next three arrays have room for */
    int32_t *tokens;       /* [n_room] */
    uint8_t *starts;       /* [n_room] bits, set where a piece begins: tokens that were evaluated at once */
    uint8_t *tentative;    /* [n_room] bits, set where a piece begins that was committed from a tentative chunk */
    float *logits;         /* [n_vocab] of the last token, if logits_on_host; lq_session_fetch_logits() brings them */
    float *device_logits;  /* [n_vocab] on the output head's device; NULL: logits come to the host at once */
    bool logits_on_host;   /* `logits` holds the last token's, if there are any */
    float *pending_logits; /* [max_tentative][n_vocab] of the tentative chunk's last n_pending_logits tokens */
    uint32_t n_pending_logits;
    uint32_t n_pending;   /* tokens of a tentative chunk, which follow those held in tokens[] */
    atomic_uint n_tokens; /* written by the owner, read by anyone */
    atomic_uint has_logits;
    atomic_uint cancel; /* bits: LQ_CANCEL_ONCE, LQ_PASS_ABANDON */
    lq_guard guard;
    pthread_mutex_t look;   /* held while tokens, points and usage change, and while others than the owner read them */
    lq_kv_usage usage;      /* the cache's, as of the last change */
    double token_seconds;   /* seconds per token of the last piece of LQ_WATCHED_TOKENS or more; 0: there was none */
    lq_checkpoint **points; /* [max_checkpoints] by rising number of tokens */
    uint32_t n_points;
    uint64_t point_bytes;
    /* The current answer begins at answer_start; its last token, `sampled`, was chosen when sampled_at tokens were
     * held. */
    uint32_t answer_start;
    uint32_t sampled_at;
    int32_t sampled;
    void *extra; /* the caller's data that a loaded session was saved with */
    size_t n_extra;
};

/* plan.c */
/* LQ_E_ARG if model or options are missing, or the options are not this library's. */
lq_status lq_session_check_options(const lq_model *model, const lq_session_options *options);
/* Resolves options, and plans the memory of the session that they describe. */
lq_status lq_session_resolve(const lq_model *model, const lq_session_options *options, lq_session_layout *out);
/* LQ_E_MEMORY if that memory is not there, with a context that would fit. */
lq_status lq_session_check_budget(const lq_model *model, const lq_session_options *options,
                                  const lq_session_layout *layout);
/* Bytes of the logits that stay on the device of the output head; 0 where they come to the host at once. */
uint64_t lq_session_device_logits_bytes(const lq_model *model);

/* session.c */
/* Enter before, and leave after, any use of the session by its owner. Errors: LQ_E_BUSY, LQ_E_CLOSED, LQ_E_FORKED.
 * Leaving returns status. */
lq_status lq_session_enter(lq_session *session);
lq_status lq_session_leave(lq_session *session, lq_status status);
/* Clears an earlier lq_session_cancel(). */
void lq_session_uncancel(lq_session *session);
/* Records what the cache holds, for lq_session_get_info(); call it whenever that has changed. */
void lq_session_note_usage(lq_session *session);
/* Lock and unlock `look`; never hold it for long. */
void lq_session_lock(const lq_session *session);
void lq_session_unlock(const lq_session *session);
/* Creates an empty session. */
lq_status lq_session_make(lq_model *model, const lq_session_layout *layout, lq_session **out);
/* Makes room for a history of n_tokens. */
lq_status lq_session_grow(lq_session *session, uint32_t n_tokens);
lq_status lq_session_check_tokens(const lq_model *model, const int32_t *tokens, size_t n_tokens);
/* LQ_E_FULL if n_tokens more than held do not fit. */
lq_status lq_session_check_room(const lq_session *session, uint32_t held, size_t n_tokens);
/* Allocates the memory of n_tokens more tokens (at most a chunk); where the context is full, drops the oldest now. */
lq_status lq_session_prepare(lq_session *session, uint32_t n_tokens);
/* Copies the logits to s->logits if the session has any and they are only on a device. LQ_E_INTERNAL: the device
 * failed. */
lq_status lq_session_fetch_logits(lq_session *session);
/* Makes a pass part of the session's next n tokens, for lq_forward(). logits: a buffer for n_logits rows; NULL: one
 * row, which becomes the session's. */
lq_pass_part lq_session_part(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits, float *logits);
/* Makes tokens that were evaluated history, as one piece. The caller sets has_logits and logits_on_host. */
void lq_session_take(lq_session *session, const int32_t *tokens, uint32_t n);
/* The same for a tentative chunk. The first makes a part, whose n_logits rows of logits go to pending_logits; the
 * second makes its tokens pending once they were evaluated; the third makes the first n pending tokens history, sets
 * has_logits and logits_on_host, and forgets the other tokens. */
lq_pass_part lq_session_tentative_part(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits);
void lq_session_hold_pending(lq_session *session, const int32_t *tokens, uint32_t n, uint32_t n_logits);
void lq_session_take_pending(lq_session *session, uint32_t n);
/* LQ_E_ARG if a tentative chunk waits for lq_session_commit(). */
lq_status lq_session_check_pending(const lq_session *session);
/* Evaluates tokens that were checked, piece by piece. */
lq_status lq_session_run(lq_session *session, const int32_t *tokens, uint32_t n_tokens, lq_logits_mode mode,
                         float *logits);
/* Evaluates again, in the same way, tokens that were committed from a tentative chunk. */
lq_status lq_session_run_tentative(lq_session *session, const int32_t *tokens, uint32_t n, bool wants_logits);
/* points.c: brings the session, without evaluating, to the latest state of at most n_keep tokens that it can restore;
 * returns the tokens held. With needs_logits, a state of exactly n_keep tokens counts only if its logits are known. */
uint32_t lq_session_go_back(lq_session *session, uint32_t n_keep, bool needs_logits);
/* points.c: saves what undoes the piece of n tokens that is evaluated next, if the cache cannot and the piece takes so
 * long that it may have to be cancelled. NULL: not needed, or no memory for it (at most what checkpoints may take):
 * then the piece is finished whatever happens. */
lq_checkpoint *lq_session_before(lq_session *session, uint32_t n);
/* Releases it; undo: first restores the cache from it. */
void lq_session_after(lq_session *session, lq_checkpoint *before, bool undo);
void lq_session_drop_checkpoints(lq_session *session, uint32_t n_tokens); /* those of more than n_tokens tokens */
void lq_session_forget_dropped(lq_session *session); /* checkpoints whose pages were dropped to make room */

static inline bool lq_session_starts(const lq_session *s, uint32_t token) {
    return (s->starts[token / 8] >> token % 8 & 1) != 0;
}

static inline bool lq_session_was_tentative(const lq_session *s, uint32_t token) {
    return (s->tentative[token / 8] >> token % 8 & 1) != 0;
}

#endif
