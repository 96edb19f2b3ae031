/* sampler.h - picks a token from logits. Its only state is that of the random numbers; it knows nothing of sessions. */
#ifndef LQ_SAMPLER_H
#define LQ_SAMPLER_H

#include "core/ranked.h"
#include "core/status.h"

/* Picks from logits[n_vocab]. Penalties look at history[n_history], whose last n_generated tokens were picked. All else
 * is as in lq_session_sample(). */
lq_status lq_sampler_pick(lq_sampler *sampler, const float *logits, uint32_t n_vocab, const int32_t *history,
                          size_t n_history, size_t n_generated, lq_token_prob *chosen, lq_token_prob *top,
                          size_t n_top);

/* Call these around picking. LQ_E_BUSY if another thread is picking with this sampler. */
lq_status lq_sampler_enter(lq_sampler *sampler);
void lq_sampler_leave(lq_sampler *sampler);

/* How many of the best logits a pick needs if no top tokens are asked for: 1 to LQ_BEST_MOST, or 0 if it needs all. */
uint32_t lq_sampler_looks_at(const lq_sampler *sampler, uint32_t n_vocab);
/* Picks the same token from these alone: best[n] as lq_backend_ops.best() selects them; fewer if no more are numbers.
 */
lq_status lq_sampler_pick_from(lq_sampler *sampler, const lq_ranked *best, uint32_t n, lq_token_prob *chosen);

#endif
