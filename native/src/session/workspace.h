/* workspace.h - the memory that a model's sessions compute in: one for all of them, because one thread computes at a
 * time. It is as large as the largest of them needs, grows when one is made that needs more, and goes with the last. */
#ifndef LQ_SESSION_WORKSPACE_H
#define LQ_SESSION_WORKSPACE_H

#include "model/model.h"

/* What passes may ask for; of several, the most of each. */
typedef struct lq_work_need {
    uint32_t n_rows;                   /* of activations, of one pass */
    uint32_t n_parts;                  /* of one pass */
    uint32_t n_accumulated;            /* lq_kv_cache_n_accumulated() */
    uint64_t kv_bytes[LQ_MAX_DEVICES]; /* of lq_kv_work */
} lq_work_need;

typedef struct lq_workspace lq_workspace;

lq_status lq_workspace_create(lq_workspace **out);
/* Nobody holds it. */
void lq_workspace_free(const lq_model *model, lq_workspace *work);
/* Bytes that would be taken at each device, n_bytes[n_devices], for `need` besides what others need; 0 everywhere if
 * there is room already. */
lq_status lq_workspace_plan(const lq_model *model, const lq_work_need *need, uint64_t *n_bytes);
/* Makes that room and holds it. LQ_E_MEMORY: nothing has changed. */
lq_status lq_workspace_hold(lq_model *model, const lq_work_need *need);
void lq_workspace_release(lq_model *model);
/* What is held now, at all devices. */
uint64_t lq_workspace_bytes(const lq_model *model);
/* What caches compute in; it stays where it is. */
const lq_kv_work *lq_workspace_kv(const lq_model *model);
/* Evaluates a pass within what is held. */
lq_status lq_workspace_forward(lq_model *model, const lq_pass_part *parts, uint32_t n_parts);
/* Around whatever else is done with caches: the backends' begin() and end(). */
void lq_workspace_begin(lq_model *model);
void lq_workspace_end(lq_model *model);

#endif
