/* workspace.h - the memory in which a model's sessions compute: one workspace for all, because one thread computes at a
 * time. It is as large as the largest of them needs, grows when a session or batch needs more, and is freed with the
 * last. */
#ifndef LQ_SESSION_WORKSPACE_H
#define LQ_SESSION_WORKSPACE_H

#include "model/model.h"

/* Sizes that passes may need; for several users the largest of each. */
typedef struct lq_work_need {
    uint32_t n_rows;                   /* rows of activations in one pass */
    uint32_t n_parts;                  /* of one pass */
    uint32_t n_accumulated;            /* lq_kv_cache_n_accumulated() */
    uint64_t kv_bytes[LQ_MAX_DEVICES]; /* of lq_kv_work, by device */
} lq_work_need;

typedef struct lq_workspace lq_workspace;

lq_status lq_workspace_create(lq_workspace **out);
/* Frees a workspace that nobody holds. */
void lq_workspace_free(const lq_model *model, lq_workspace *work);
/* Computes the bytes that would be allocated at each device, n_bytes[n_devices]: a new workspace for `need` and for
 * what others need; 0 everywhere if there is room already. */
lq_status lq_workspace_plan(const lq_model *model, const lq_work_need *need, uint64_t *n_bytes);
/* Makes that room and holds it. LQ_E_MEMORY: nothing has changed. */
lq_status lq_workspace_hold(lq_model *model, const lq_work_need *need);
void lq_workspace_release(lq_model *model);
/* Returns the bytes held now, at all devices. */
uint64_t lq_workspace_bytes(const lq_model *model);
/* Returns the work memory of KV caches; the struct stays where it is. */
const lq_kv_work *lq_workspace_kv(const lq_model *model);
/* Evaluates a pass whose needs are held. */
lq_status lq_workspace_forward(lq_model *model, const lq_pass_part *parts, uint32_t n_parts);
/* Enclose all else that is done with caches: they lock the workspace and call the backends' begin() and end(). */
void lq_workspace_begin(lq_model *model);
void lq_workspace_end(lq_model *model);

#endif
