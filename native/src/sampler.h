/* sampler.h - logits -> token; pure but for its random state, knows nothing of sessions. */
#ifndef LQ_SAMPLER_H
#define LQ_SAMPLER_H

#include "core/status.h"

/* Picks from logits[n_vocab]; history[n_history] is what penalties look at. Otherwise as lq_session_sample(). */
lq_status lq_sampler_pick(lq_sampler *sampler, const float *logits, uint32_t n_vocab, const int32_t *history,
                          size_t n_history, lq_token_prob *chosen, lq_token_prob *top, size_t n_top);

#endif
