/* test_sampler.c - tests the sampler against distributions computed here in double, and its edge cases. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "sampler.h"

#define N_VOCAB 40
#define N_DRAWS 20000

static lq_sampler_options defaults(void) {
    lq_sampler_options o;
    lq_sampler_options_init(&o);
    o.temperature = 1.0f;
    o.top_k = 0;
    o.top_p = 1.0f;
    o.min_p = 0.0f;
    o.seed = 7;
    return o;
}

static lq_sampler *make(const lq_sampler_options *o) {
    lq_sampler *s = NULL;
    CHECK_STATUS(lq_sampler_create(o, &s), LQ_OK);
    return s;
}

/* Draws many times and compares the frequencies with the wanted probabilities, by a chi-square bound. */
static void check_distribution(const char *what, const lq_sampler_options *o, const float *logits,
                               const double *wanted) {
    unsigned seen[N_VOCAB] = {0};
    double chi = 0.0;
    unsigned degrees = 0;
    lq_sampler *s = make(o);
    for (int i = 0; i < N_DRAWS; i++) {
        lq_token_prob chosen;
        if (lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, NULL, 0) == LQ_OK) seen[chosen.token]++;
    }
    for (int i = 0; i < N_VOCAB; i++) {
        if (wanted[i] == 0.0) {
            CHECK_MSG(seen[i] == 0, "%s: token %d must never be drawn, was %u times", what, i, seen[i]);
        } else {
            double expected = wanted[i] * N_DRAWS;
            chi += (seen[i] - expected) * (seen[i] - expected) / expected;
            degrees++;
        }
    }
    /* Far beyond the 99.99 % quantile; the seed is fixed, so this either always holds or never. */
    CHECK_MSG(chi < degrees + 6.0 * sqrt(2.0 * degrees) + 10.0, "%s: chi-square %.1f over %u tokens", what, chi,
              degrees);
    lq_sampler_free(&s);
    CHECK(s == NULL);
}

static void normalize(double *p) {
    double sum = 0.0;
    for (int i = 0; i < N_VOCAB; i++) sum += p[i];
    for (int i = 0; i < N_VOCAB; i++) p[i] /= sum;
}

static void softmax(const float *logits, double temperature, double *p) {
    for (int i = 0; i < N_VOCAB; i++) p[i] = exp(logits[i] / temperature);
    normalize(p);
}

/* Falling logits, so that "the k best" are the first k. */
static void falling(float *logits) {
    for (int i = 0; i < N_VOCAB; i++) logits[i] = 2.0f - 0.25f * (float)i;
}

static void test_distributions(void) {
    float logits[N_VOCAB];
    double p[N_VOCAB], mass = 0.0;
    lq_sampler_options o = defaults();
    falling(logits);
    softmax(logits, 1.0, p);
    check_distribution("plain", &o, logits, p);

    o.temperature = 2.0f;
    softmax(logits, 2.0, p);
    check_distribution("temperature 2", &o, logits, p);

    o = defaults();
    o.top_k = 5;
    softmax(logits, 1.0, p);
    for (int i = 5; i < N_VOCAB; i++) p[i] = 0.0;
    normalize(p);
    check_distribution("top-k 5", &o, logits, p);

    o = defaults();
    o.top_p = 0.8f;
    softmax(logits, 1.0, p);
    for (int i = 0; i < N_VOCAB; i++) {
        double before = mass;
        mass += p[i];
        if (before >= 0.8) p[i] = 0.0;
    }
    normalize(p);
    check_distribution("top-p 0.8", &o, logits, p);

    o = defaults();
    o.min_p = 0.1f;
    o.temperature = 1.5f;
    softmax(logits, 1.0, p);
    for (int i = N_VOCAB; i-- > 0;) p[i] = p[i] < 0.1 * p[0] ? 0.0 : exp(logits[i] / 1.5);
    normalize(p);
    check_distribution("min-p 0.1", &o, logits, p);
}

static void test_greedy_and_ties(void) {
    float logits[N_VOCAB] = {0};
    lq_token_prob chosen, top[3];
    lq_sampler_options o = defaults();
    o.temperature = 0.0f;
    logits[9] = logits[3] = 1.0f;
    logits[20] = NAN;
    lq_sampler *s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, NULL, 0), LQ_OK);
    CHECK_MSG(chosen.token == 3, "ties go to the lower id, not %d", (int)chosen.token);
    CHECK(isnan(chosen.logprob));
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, top, 3), LQ_OK);
    double log_total = log(2.0 * exp(1.0) + (N_VOCAB - 3)); /* NaN has no mass */
    CHECK(fabs(chosen.logprob - (1.0 - log_total)) < 1e-5);
    CHECK(top[0].token == 3 && top[1].token == 9 && top[2].token == 0);
    CHECK(fabs(top[2].logprob + log_total) < 1e-5);
    lq_sampler_free(&s);
}

static void test_bias_and_penalties(void) {
    float logits[N_VOCAB] = {0};
    static const int32_t history[] = {5, 6, 5, 5, 7};
    int32_t bias_tokens[] = {3, 4};
    float bias_values[] = {-INFINITY, 2.0f};
    lq_token_prob chosen;
    lq_sampler_options o = defaults();
    o.temperature = 0.0f;
    o.n_bias = 2;
    o.bias_tokens = bias_tokens;
    o.bias_values = bias_values;
    logits[3] = 100.0f;
    logits[4] = 1.0f;
    logits[5] = 2.5f;
    lq_sampler *s = make(&o);
    bias_tokens[1] = 0; /* copied: no longer seen */
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, history, 5, 5, &chosen, NULL, 0), LQ_OK);
    CHECK_MSG(chosen.token == 4, "bias forbids 3 and lifts 4, got %d", (int)chosen.token);
    CHECK(logits[3] == 100.0f);
    lq_sampler_free(&s);

    o = defaults();
    o.temperature = 0.0f;
    o.frequency_penalty = 0.5f;
    o.penalty_last_n = 0;
    logits[3] = 0.0f; /* 5 came three times: 2.5 - 1.5 = 1.0, a tie with 4 that the lower id wins */
    s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, history, 5, 5, &chosen, NULL, 0), LQ_OK);
    CHECK_MSG(chosen.token == 4, "frequency penalty: got %d", (int)chosen.token);
    lq_sampler_free(&s);

    o.penalty_last_n = 2; /* sees 5 once: 2.0 */
    s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, history, 5, 5, &chosen, NULL, 0), LQ_OK);
    CHECK_MSG(chosen.token == 5, "penalty window: got %d", (int)chosen.token);
    lq_sampler_free(&s);

    o.frequency_penalty = 0.0f;
    o.presence_penalty = 0.0f;
    o.repeat_penalty = 3.0f; /* 2.5 / 3 < 1 */
    s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, history, 5, 5, &chosen, NULL, 0), LQ_OK);
    CHECK_MSG(chosen.token == 4, "repeat penalty: got %d", (int)chosen.token);
    lq_sampler_free(&s);
}

/* Frequency and presence penalties count generated tokens, the repeat penalty those of the prompt, too; all three look
 * at the newest tokens only. */
static void test_penalties_know_the_prompt(void) {
    static const int32_t history[] = {5, 6, 5, 5, 7, 5}; /* 5 is 3 times in the prompt of 4, once in the answer */
    static const struct {
        float repeat, frequency, presence;
        uint32_t last_n;
        size_t n_generated;
        float wanted; /* of token 5 */
    } cases[] = {
        {1.0f, 0.5f, 0.0f, 0, 2, 3.5f}, {1.0f, 0.0f, 0.5f, 0, 2, 3.5f}, {1.0f, 0.5f, 0.25f, 0, 2, 3.25f},
        {1.0f, 0.5f, 0.0f, 0, 0, 4.0f}, {1.0f, 0.0f, 0.5f, 0, 0, 4.0f}, {1.0f, 0.5f, 0.0f, 0, 6, 2.0f},
        {1.0f, 0.5f, 0.0f, 3, 6, 3.0f}, {1.0f, 0.5f, 0.0f, 2, 6, 3.5f}, {2.0f, 0.0f, 0.0f, 0, 0, 2.0f},
        {2.0f, 0.5f, 0.0f, 0, 2, 1.5f}, {2.0f, 0.5f, 0.0f, 1, 2, 1.5f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float logits[N_VOCAB] = {0};
        lq_token_prob chosen;
        lq_sampler_options o = defaults();
        o.temperature = 0.0f;
        o.repeat_penalty = cases[i].repeat;
        o.frequency_penalty = cases[i].frequency;
        o.presence_penalty = cases[i].presence;
        o.penalty_last_n = cases[i].last_n;
        logits[5] = 4.0f;
        for (int below = 0; below < 2; below++) { /* 9 comes if and only if it is the better one */
            logits[9] = cases[i].wanted + (below ? -0.01f : 0.01f);
            lq_sampler *s = make(&o);
            CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, history, 6, cases[i].n_generated, &chosen, NULL, 0),
                         LQ_OK);
            CHECK_MSG(chosen.token == (below ? 5 : 9), "case %zu: got %d", i, (int)chosen.token);
            lq_sampler_free(&s);
        }
    }
}

static void test_large_nucleus(void) {
    /* A flat vocabulary of 5000: top-p needs far more than the first look of 256. */
    enum { LARGE = 5000 };
    float *logits = calloc(LARGE, sizeof *logits);
    unsigned beyond = 0;
    lq_sampler_options o = defaults();
    lq_token_prob chosen;
    o.top_p = 0.9f;
    lq_sampler *s = make(&o);
    for (int i = 0; i < 500; i++) {
        CHECK_STATUS(lq_sampler_pick(s, logits, LARGE, NULL, 0, 0, &chosen, NULL, 0), LQ_OK);
        CHECK_MSG(chosen.token < 4502, "token %d is outside the nucleus", (int)chosen.token);
        beyond += chosen.token > 2300;
    }
    CHECK(beyond > 100);
    lq_sampler_free(&s);
    free(logits);
}

static void test_refusals(void) {
    float logits[N_VOCAB];
    lq_token_prob chosen;
    int32_t bias_token = N_VOCAB;
    float bias_value = 1.0f;
    lq_sampler *s = NULL;
    lq_sampler_options o = defaults();
    for (int i = 0; i < N_VOCAB; i++) logits[i] = NAN;
    s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, NULL, 0), LQ_E_FORMAT);
    lq_sampler_free(&s);
    o.n_bias = 1;
    o.bias_tokens = &bias_token;
    o.bias_values = &bias_value;
    s = make(&o);
    CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, NULL, 0), LQ_E_ARG);
    lq_sampler_free(&s);
    bias_value = NAN;
    CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    CHECK(s == NULL);
    static const float bad_temperature[] = {-1.0f, NAN, INFINITY};
    for (int i = 0; i < 3; i++) {
        o = defaults();
        o.temperature = bad_temperature[i];
        CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    }
    o = defaults();
    o.top_p = 0.0f;
    CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    o = defaults();
    o.min_p = 1.0f;
    CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    o = defaults();
    o.repeat_penalty = 0.0f;
    CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    o = defaults();
    o.struct_size--;
    CHECK_STATUS(lq_sampler_create(&o, &s), LQ_E_ARG);
    CHECK_STATUS(lq_sampler_create(NULL, &s), LQ_E_ARG);
    CHECK_STATUS(lq_sampler_create(&o, NULL), LQ_E_ARG);
    lq_sampler_free(NULL);
}

static void test_seed(void) {
    float logits[N_VOCAB];
    lq_sampler_options o = defaults();
    int32_t first[64];
    unsigned differs = 0;
    falling(logits);
    for (int run = 0; run < 3; run++) {
        o.seed = run == 2 ? 8 : 7;
        lq_sampler *s = make(&o);
        for (int i = 0; i < 64; i++) {
            lq_token_prob chosen;
            CHECK_STATUS(lq_sampler_pick(s, logits, N_VOCAB, NULL, 0, 0, &chosen, NULL, 0), LQ_OK);
            if (run == 0) first[i] = chosen.token;
            if (run == 1) CHECK(first[i] == chosen.token);
            if (run == 2) differs += first[i] != chosen.token;
        }
        lq_sampler_free(&s);
    }
    CHECK(differs > 10);
}

/* Takes the k best by the sampler's order, and destroys the array. */
static uint32_t take_best(float *logits, uint32_t n, uint32_t k, lq_ranked *out) {
    for (uint32_t found = 0;; found++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (logits[i] > -INFINITY && (best == n || logits[i] > logits[best])) best = i;
        if (found == k || best == n) return found;
        out[found] = (lq_ranked){logits[best], best};
        logits[best] = -INFINITY;
    }
}

/* Picking from the best alone gives the same tokens as from all logits, draw by draw. */
static void test_pick_from_the_best(void) {
    enum { N = 500 };
    static const uint32_t top_k[] = {1, 2, 40, LQ_BEST_MOST};
    static const float temperature[] = {0.0f, 0.3f, 1.7f}, top_p[] = {1.0f, 0.95f, 0.4f}, min_p[] = {0.0f, 0.05f};
    float logits[N], left[N];
    unsigned long long seed = 3;
    for (int i = 0; i < 72; i++) {
        lq_sampler_options o = defaults();
        lq_ranked best[LQ_BEST_MOST];
        o.top_k = top_k[i % 4];
        o.temperature = temperature[i / 4 % 3];
        o.top_p = top_p[i / 12 % 3];
        o.min_p = min_p[i / 36];
        lq_sampler *a = make(&o), *b = make(&o);
        uint32_t k = lq_sampler_looks_at(a, N);
        CHECK(k == (o.temperature > 0.0f ? o.top_k : 1));
        for (int turn = 0; turn < 50; turn++) {
            lq_token_prob from_all, from_best;
            for (int j = 0; j < N; j++) logits[j] = (float)(check_random(&seed) % 97) * 0.125f;
            if (turn % 10 == 1) logits[7] = NAN;
            if (turn % 10 == 2) logits[9] = INFINITY;
            if (turn % 10 == 3)
                for (int j = 3; j < N; j++) logits[j] = -INFINITY;
            for (int j = 0; j < N; j++) left[j] = logits[j];
            uint32_t n = take_best(left, N, k, best);
            CHECK_STATUS(lq_sampler_pick(a, logits, N, NULL, 0, 0, &from_all, NULL, 0), LQ_OK);
            CHECK_STATUS(lq_sampler_pick_from(b, best, n, &from_best), LQ_OK);
            CHECK(from_all.token == from_best.token);
            CHECK(lq_sampler_get_state(a) == lq_sampler_get_state(b));
        }
        lq_token_prob chosen;
        CHECK_STATUS(lq_sampler_pick_from(b, best, 0, &chosen), LQ_E_FORMAT);
        lq_sampler_free(&a);
        lq_sampler_free(&b);
    }
}

/* A sampler whose result depends on more than the best logits must look at all of them. */
static void test_looks_at_all(void) {
    int32_t token = 3;
    float bias = 1.0f;
    for (int i = 0; i < 7; i++) {
        lq_sampler_options o = defaults();
        o.top_k = 40;
        if (i == 0) o.top_k = 0;
        if (i == 1) o.top_k = LQ_BEST_MOST + 1;
        if (i == 2) o.repeat_penalty = 1.1f;
        if (i == 3) o.frequency_penalty = 0.1f;
        if (i == 4) o.presence_penalty = -0.1f;
        if (i == 5) o.logprobs = 1;
        if (i == 6) o.n_bias = 1, o.bias_tokens = &token, o.bias_values = &bias;
        if (i > 3) o.temperature = 0.0f;
        lq_sampler *s = make(&o);
        CHECK(lq_sampler_looks_at(s, 1000) == 0);
        lq_sampler_free(&s);
    }
    lq_sampler_options o = defaults();
    o.top_k = 40;
    lq_sampler *s = make(&o);
    CHECK(lq_sampler_looks_at(s, 41) == 40);
    CHECK(lq_sampler_looks_at(s, 40) == 0);
    lq_sampler_free(&s);
}

int main(void) {
    test_distributions();
    test_greedy_and_ties();
    test_bias_and_penalties();
    test_penalties_know_the_prompt();
    test_large_nucleus();
    test_refusals();
    test_seed();
    test_pick_from_the_best();
    test_looks_at_all();
    return check_report("test_sampler");
}
