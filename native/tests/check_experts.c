/* check_experts.c - checks the operations of a mixture of experts against a plain double-precision form. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops_buffers.h"

typedef struct expert_case {
    uint32_t n_tokens, n_experts, n_used, n_cols, n_rows;
    bool equal; /* all experts of a token equally likely: the lower index first */
} expert_case;

/* Finds the indices of the n_used largest, the largest first, by counting how many precede each. */
static void best(const float *logits, uint32_t n_experts, uint32_t n_used, uint32_t *out) {
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t place = 0;
        for (uint32_t o = 0; o < n_experts; o++) place += logits[o] > logits[e] || (logits[o] == logits[e] && o < e);
        if (place < n_used) out[place] = e;
    }
}

static double product(const float *weights, const float *x, uint32_t n) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++) sum += (double)weights[i] * x[i];
    return sum;
}

static void check_choice(const expert_case *c, const float *router, const lq_expert_choice *choice) {
    uint32_t n = c->n_tokens * c->n_used, *chosen = malloc(c->n_used * sizeof *chosen);
    CHECK(choice->first[0] == 0 && choice->first[c->n_experts] == n);
    for (uint32_t t = 0; t < c->n_tokens; t++) {
        const float *logits = router + (size_t)t * c->n_experts;
        double sum = 0.0;
        best(logits, c->n_experts, c->n_used, chosen);
        for (uint32_t i = 0; i < c->n_used; i++) sum += exp((double)logits[chosen[i]]);
        for (uint32_t i = 0; i < c->n_used; i++) {
            uint32_t e = chosen[i], n_found = 0;
            for (uint32_t j = choice->first[e]; j < choice->first[e + 1]; j++) {
                if (j > choice->first[e]) CHECK(choice->token[j] > choice->token[j - 1]);
                if (choice->token[j] != t) continue;
                n_found++;
                CHECK(fabs(choice->weight[j] - exp((double)logits[e]) / sum) < 1e-6);
            }
            CHECK_MSG(n_found == 1, "token %u has expert %u %u times", (unsigned)t, (unsigned)e, (unsigned)n_found);
        }
    }
    free(chosen);
}

/* Checks a layer of the given sizes: y = sum of weight times (matrix of the expert) x. */
static void check_experts(const expert_case *c) {
    size_t n_choices = (size_t)c->n_tokens * c->n_used, n_matrix = (size_t)c->n_rows * c->n_cols;
    buffer scratch, router = make((size_t)c->n_tokens * c->n_experts, 3.0f),
                    x = make((size_t)c->n_tokens * c->n_cols, 1.0f);
    buffer stack = make(c->n_experts * n_matrix, 1.0f), gathered = make(n_choices * c->n_cols, 0.0f);
    buffer y = make(n_choices * c->n_rows, 0.0f), z = make(n_choices * c->n_rows, 0.0f);
    buffer out = make((size_t)c->n_tokens * c->n_rows, 1.0f);
    buffer factors = make(c->n_experts, 1.0f), first = make(c->n_experts + 1, 0.0f), token = make(n_choices, 0.0f),
           weight = make(n_choices, 0.0f);
    lq_weight matrix = {stack.data, lq_format_find(LQ_TYPE_F32), c->n_rows, c->n_cols, c->n_cols * sizeof(float), NULL};
    lq_matmul group[2] = {{&matrix, NULL, y.data}, {&matrix, NULL, z.data}};
    lq_expert_choice choice = {c->n_tokens,
                               c->n_experts,
                               c->n_used,
                               router.data,
                               (uint32_t *)(void *)first.data,
                               (uint32_t *)(void *)token.data,
                               weight.data,
                               false};
    begin(c->n_tokens, c->n_cols > c->n_rows ? c->n_cols : c->n_rows, 1, 1, 4, &scratch);
    float *hr = fetch(&router, "input"), *hx = fetch(&x, "input"), *hw = fetch(&stack, "input");
    if (c->equal) {
        memset(hr, 0, router.n * sizeof *hr);
        ops->upload(backend, router.data, hr, router.n * sizeof *hr);
    }
    ops->route(backend, &choice);
    ops->expert_gather(backend, gathered.data, x.data, &choice, c->n_cols);
    ops->expert_matmul(backend, group, 2, gathered.data, &choice);
    ops->scale(backend, z.data, (uint32_t)n_choices, c->n_rows, factors.data, &choice);
    ops->expert_sum(backend, out.data, y.data, &choice, c->n_rows);
    ops->scale(backend, out.data, c->n_tokens, c->n_rows, factors.data, NULL);

    float *hf = fetch(&first, "route"), *ht = fetch(&token, "route"), *hp = fetch(&weight, "route");
    float *got = fetch(&out, "expert_sum"), *gy = fetch(&y, "expert_matmul"), *gz = fetch(&z, "expert_matmul");
    float *hg = fetch(&gathered, "expert_gather"), *hs = fetch(&factors, "input");
    lq_expert_choice host = choice;
    host.first = (uint32_t *)(void *)hf, host.token = (uint32_t *)(void *)ht, host.weight = hp;
    check_choice(c, hr, &host);
    for (uint32_t e = 0; e < c->n_experts; e++) /* by factors: the same products otherwise */
        for (size_t i = host.first[e] * (size_t)c->n_rows; i < host.first[e + 1] * (size_t)c->n_rows; i++)
            CHECK(gz[i] == gy[i] * hs[e]);
    for (size_t i = 0; i < n_choices; i++)
        CHECK(memcmp(hg + i * c->n_cols, hx + (size_t)host.token[i] * c->n_cols, c->n_cols * sizeof *hg) == 0);
    double *wanted = calloc(out.n, sizeof *wanted);
    for (uint32_t e = 0; e < c->n_experts; e++)
        for (uint32_t i = host.first[e]; i < host.first[e + 1]; i++)
            for (uint32_t r = 0; r < c->n_rows; r++)
                wanted[(size_t)host.token[i] * c->n_rows + r] +=
                    (double)hs[0] * hp[i] *
                    product(hw + e * n_matrix + (size_t)r * c->n_cols, hx + (size_t)host.token[i] * c->n_cols,
                            c->n_cols);
    check_close("experts", got, wanted, out.n, 1e-11);
    end(&scratch);
    free(hr), free(hx), free(hw), free(hf), free(ht), free(hp), free(got), free(gy), free(gz), free(hg), free(hs),
        free(wanted);
    release(&factors);
    release(&router), release(&x), release(&stack), release(&gathered), release(&y), release(&z), release(&out);
    release(&first), release(&token), release(&weight);
}

/* With logits that are NaN, the router must still choose experts, each at most once. */
static void check_nan(void) {
    static const float no_numbers[4] = {NAN, NAN, NAN, NAN};
    buffer scratch, router = make(4, 1.0f), first = make(5, 0.0f), token = make(2, 0.0f), weight = make(2, 0.0f);
    begin(1, 4, 1, 1, 4, &scratch);
    ops->upload(backend, router.data, no_numbers, sizeof no_numbers);
    lq_expert_choice choice = {
        1, 4, 2, router.data, (uint32_t *)(void *)first.data, (uint32_t *)(void *)token.data, weight.data, false};
    ops->route(backend, &choice);
    float *host_first = fetch(&first, "route"), *host_token = fetch(&token, "route");
    const uint32_t *f = (const uint32_t *)(void *)host_first, *t = (const uint32_t *)(void *)host_token;
    CHECK(f[4] == 2 && t[0] == 0 && t[1] == 0);
    for (int e = 0; e < 4; e++) CHECK(f[e + 1] - f[e] <= 1);
    end(&scratch);
    free(host_first), free(host_token);
    release(&router), release(&first), release(&token), release(&weight);
}

int main(int argc, char **argv) {
    static const expert_case cases[] = {
        {1, 4, 2, 32, 32, false},    {5, 8, 1, 64, 48, false}, {33, 8, 2, 96, 1030, false},
        {130, 16, 8, 64, 40, false}, {3, 4, 4, 32, 16, false}, {7, 6, 3, 32, 16, true},
    };
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++) check_experts(&cases[j]);
        check_nan();
        close_backend();
    }
    return check_report("check_experts");
}
