/* session.h - one timeline: token history, position, KV cache, logits. api.c checks arguments before calling here. */
#ifndef LQ_SESSION_H
#define LQ_SESSION_H

#include "model/model.h"

void lq_model_retain(lq_model *model);
/* Drops one hold; frees with the last. */
void lq_model_release(lq_model *model);

#endif
