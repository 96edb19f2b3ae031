/* workspace.c - the memory in which all sessions of a model compute. */
#include "session/workspace.h"

#include <pthread.h>

#include "core/process.h"
#include "core/system.h"
#include "core/turns.h"

struct lq_workspace {
    /* Take these in this order. */
    pthread_mutex_t growth; /* held while the memory changes, also while that waits for who computes */
    lq_turns compute;       /* held while computing: a long prompt lets others in between its chunks */
    pthread_mutex_t sizes;  /* held for a moment to change need, n_bytes and n_holds, or to read them without growth */
    lq_work_need need;
    uint64_t n_bytes; /* as planned */
    uint32_t n_holds;
    lq_run_state state;
    lq_kv_work kv;
};

lq_status lq_workspace_create(lq_workspace **out) {
    void *memory;
    LQ_TRY(lq_alloc(sizeof(lq_workspace), "workspace", &memory));
    *out = memory;
    pthread_mutex_init(&(*out)->growth, NULL);
    lq_turns_init(&(*out)->compute);
    pthread_mutex_init(&(*out)->sizes, NULL);
    return LQ_OK;
}

/* ---- sizes */

static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
static uint64_t larger_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

static lq_work_need both(const lq_work_need *a, const lq_work_need *b) {
    lq_work_need sum = {.n_rows = larger(a->n_rows, b->n_rows),
                        .n_parts = larger(a->n_parts, b->n_parts),
                        .n_accumulated = larger(a->n_accumulated, b->n_accumulated)};
    for (uint32_t i = 0; i < LQ_MAX_DEVICES; i++) sum.kv_bytes[i] = larger_u64(a->kv_bytes[i], b->kv_bytes[i]);
    return sum;
}

static bool is_within(const lq_work_need *need, const lq_work_need *room) {
    bool fits =
        need->n_rows <= room->n_rows && need->n_parts <= room->n_parts && need->n_accumulated <= room->n_accumulated;
    for (uint32_t i = 0; i < LQ_MAX_DEVICES; i++) fits = fits && need->kv_bytes[i] <= room->kv_bytes[i];
    return fits;
}

static lq_status plan(const lq_model *model, const lq_work_need *need, uint64_t *n_bytes) {
    LQ_TRY(lq_run_state_plan(model, need->n_rows, need->n_parts, need->n_accumulated, n_bytes));
    for (uint32_t i = 0; i < model->n_devices; i++) n_bytes[i] += need->kv_bytes[i];
    return LQ_OK;
}

static bool is_held(pthread_mutex_t *lock) {
    if (pthread_mutex_trylock(lock) != 0) return true;
    pthread_mutex_unlock(lock);
    return false;
}

/* In a forked child a lock may be held by a thread that is not there: then the memory stays as it is. */
static bool is_out_of_reach(const lq_model *model, lq_workspace *work) {
    if (model->process == lq_process()) return false;
    return is_held(&work->growth) || lq_turns_is_held(&work->compute) || is_held(&work->sizes);
}

lq_status lq_workspace_plan(const lq_model *model, const lq_work_need *need, uint64_t *n_bytes) {
    lq_workspace *work = model->workspace;
    lq_work_need room = {0};
    if (!is_out_of_reach(model, work)) {
        pthread_mutex_lock(&work->sizes);
        room = work->need;
        pthread_mutex_unlock(&work->sizes);
    }
    lq_work_need all = both(need, &room);
    for (uint32_t i = 0; i < model->n_devices; i++) n_bytes[i] = 0;
    return is_within(need, &room) ? LQ_OK : plan(model, &all, n_bytes);
}

/* ---- life */

typedef struct room {
    lq_run_state state;
    lq_kv_work kv;
} room;

static void free_room(const lq_model *model, const lq_work_need *need, room *r) {
    if (r->state.attention != NULL) lq_run_state_free(model, &r->state);
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        backend->ops->release(backend, r->kv.device[i], need->kv_bytes[i]);
    }
}

static lq_status create_room(const lq_model *model, const lq_work_need *need, room *r) {
    LQ_TRY(lq_run_state_create(model, need->n_rows, need->n_parts, need->n_accumulated, &r->state));
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        LQ_TRY(backend->ops->alloc(backend, need->kv_bytes[i], "KV cache", &r->kv.device[i]));
    }
    return LQ_OK;
}

/* Frees the old memory only when the new one is in place. The caller holds `growth`. */
static void exchange(const lq_model *model, lq_workspace *work, const lq_work_need *need, uint64_t n_bytes, room *r) {
    lq_turns_take(&work->compute);
    room before = {work->state, work->kv};
    lq_work_need need_before = work->need;
    work->state = r->state;
    work->kv = r->kv;
    pthread_mutex_lock(&work->sizes);
    work->need = *need;
    work->n_bytes = n_bytes;
    pthread_mutex_unlock(&work->sizes);
    lq_turns_give(&work->compute);
    free_room(model, &need_before, &before);
}

lq_status lq_workspace_hold(lq_model *model, const lq_work_need *need) {
    lq_workspace *work = model->workspace;
    lq_status status = LQ_OK;
    pthread_mutex_lock(&work->growth);
    if (!is_within(need, &work->need)) {
        lq_work_need all = both(need, &work->need);
        uint64_t n_bytes[LQ_MAX_DEVICES], sum = 0;
        room r = {0};
        status = plan(model, &all, n_bytes);
        if (status == LQ_OK) status = create_room(model, &all, &r);
        for (uint32_t i = 0; i < model->n_devices && status == LQ_OK; i++) sum += n_bytes[i];
        if (status == LQ_OK)
            exchange(model, work, &all, sum, &r);
        else
            free_room(model, &all, &r);
    }
    if (status == LQ_OK) work->n_holds++;
    pthread_mutex_unlock(&work->growth);
    return status;
}

void lq_workspace_release(lq_model *model) {
    static const lq_work_need nothing;
    lq_workspace *work = model->workspace;
    room none = {0};
    if (is_out_of_reach(model, work)) return;
    pthread_mutex_lock(&work->growth);
    if (--work->n_holds == 0) exchange(model, work, &nothing, 0, &none);
    pthread_mutex_unlock(&work->growth);
}

uint64_t lq_workspace_bytes(const lq_model *model) {
    lq_workspace *work = model->workspace;
    if (is_out_of_reach(model, work)) return 0;
    pthread_mutex_lock(&work->sizes);
    uint64_t n_bytes = work->n_bytes;
    pthread_mutex_unlock(&work->sizes);
    return n_bytes;
}

void lq_workspace_free(const lq_model *model, lq_workspace *work) {
    if (work == NULL || is_out_of_reach(model, work)) return;
    pthread_mutex_destroy(&work->growth);
    lq_turns_destroy(&work->compute);
    pthread_mutex_destroy(&work->sizes);
    lq_free(work);
}

/* ---- use */

const lq_kv_work *lq_workspace_kv(const lq_model *model) { return &model->workspace->kv; }

lq_status lq_workspace_forward(lq_model *model, const lq_pass_part *parts, uint32_t n_parts) {
    lq_workspace *work = model->workspace;
    lq_turns_take(&work->compute);
    lq_status status = lq_forward(model, &work->state, parts, n_parts);
    lq_turns_give(&work->compute);
    return status;
}

void lq_workspace_begin(lq_model *model) {
    lq_turns_take(&model->workspace->compute);
    lq_model_begin(model, &model->workspace->state);
}

void lq_workspace_end(lq_model *model) {
    lq_model_end(model);
    lq_turns_give(&model->workspace->compute);
}
