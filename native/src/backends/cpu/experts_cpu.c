/* experts_cpu.c - mixture of experts. Choices are sorted by expert, so that one product multiplies an expert's weights
 * with all its tokens. */
#include <math.h>
#include <string.h>

#include "backends/cpu/backend_cpu.h"

#define COLS_PER_TASK 512

/* The largest logit that is not taken yet. Searching n_used times is fast enough: there are few experts. */
static uint32_t next_best(const float *logits, uint32_t n_experts, const uint32_t *taken, uint32_t n_taken) {
    uint32_t best = UINT32_MAX;
    for (uint32_t e = 0; e < n_experts; e++) {
        bool free = true;
        for (uint32_t i = 0; i < n_taken && free; i++) free = taken[i] != e;
        /* if all others are NaN, the first free one stays */
        if (free && (best == UINT32_MAX || logits[e] > logits[best])) best = e;
    }
    return best;
}

/* Chooses the n_used experts of each token, best first: expert [n_tokens][n_used]. Then first[e] is the number of
 * choices of the experts before e. */
static void choose(const lq_expert_choice *c, uint32_t *expert) {
    memset(c->first, 0, (c->n_experts + 1) * sizeof *c->first);
    for (uint32_t t = 0; t < c->n_tokens; t++) {
        const float *logits = c->router + (size_t)t * c->n_experts;
        uint32_t *taken = expert + (size_t)t * c->n_used;
        for (uint32_t i = 0; i < c->n_used; i++) {
            taken[i] = next_best(logits, c->n_experts, taken, i);
            c->first[taken[i] + 1]++;
        }
    }
    for (uint32_t e = 0; e < c->n_experts; e++) c->first[e + 1] += c->first[e];
}

/* While choices are sorted, first[e] is the index of expert e's next one. At the end it is moved back. */
void lq_cpu_route(lq_backend *backend, const lq_expert_choice *c) {
    uint32_t *expert = lq_cpu(backend)->scratch; /* [n_tokens][n_used] */
    choose(c, expert);
    for (uint32_t t = 0; t < c->n_tokens; t++) {
        const float *logits = c->router + (size_t)t * c->n_experts;
        const uint32_t *taken = expert + (size_t)t * c->n_used;
        float sum = 0.0f;
        for (uint32_t i = 0; i < c->n_used; i++) sum += expf(logits[taken[i]] - logits[taken[0]]);
        for (uint32_t i = 0; i < c->n_used; i++) {
            uint32_t index = c->first[taken[i]]++;
            c->token[index] = t;
            c->weight[index] = expf(logits[taken[i]] - logits[taken[0]]) / sum;
        }
    }
    for (uint32_t e = c->n_experts; e > 0; e--) c->first[e] = c->first[e - 1];
    c->first[0] = 0;
}

void lq_cpu_expert_gather(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *c, uint32_t n_cols) {
    (void)backend;
    for (size_t i = 0; i < (size_t)c->n_tokens * c->n_used; i++)
        memcpy(dst + i * n_cols, x + (size_t)c->token[i] * n_cols, n_cols * sizeof(float));
}

/* n choices of expert e, from `first` on. */
static void multiply_expert(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t e,
                            uint32_t first, uint32_t n) {
    lq_weight weights[LQ_MATMUL_MAX_GROUP];
    lq_matmul jobs[LQ_MATMUL_MAX_GROUP];
    for (uint32_t i = 0; i < n_group; i++) {
        weights[i] = *group[i].weight;
        weights[i].data = (const uint8_t *)weights[i].data + e * (size_t)weights[i].n_rows * weights[i].row_bytes;
        jobs[i] = (lq_matmul){&weights[i], NULL, group[i].y + (size_t)first * weights[i].n_rows};
    }
    lq_cpu_matmul(backend, jobs, n_group, x + (size_t)first * weights[0].n_cols, n);
}

/* Products of one or two rows give each row the same bits, those of more other ones (matmul_cpu.c). */
#define APART 2

void lq_cpu_expert_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x,
                          const lq_expert_choice *c) {
    for (uint32_t e = 0; e < c->n_experts; e++) {
        for (uint32_t first = c->first[e], end = c->first[e + 1], n; first < end; first += n) {
            n = c->apart && end - first > APART ? APART : end - first;
            multiply_expert(backend, group, n_group, x, e, first, n);
        }
    }
}

typedef struct expert_sum {
    lq_backend_cpu *cpu;
    const lq_expert_choice *choice;
    float *dst;
    const float *x;
    uint32_t n_cols;
} expert_sum;

/* A task is a range of columns of all tokens, so choices add up in one order, whatever the number of threads. */
static void sum_columns(void *context, uint32_t task, uint32_t thread) {
    const expert_sum *s = context;
    const lq_expert_choice *c = s->choice;
    uint32_t at = task * COLS_PER_TASK, n = s->n_cols - at < COLS_PER_TASK ? s->n_cols - at : COLS_PER_TASK;
    (void)thread;
    for (uint32_t t = 0; t < c->n_tokens; t++) memset(s->dst + (size_t)t * s->n_cols + at, 0, n * sizeof(float));
    for (size_t i = 0; i < (size_t)c->n_tokens * c->n_used; i++)
        s->cpu->kernels.axpy(s->dst + (size_t)c->token[i] * s->n_cols + at, s->x + i * s->n_cols + at, c->weight[i], n);
}

void lq_cpu_expert_sum(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                       uint32_t n_cols) {
    expert_sum s = {lq_cpu(backend), choice, dst, x, n_cols};
    lq_pool_run(s.cpu->pool, sum_columns, &s, (n_cols + COLS_PER_TASK - 1) / COLS_PER_TASK);
}
