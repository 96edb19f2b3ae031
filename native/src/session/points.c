/* points.c - checkpoints, going back, forks.
 *
 * Going back is exact: the session is then bit for bit what a new one would be that was fed the same pieces, the last
 * one cut short. It starts from a checkpoint, or from the beginning of a piece that the cache can rewind to, and
 * evaluates the tokens after it again, in the same pieces. */
#include <string.h>

#include "core/system.h"
#include "session/inside.h"

/* A piece that takes less is finished even if it is cancelled: nothing is saved to undo it. */
#define SHORT_SECONDS 0.1

/* ---- checkpoints */

static void release_point(lq_checkpoint *point) {
    if (point != NULL && atomic_fetch_sub(&point->n_refs, 1) == 1) lq_free(point);
}

static void remove_point(lq_session *s, uint32_t index) {
    lq_checkpoint *point = s->points[index];
    lq_session_lock(s);
    s->point_bytes -= point->n_bytes;
    s->n_points--;
    memmove(s->points + index, s->points + index + 1, (s->n_points - index) * sizeof(lq_checkpoint *));
    lq_session_unlock(s);
    release_point(point);
}

void lq_session_drop_checkpoints(lq_session *s, uint32_t n_tokens) {
    while (s->n_points > 0 && s->points[s->n_points - 1]->n_tokens > n_tokens) remove_point(s, s->n_points - 1);
}

void lq_session_forget_dropped(lq_session *s) {
    uint32_t floor = lq_kv_cache_drop_floor(s->cache);
    while (s->n_points > 0 && s->points[0]->n_tokens <= floor) remove_point(s, 0);
}

static lq_status count_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    uint64_t *total = context;
    (void)backend, (void)memory;
    *total += n_bytes;
    return LQ_OK;
}

static lq_status take_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    uint8_t **at = context;
    if (n_bytes != 0) backend->ops->download(backend, *at, memory, n_bytes);
    *at += n_bytes;
    return LQ_OK;
}

static lq_status give_piece(void *context, lq_backend *backend, void *memory, uint64_t n_bytes) {
    const uint8_t **at = context;
    if (n_bytes != 0) backend->ops->upload(backend, memory, *at, n_bytes);
    *at += n_bytes;
    return LQ_OK;
}

/* Makes room for one more checkpoint by dropping those whose loss costs least: the fewest tokens to evaluate again. */
static void thin_out(lq_session *s, uint64_t n_bytes) {
    while (s->n_points > 0 &&
           (s->n_points >= s->layout.max_checkpoints || s->point_bytes + n_bytes > s->layout.max_checkpoint_bytes)) {
        uint32_t cheapest = 0, least = UINT32_MAX;
        for (uint32_t i = 0; i < s->n_points; i++) {
            uint32_t before = i > 0 ? s->points[i - 1]->n_tokens : 0;
            if (s->points[i]->n_tokens - before >= least) continue;
            least = s->points[i]->n_tokens - before;
            cheapest = i;
        }
        remove_point(s, cheapest);
    }
}

static lq_status take_point(lq_session *s, uint32_t n_tokens, lq_checkpoint **out) {
    uint64_t logits_bytes = atomic_load(&s->has_logits) ? s->model->config.n_vocab * sizeof(float) : 0, n_bytes = 0;
    void *memory;
    char wanted[32], allowed[32];
    LQ_TRY(lq_session_fetch_logits(s));
    LQ_TRY(lq_kv_cache_walk(s->cache, n_tokens, 0, count_piece, &n_bytes));
    n_bytes += sizeof(lq_checkpoint) + logits_bytes;
    if (s->layout.max_checkpoints == 0 || n_bytes > s->layout.max_checkpoint_bytes) {
        lq_format_bytes(wanted, n_bytes);
        lq_format_bytes(allowed, s->layout.max_checkpoint_bytes);
        return lq_fail(LQ_E_MEMORY, "a checkpoint takes %s; this session may keep %u of together %s", wanted,
                       (unsigned)s->layout.max_checkpoints, allowed);
    }
    LQ_TRY(lq_alloc(n_bytes, "checkpoint", &memory));
    lq_checkpoint *point = memory;
    atomic_init(&point->n_refs, 1);
    point->n_tokens = n_tokens;
    point->has_logits = logits_bytes != 0;
    point->n_bytes = n_bytes;
    point->logits = (float *)(void *)(point + 1);
    point->state = (uint8_t *)(point + 1) + logits_bytes;
    if (point->has_logits) memcpy(point->logits, s->logits, logits_bytes);
    uint8_t *at = point->state;
    lq_workspace_begin(s->model);
    lq_kv_cache_walk(s->cache, n_tokens, 0, take_piece, &at); /* take_piece() cannot fail */
    lq_workspace_end(s->model);
    *out = point;
    return LQ_OK;
}

/* Takes the place of one at the same tokens. */
static lq_status create_point(lq_session *s, uint32_t n_tokens) {
    lq_checkpoint *point;
    LQ_TRY(take_point(s, n_tokens, &point));
    if (s->n_points > 0 && s->points[s->n_points - 1]->n_tokens == n_tokens) remove_point(s, s->n_points - 1);
    thin_out(s, point->n_bytes);
    lq_session_lock(s);
    s->points[s->n_points++] = point;
    s->point_bytes += point->n_bytes;
    lq_session_unlock(s);
    return LQ_OK;
}

/* True if the last checkpoint is of the tokens held, has logits if the session has any, and has this note or can take
 * it: a checkpoint shared with a fork must keep its note. */
static bool can_keep_last(const lq_session *s, uint32_t held, const void *note, size_t n_note) {
    const lq_checkpoint *last = s->n_points > 0 ? s->points[s->n_points - 1] : NULL;
    if (last == NULL || last->n_tokens != held || (!last->has_logits && atomic_load(&s->has_logits))) return false;
    if (atomic_load(&last->n_refs) == 1) return true;
    return last->n_note == n_note && (n_note == 0 || memcmp(last->note, note, n_note) == 0);
}

lq_status lq_session_checkpoint(lq_session *s, const void *note, size_t n_note) {
    if (n_note > LQ_NOTE_BYTES || (note == NULL && n_note != 0))
        return lq_fail(LQ_E_ARG, "a checkpoint keeps a note of 0 to %d bytes, not %zu", LQ_NOTE_BYTES, n_note);
    LQ_TRY(lq_session_enter(s));
    uint32_t held = atomic_load(&s->n_tokens);
    lq_status status = lq_session_check_pending(s);
    if (status == LQ_OK && held > 0 && !can_keep_last(s, held, note, n_note)) status = create_point(s, held);
    if (status == LQ_OK && held > 0) {
        lq_checkpoint *last = s->points[s->n_points - 1];
        lq_session_lock(s);
        if (atomic_load(&last->n_refs) == 1) {
            last->n_note = n_note;
            if (n_note != 0) memcpy(last->note, note, n_note);
        }
        lq_session_unlock(s);
    }
    return lq_session_leave(s, status);
}

size_t lq_session_get_note(const lq_session *s, uint32_t n_tokens, void *bytes, size_t n_bytes) {
    size_t n_note = 0;
    if (s == NULL) return 0;
    lq_session_lock(s);
    for (uint32_t i = 0; i < s->n_points; i++) {
        if (s->points[i]->n_tokens != n_tokens) continue;
        n_note = s->points[i]->n_note;
        if (bytes != NULL) memcpy(bytes, s->points[i]->note, n_bytes < n_note ? n_bytes : n_note);
    }
    lq_session_unlock(s);
    return n_note;
}

size_t lq_session_get_checkpoints(const lq_session *s, uint32_t *positions, size_t n) {
    if (s == NULL) return 0;
    lq_session_lock(s);
    for (size_t i = 0; positions != NULL && i < n && i < s->n_points; i++) positions[i] = s->points[i]->n_tokens;
    size_t n_points = s->n_points;
    lq_session_unlock(s);
    return n_points;
}

/* ---- going back */

static const lq_checkpoint *last_point(const lq_session *s, uint32_t n_keep, bool needs_logits) {
    for (uint32_t i = s->n_points; i-- > 0;) {
        const lq_checkpoint *point = s->points[i];
        if (point->n_tokens < n_keep || (point->n_tokens == n_keep && (point->has_logits || !needs_logits)))
            return point;
    }
    return NULL;
}

/* Returns the largest number of tokens, above floor and at most n_keep (below it with needs_logits), at which a piece
 * begins and to which the cache can rewind; else floor. Where every token is a cell and logits are not needed, a piece
 * may be cut in the middle: its cells stay what they are. */
static uint32_t last_cut(const lq_session *s, uint32_t n_keep, uint32_t floor, bool needs_logits) {
    uint32_t at = needs_logits ? n_keep - 1 : n_keep;
    bool anywhere = !needs_logits && !s->layout.kv.recipe.selects;
    for (; at > floor; at--)
        if ((anywhere || lq_session_starts(s, at)) && lq_kv_cache_can_rewind(s->cache, at)) return at;
    return floor;
}

static void restore(lq_session *s, const lq_checkpoint *point) {
    const uint8_t *at = point->state;
    lq_kv_cache_walk(s->cache, point->n_tokens, 0, give_piece, &at); /* give_piece() cannot fail */
    lq_kv_cache_restored(s->cache, point->n_tokens);
    if (!point->has_logits) return;
    memcpy(s->logits, point->logits, s->model->config.n_vocab * sizeof(float));
    s->logits_on_host = true;
}

lq_checkpoint *lq_session_before(lq_session *s, uint32_t n) {
    uint32_t held = atomic_load(&s->n_tokens);
    lq_checkpoint *last = s->n_points > 0 ? s->points[s->n_points - 1] : NULL, *point;
    bool is_short = s->token_seconds == 0.0 ? n < LQ_WATCHED_TOKENS : n * s->token_seconds < SHORT_SECONDS;
    if (is_short || lq_kv_cache_can_undo(s->cache, false)) return NULL;
    if (last != NULL && last->n_tokens == held) {
        atomic_fetch_add(&last->n_refs, 1);
        return last;
    }
    return take_point(s, held, &point) == LQ_OK ? point : NULL;
}

void lq_session_after(lq_session *s, lq_checkpoint *before, bool undo) {
    if (before != NULL && undo) {
        lq_workspace_begin(s->model);
        restore(s, before);
        lq_workspace_end(s->model);
    }
    release_point(before);
}

uint32_t lq_session_go_back(lq_session *s, uint32_t n_keep, bool needs_logits) {
    uint32_t held = atomic_load(&s->n_tokens);
    bool lacks_logits = needs_logits && atomic_load(&s->has_logits) == 0;
    s->n_pending = 0;
    if (n_keep > held || (n_keep == held && !(lacks_logits && held != 0))) return held;
    const lq_checkpoint *point = n_keep > 0 ? last_point(s, n_keep, needs_logits) : NULL;
    uint32_t at = point != NULL ? point->n_tokens : 0;
    uint32_t cut = n_keep > at ? last_cut(s, n_keep, at, needs_logits) : at;
    lq_workspace_begin(s->model);
    if (cut > at || point == NULL)
        lq_kv_cache_rewind(s->cache, cut);
    else
        restore(s, point);
    lq_workspace_end(s->model);
    atomic_store(&s->has_logits, cut == at && point != NULL && point->has_logits);
    atomic_store(&s->n_tokens, cut);
    lq_session_note_usage(s);
    lq_session_drop_checkpoints(s, cut);
    return cut;
}

/* Evaluates again the session's tokens after those held, up to n_tokens, in the pieces they came in. */
static lq_status run_again(lq_session *s, uint32_t n_tokens) {
    for (uint32_t held; (held = atomic_load(&s->n_tokens)) < n_tokens;) {
        uint32_t end = held + 1;
        while (end < n_tokens && !lq_session_starts(s, end)) end++;
        if (lq_session_was_tentative(s, held))
            LQ_TRY(lq_session_run_tentative(s, s->tokens + held, end - held, end == n_tokens));
        else
            LQ_TRY(lq_session_run(s, s->tokens + held, end - held, end == n_tokens ? LQ_LOGITS_LAST : LQ_LOGITS_NONE,
                                  NULL));
        if (end < n_tokens && atomic_load(&s->cancel)) return lq_fail(LQ_E_CANCELLED, "cancelled");
    }
    return LQ_OK;
}

lq_status lq_session_rewind(lq_session *s, size_t n_tokens, size_t *n_evaluated) {
    LQ_TRY(lq_session_enter(s));
    lq_session_uncancel(s);
    uint32_t held = atomic_load(&s->n_tokens);
    lq_status status = LQ_OK;
    s->n_pending = 0;
    if (n_evaluated == NULL)
        status = lq_fail(LQ_E_ARG, "n_evaluated is NULL");
    else if (n_tokens > held)
        status = lq_fail(LQ_E_ARG, "cannot go back to %zu tokens: the session holds %u", n_tokens, (unsigned)held);
    if (status != LQ_OK) return lq_session_leave(s, status);
    *n_evaluated = 0;
    if (n_tokens < held || atomic_load(&s->has_logits) == 0) { /* cancelled, or evaluated without logits */
        uint32_t kept = lq_session_go_back(s, (uint32_t)n_tokens, true);
        *n_evaluated = n_tokens - kept;
        if (kept < n_tokens) status = run_again(s, (uint32_t)n_tokens);
    }
    return lq_session_leave(s, status);
}

/* ---- forks */

/* Copies tokens, logits and checkpoints to a fork, which has room for them. */
static void copy_history(lq_session *fork, const lq_session *s, uint32_t held) {
    memcpy(fork->tokens, s->tokens, held * sizeof *s->tokens);
    memcpy(fork->starts, s->starts, (held + 7) / 8);
    memcpy(fork->tentative, s->tentative, (held + 7) / 8);
    if (atomic_load(&s->has_logits)) memcpy(fork->logits, s->logits, s->model->config.n_vocab * sizeof(float));
    atomic_store(&fork->has_logits, atomic_load(&s->has_logits));
    atomic_store(&fork->n_tokens, held);
    for (uint32_t i = 0; i < s->n_points; i++) {
        atomic_fetch_add(&s->points[i]->n_refs, 1);
        fork->points[i] = s->points[i];
    }
    fork->answer_start = s->answer_start;
    fork->sampled_at = s->sampled_at;
    fork->sampled = s->sampled;
    fork->n_points = s->n_points;
    fork->point_bytes = s->point_bytes;
}

lq_status lq_session_fork(lq_session *s, lq_session **out) {
    lq_session *fork = NULL;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    LQ_TRY(lq_session_enter(s));
    lq_status status = lq_session_check_pending(s);
    if (status == LQ_OK) status = lq_session_make(s->model, &s->layout, &fork);
    if (status == LQ_OK) status = lq_session_grow(fork, atomic_load(&s->n_tokens));
    if (status == LQ_OK) status = lq_session_fetch_logits(s);
    if (status != LQ_OK) lq_session_close(&fork);
    if (status != LQ_OK) return lq_session_leave(s, status);
    lq_workspace_begin(s->model);
    status = lq_kv_cache_copy(fork->cache, s->cache);
    lq_workspace_end(s->model);
    if (status == LQ_OK) {
        copy_history(fork, s, atomic_load(&s->n_tokens));
        lq_session_note_usage(fork);
        *out = fork;
    } else {
        lq_session_close(&fork);
    }
    return lq_session_leave(s, status);
}
