/* sampler.h - logits -> token; pure but for its random state, knows nothing of sessions. */
#ifndef LQ_SAMPLER_H
#define LQ_SAMPLER_H

#include "core/ranked.h"
#include "core/status.h"

/* Picks from logits[n_vocab]; history[n_history] is what penalties look at, its last n_generated tokens were picked.
 * Otherwise as lq_session_sample(). */
lq_status lq_sampler_pick(lq_sampler *sampler, const float *logits, uint32_t n_vocab, const int32_t *history,
                          size_t n_history, size_t n_generated, lq_token_prob *chosen, lq_token_prob *top,
                          size_t n_top);

/* Around picking: LQ_E_BUSY if another thread is at it, with this sampler. */
lq_status lq_sampler_enter(lq_sampler *sampler);
void lq_sampler_leave(lq_sampler *sampler);

/* How many of the best logits a pick looks at, with no top tokens asked for: 1 to LQ_BEST_MOST, or 0 = at all of them.
 */
uint32_t lq_sampler_looks_at(const lq_sampler *sampler, uint32_t n_vocab);
/* The same pick from these alone: best[n], as lq_backend_ops.best() gives that many, or fewer if no more count. */
lq_status lq_sampler_pick_from(lq_sampler *sampler, const lq_ranked *best, uint32_t n, lq_token_prob *chosen);

#endif
