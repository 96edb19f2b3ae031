/* sampler.c - bias, penalties, truncation, draw. Candidates have the same order everywhere: larger logit first, ties to
 * the lower id, so that equal logits give equal tokens on every machine. */
#include "sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/checked.h"
#include "core/guard.h"
#include "core/system.h"

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct lq_sampler {
    lq_sampler_options options; /* bias pointers replaced by the copies below */
    uint64_t random;
    lq_guard guard;
    int32_t *bias_tokens;
    float *bias_values;
    /* Work arrays, kept from token to token; they grow if the vocabulary or the history needs it. */
    float *logits;
    uint64_t n_logits;
    candidate *candidates;
    uint64_t n_candidates;
    int32_t *recent;
    uint64_t n_recent;
};

static lq_status grow(void **area, uint64_t *held, uint64_t wanted, size_t item_bytes) {
    uint64_t bytes;
    void *bigger;
    if (wanted <= *held) return LQ_OK;
    if (!lq_mul_u64(wanted, item_bytes, &bytes)) return lq_fail(LQ_E_MEMORY, "out of memory: sampler");
    LQ_TRY(lq_alloc(bytes, "sampler", &bigger));
    lq_free(*area);
    *area = bigger;
    *held = wanted;
    return LQ_OK;
}

/* ---- order */

static bool better(candidate a, candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); }

static int compare_candidates(const void *a, const void *b) {
    candidate x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return better(x, y) ? -1 : better(y, x) ? 1 : 0;
}

/* Restores a heap with the worst candidate on top. */
static void sift_down(candidate *heap, size_t n, size_t at) {
    for (;;) {
        size_t worst = at, child = 2 * at + 1;
        if (child < n && better(heap[worst], heap[child])) worst = child;
        if (child + 1 < n && better(heap[worst], heap[child + 1])) worst = child + 1;
        if (worst == at) return;
        candidate swapped = heap[at];
        heap[at] = heap[worst];
        heap[worst] = swapped;
        at = worst;
    }
}

/* Writes the k best logits to out, best first; returns how many there are (NaN and -infinity never count). */
static size_t select_best(const float *logits, uint32_t n_vocab, size_t k, candidate *out) {
    size_t n = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        candidate c = {logits[i], (int32_t)i};
        if (n < k) {
            if (!(c.logit > -INFINITY)) continue;
            out[n++] = c;
            if (n == k) {
                for (size_t at = k / 2; at-- > 0;) sift_down(out, k, at);
            }
        } else if (c.logit > out[0].logit) { /* a tie has the higher id: worse */
            out[0] = c;
            sift_down(out, k, 0);
        }
    }
    qsort(out, n, sizeof *out, compare_candidates);
    return n;
}

static float log_sum_exp(const float *logits, uint32_t n_vocab, float max) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (logits[i] > -INFINITY) sum += expf(logits[i] - max);
    }
    return max + (float)log(sum);
}

/* ---- bias and penalties */

static int compare_tokens(const void *a, const void *b) {
    int32_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static bool penalizes(const lq_sampler_options *o) {
    return o->repeat_penalty != 1.0f || o->frequency_penalty != 0.0f || o->presence_penalty != 0.0f;
}

static void penalize_repeated(const lq_sampler_options *o, float *logit, uint32_t count) {
    (void)count;
    *logit = *logit > 0.0f ? *logit / o->repeat_penalty : *logit * o->repeat_penalty;
}

static void penalize_counted(const lq_sampler_options *o, float *logit, uint32_t count) {
    *logit -= o->frequency_penalty * (float)count + o->presence_penalty;
}

/* Calls change once for every token among the newest n of the history, with its number of occurrences there. */
static lq_status penalize(lq_sampler *s, const int32_t *history, size_t n_history, size_t n,
                          void (*change)(const lq_sampler_options *o, float *logit, uint32_t count)) {
    void *area = s->recent;
    if (n == 0) return LQ_OK;
    LQ_TRY(grow(&area, &s->n_recent, n, sizeof *s->recent));
    s->recent = area;
    memcpy(s->recent, history + (n_history - n), n * sizeof *history);
    qsort(s->recent, n, sizeof *s->recent, compare_tokens);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && s->recent[end] == s->recent[i]; end++) {
        }
        change(&s->options, &s->logits[s->recent[i]], (uint32_t)(end - i));
    }
    return LQ_OK;
}

/* Copies the logits into the sampler's own array, with bias and penalties applied. */
static lq_status adjust(lq_sampler *s, const float *logits, uint32_t n_vocab, const int32_t *history, size_t n_history,
                        size_t n_generated) {
    const lq_sampler_options *o = &s->options;
    void *area = s->logits;
    LQ_TRY(grow(&area, &s->n_logits, n_vocab, sizeof *s->logits));
    s->logits = area;
    memcpy(s->logits, logits, n_vocab * sizeof *logits);
    for (uint32_t i = 0; i < o->n_bias; i++) {
        if (s->bias_tokens[i] < 0 || (uint32_t)s->bias_tokens[i] >= n_vocab)
            return lq_fail(LQ_E_ARG, "logit bias for token %d, but the vocabulary has %u", (int)s->bias_tokens[i],
                           (unsigned)n_vocab);
        s->logits[s->bias_tokens[i]] += s->bias_values[i];
    }
    size_t n = o->penalty_last_n != 0 && o->penalty_last_n < n_history ? o->penalty_last_n : n_history;
    if (o->repeat_penalty != 1.0f) LQ_TRY(penalize(s, history, n_history, n, penalize_repeated));
    if (o->frequency_penalty == 0.0f && o->presence_penalty == 0.0f) return LQ_OK;
    return penalize(s, history, n_history, n < n_generated ? n : n_generated, penalize_counted);
}

/* ---- truncation and draw */

/* Draws a number, uniform in [0, 1), 53 bits (splitmix64; Steele et al. 2014). */
static double draw(lq_sampler *s) {
    uint64_t z = (s->random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static lq_status grow_candidates(lq_sampler *s, uint64_t n) {
    void *area = s->candidates;
    LQ_TRY(grow(&area, &s->n_candidates, n, sizeof *s->candidates));
    s->candidates = area;
    return LQ_OK;
}

/* Returns how many of the first n candidates min-p keeps. */
static size_t drop_rare(const lq_sampler *s, size_t n, float max) {
    if (s->options.min_p <= 0.0f) return n;
    float floor = max + logf(s->options.min_p);
    while (n > 1 && s->candidates[n - 1].logit < floor) n--;
    return n;
}

/* Returns how many of the n best tokens make up top_p of the probability mass; 0 if all n are not enough. */
static size_t nucleus(const candidate *best, size_t n, float log_total, float top_p) {
    double mass = 0.0;
    for (size_t i = 0; i < n; i++) {
        mass += exp((double)best[i].logit - log_total);
        if (mass >= (double)top_p) return i + 1;
    }
    return 0;
}

/* Applies top-p, then min-p, to the n candidates that top-k kept; returns how many remain. */
static size_t shorten(const lq_sampler *s, size_t n, float max) {
    const lq_sampler_options *o = &s->options;
    if (o->top_p < 1.0f) {
        double mass = 0.0;
        for (size_t i = 0; i < n; i++) mass += exp((double)s->candidates[i].logit - max);
        size_t kept = nucleus(s->candidates, n, max + (float)log(mass), o->top_p);
        if (kept != 0) n = kept; /* else rounding left the sum just below top_p: all */
    }
    return drop_rare(s, n, max);
}

/* Selects the candidates that may be drawn, best first. top-p counts the mass that top-k kept as 1. */
static lq_status truncate(lq_sampler *s, const float *logits, uint32_t n_vocab, float max, size_t *n_out) {
    const lq_sampler_options *o = &s->options;
    size_t limit = o->top_k != 0 && o->top_k < n_vocab ? o->top_k : n_vocab;
    if (limit < n_vocab) {
        LQ_TRY(grow_candidates(s, limit));
        *n_out = shorten(s, select_best(logits, n_vocab, limit, s->candidates), max);
        return LQ_OK;
    }
    /* Without top-k, a nucleus rarely needs more than a few hundred tokens: look at more only when it does. */
    size_t k = o->top_p < 1.0f && limit > 256 ? 256 : limit;
    float log_total = o->top_p < 1.0f ? log_sum_exp(logits, n_vocab, max) : 0.0f;
    size_t n;
    for (;;) {
        LQ_TRY(grow_candidates(s, k));
        n = select_best(logits, n_vocab, k, s->candidates);
        if (o->top_p >= 1.0f) break;
        size_t kept = nucleus(s->candidates, n, log_total, o->top_p);
        if (kept != 0) {
            n = kept;
            break;
        }
        if (k == limit) break; /* rounding left the sum just below top_p: keep all */
        k = k > limit / 8 ? limit : 8 * k;
    }
    *n_out = drop_rare(s, n, max);
    return LQ_OK;
}

static int32_t draw_candidate(lq_sampler *s, size_t n, float max) {
    double total = 0.0, left;
    for (size_t i = 0; i < n; i++) total += exp(((double)s->candidates[i].logit - max) / s->options.temperature);
    left = draw(s) * total;
    for (size_t i = 0; i < n; i++) {
        left -= exp(((double)s->candidates[i].logit - max) / s->options.temperature);
        if (left < 0.0) return s->candidates[i].token;
    }
    return s->candidates[n - 1].token;
}

/* The sampler sees only logits, so it names both possible causes. */
#define NOT_FINITE                                                                                                     \
    "no logit is a number: weights are damaged, or keys or values exceed the 65504 that f16 holds, where q8_0 may do"

/* Returns the error for logits of which none can be chosen: the model's are no numbers, or biases forbid the rest. */
static lq_status nothing_to_choose(const float *model_logits, uint32_t n_vocab) {
    candidate best;
    if (select_best(model_logits, n_vocab, 1, &best) == 0) return lq_fail(LQ_E_FORMAT, "%s", NOT_FINITE);
    return lq_fail(LQ_E_ARG, "no token can be chosen: biases forbid every one whose logit is a number");
}

lq_status lq_sampler_pick(lq_sampler *s, const float *logits, uint32_t n_vocab, const int32_t *history,
                          size_t n_history, size_t n_generated, lq_token_prob *chosen, lq_token_prob *top,
                          size_t n_top) {
    const lq_sampler_options *o = &s->options;
    const float *model_logits = logits;
    candidate best;
    if (o->n_bias != 0 || penalizes(o)) {
        LQ_TRY(adjust(s, logits, n_vocab, history, n_history, n_generated));
        logits = s->logits;
    }
    if (select_best(logits, n_vocab, 1, &best) == 0) return nothing_to_choose(model_logits, n_vocab);
    chosen->token = best.token;
    chosen->logprob = NAN;
    if (o->temperature > 0.0f && best.logit < INFINITY) {
        size_t n;
        LQ_TRY(truncate(s, logits, n_vocab, best.logit, &n));
        chosen->token = draw_candidate(s, n, best.logit);
    }
    if (n_top == 0 && !o->logprobs) return LQ_OK;
    if (select_best(model_logits, n_vocab, 1, &best) == 0) return lq_fail(LQ_E_FORMAT, "%s", NOT_FINITE);
    float log_total = log_sum_exp(model_logits, n_vocab, best.logit);
    chosen->logprob = model_logits[chosen->token] - log_total;
    if (n_top == 0) return LQ_OK;
    if (n_top > n_vocab) return lq_fail(LQ_E_ARG, "%zu top tokens of a vocabulary of %u", n_top, (unsigned)n_vocab);
    LQ_TRY(grow_candidates(s, n_top));
    size_t n = select_best(model_logits, n_vocab, n_top, s->candidates);
    for (size_t i = 0; i < n_top; i++) {
        top[i].token = i < n ? s->candidates[i].token : -1;
        top[i].logprob = i < n ? s->candidates[i].logit - log_total : -INFINITY;
    }
    return LQ_OK;
}

/* ---- picking from the best logits alone */

uint32_t lq_sampler_looks_at(const lq_sampler *s, uint32_t n_vocab) {
    const lq_sampler_options *o = &s->options;
    if (o->n_bias != 0 || penalizes(o) || o->logprobs) return 0;
    if (o->temperature <= 0.0f) return 1;
    return o->top_k < n_vocab && o->top_k <= LQ_BEST_MOST ? o->top_k : 0;
}

lq_status lq_sampler_pick_from(lq_sampler *s, const lq_ranked *best, uint32_t n, lq_token_prob *chosen) {
    if (n == 0) return lq_fail(LQ_E_FORMAT, "%s", NOT_FINITE);
    chosen->token = (int32_t)best[0].index;
    chosen->logprob = NAN;
    if (s->options.temperature <= 0.0f || best[0].value == INFINITY) return LQ_OK;
    LQ_TRY(grow_candidates(s, n));
    for (uint32_t i = 0; i < n; i++) s->candidates[i] = (candidate){best[i].value, (int32_t)best[i].index};
    chosen->token = draw_candidate(s, shorten(s, n, best[0].value), best[0].value);
    return LQ_OK;
}

/* ---- life */

void lq_sampler_options_init(lq_sampler_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
    options->temperature = 0.8f;
    options->top_k = 40;
    options->top_p = 0.95f;
    options->min_p = 0.05f;
    options->repeat_penalty = 1.0f;
    options->penalty_last_n = 64;
}

static lq_status check_options(const lq_sampler_options *o) {
    /* The conditions are written so that NaN fails them. */
    if (!(o->temperature >= 0.0f && o->temperature <= 1000.0f))
        return lq_fail(LQ_E_ARG, "temperature must be 0 (greedy) to 1000");
    if (!(o->top_p > 0.0f && o->top_p <= 1.0f)) return lq_fail(LQ_E_ARG, "top-p must be above 0 and at most 1 (off)");
    if (!(o->min_p >= 0.0f && o->min_p < 1.0f)) return lq_fail(LQ_E_ARG, "min-p must be 0 (off) or more, below 1");
    if (!(o->repeat_penalty > 0.0f && o->repeat_penalty <= 1000.0f))
        return lq_fail(LQ_E_ARG, "the repeat penalty must be above 0 (1 = off) and at most 1000");
    if (!(fabsf(o->frequency_penalty) <= 1000.0f && fabsf(o->presence_penalty) <= 1000.0f))
        return lq_fail(LQ_E_ARG, "frequency and presence penalties must be between -1000 and 1000");
    if (o->n_bias != 0 && (o->bias_tokens == NULL || o->bias_values == NULL))
        return lq_fail(LQ_E_ARG, "logit biases are counted but not given");
    for (uint32_t i = 0; i < o->n_bias; i++) {
        if (!(o->bias_values[i] < INFINITY))
            return lq_fail(LQ_E_ARG, "the logit bias of token %d must be a number or minus infinity",
                           (int)o->bias_tokens[i]);
    }
    return LQ_OK;
}

lq_status lq_sampler_create(const lq_sampler_options *options, lq_sampler **out) {
    void *memory;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    *out = NULL;
    if (options == NULL || options->struct_size != sizeof *options)
        return lq_fail(LQ_E_ARG, "sampler options were not made by lq_sampler_options_init of this library");
    LQ_TRY(check_options(options));
    LQ_TRY(lq_alloc(sizeof(lq_sampler), "sampler", &memory));
    lq_sampler *s = memory;
    s->options = *options;
    s->random = options->seed;
    lq_guard_init(&s->guard);
    if (options->n_bias != 0) {
        lq_status status = lq_alloc((uint64_t)options->n_bias * sizeof(int32_t), "sampler", &memory);
        s->bias_tokens = memory;
        if (status == LQ_OK) status = lq_alloc((uint64_t)options->n_bias * sizeof(float), "sampler", &memory);
        if (status != LQ_OK) {
            lq_sampler_free(&s);
            return status;
        }
        s->bias_values = memory;
        memcpy(s->bias_tokens, options->bias_tokens, options->n_bias * sizeof(int32_t));
        memcpy(s->bias_values, options->bias_values, options->n_bias * sizeof(float));
        s->options.bias_tokens = s->bias_tokens;
        s->options.bias_values = s->bias_values;
    }
    *out = s;
    return LQ_OK;
}

lq_status lq_sampler_enter(lq_sampler *s) {
    if (s == NULL) return lq_fail(LQ_E_ARG, "sampler is NULL");
    lq_guard_adopt(&s->guard);
    return lq_guard_enter(&s->guard, "sampler");
}

void lq_sampler_leave(lq_sampler *s) { lq_guard_leave(&s->guard); }

void lq_sampler_free(lq_sampler **sampler) {
    if (sampler == NULL || *sampler == NULL) return;
    lq_sampler *s = *sampler;
    *sampler = NULL;
    lq_free(s->bias_tokens);
    lq_free(s->bias_values);
    lq_free(s->logits);
    lq_free(s->candidates);
    lq_free(s->recent);
    lq_free(s);
}

uint64_t lq_sampler_get_state(const lq_sampler *sampler) { return sampler != NULL ? sampler->random : 0; }

void lq_sampler_set_state(lq_sampler *sampler, uint64_t state) {
    if (sampler != NULL) sampler->random = state;
}
