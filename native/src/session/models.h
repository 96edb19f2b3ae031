/* models.h - the reference count of a model: it lives as long as the caller or any session holds it. */
#ifndef LQ_SESSION_MODELS_H
#define LQ_SESSION_MODELS_H

#include "model/model.h"

void lq_model_retain(lq_model *model);
/* Releases one reference; frees with the last. */
void lq_model_release(lq_model *model);
/* LQ_E_FORKED in a forked child of the process that opened it. */
lq_status lq_model_check_process(const lq_model *model);
/* True in such a child if some of it is on a GPU, whose memory belongs to the parent: nothing of it can be freed. */
bool lq_model_is_stranded(const lq_model *model);

#endif
