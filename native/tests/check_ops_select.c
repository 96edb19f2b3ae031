/* check_ops_select.c - checks the selection of tokens on a device bit for bit against kv/policy.c: all policies,
 * windows and lists of odd sizes, ties, NaN. It also checks moves of cells without a list of columns. */
#include <math.h>

#include "kv/policy.h"
#include "ops_buffers.h"

enum { PAGE = LQ_PAGE_TOKENS };

typedef enum weights { RANDOM, TIES, SAME, BROKEN } weights; /* what tokens accumulated */

typedef struct select_case {
    uint32_t window, n_kv_heads, n_sinks;
    uint32_t n_before; /* full tokens that were there: less than 3 windows */
    uint32_t n_chunk;
} select_case;

static const char *const policies[] = {
#define LQ_POLICY(name) #name,
#include "kv/policies.def"
#undef LQ_POLICY
};

static uint32_t pick(uint32_t n) { return (uint32_t)(check_random(&seed) >> 33) % n; }

static float weight(weights kind) {
    float x = 0.5f + 0.5f * uniform();
    if (kind == TIES) return (float)pick(4);
    if (kind == SAME) return 0.25f;
    if (kind == BROKEN && pick(5) == 0) return pick(2) == 0 ? NAN : INFINITY;
    return x;
}

static float *some_weights(size_t n, weights kind) {
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = weight(kind);
    return x;
}

static void send(const buffer *b, const void *host, size_t n) { ops->upload(backend, b->data, host, n * 4); }

/* Computes the expected result for one head; changes positions and so_far as the operation does. */
static void select_exactly(const lq_kv_selection *a, uint32_t *positions, uint32_t *kept, float *so_far,
                           const float *now) {
    const lq_kv_accumulated *r = &a->accumulated;
    float *sums = malloc((r->n_columns + 1) * sizeof *sums);
    for (uint32_t i = 0; i < r->n_columns; i++) sums[i] = i < r->n_before ? so_far[i] + now[i] : now[i];
    lq_kv_select(a->policy, a->window, a->n_tokens, a->policy->needs_accumulated ? sums + a->n_sinks : NULL, kept);
    for (uint32_t i = 0; i < a->n_overlay; i++)
        positions[i] = kept[i] < a->n_listed ? positions[kept[i]] : a->pos0 + kept[i] - a->n_listed;
    if (a->policy->needs_accumulated) {
        memcpy(so_far, sums, a->n_sinks * sizeof *sums);
        for (uint32_t i = 0; i < a->n_full; i++) so_far[a->n_sinks + i] = sums[a->n_sinks + kept[i]];
    }
    free(sums);
}

/* Compares floats bit for bit, except that any NaN equals any other: devices differ in the NaN of a sum. */
static bool same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static void check_select(const select_case *c, const lq_kv_policy *policy, weights kind) {
    uint32_t heads = c->n_kv_heads, max_full = 3 * c->window, n_open = c->n_before % PAGE;
    lq_kv_selection a = {.policy = policy,
                         .window = c->window,
                         .n_kv_heads = heads,
                         .n_tokens = c->n_before + c->n_chunk,
                         .n_listed = c->n_before - n_open,
                         .pos0 = 5000 - n_open,
                         .head_positions = max_full + 3,
                         .n_sinks = c->n_sinks};
    a.n_full = lq_kv_n_full(a.n_tokens, c->window);
    a.n_overlay = a.n_full - a.n_tokens % PAGE;
    a.accumulated = (lq_kv_accumulated){.head_floats = c->n_sinks + max_full + 1,
                                        .n_kv_heads = heads,
                                        .n_before = c->n_sinks + c->n_before,
                                        .n_columns = c->n_sinks + a.n_tokens};
    size_t n_positions = heads * a.head_positions, n_columns = (size_t)heads * a.n_full;
    size_t n_so_far = heads * a.accumulated.head_floats, n_now = (size_t)heads * a.accumulated.n_columns;
    uint32_t *positions = malloc(n_positions * sizeof *positions), *kept = malloc((n_columns + 1) * sizeof *kept);
    for (uint32_t head = 0; head < heads; head++)
        for (uint32_t i = 0, at = 100; i < a.head_positions; i++)
            positions[head * a.head_positions + i] = at += 1 + pick(3);
    float *so_far = some_weights(n_so_far, kind), *now = some_weights(n_now, kind);
    buffer scratch,
        device[] = {make(n_positions, 0.0f), make(n_columns, 0.0f), make(n_so_far, 0.0f), make(n_now, 0.0f)};
    send(&device[0], positions, n_positions), send(&device[2], so_far, n_so_far), send(&device[3], now, n_now);
    a.positions = (uint32_t *)(void *)device[0].data, a.columns = (uint32_t *)(void *)device[1].data;
    if (policy->needs_accumulated) a.accumulated.so_far = device[2].data, a.accumulated.now = device[3].data;
    begin(c->n_chunk, 4, heads, heads, 4, &scratch);
    ops->kv_select(backend, &a);
    uint32_t *got_positions = (uint32_t *)(void *)fetch(&device[0], "kv_select");
    uint32_t *got_kept = (uint32_t *)(void *)fetch(&device[1], "kv_select");
    float *got_so_far = fetch(&device[2], "kv_select"), *got_now = fetch(&device[3], "kv_select");
    for (uint32_t head = 0; head < heads; head++)
        select_exactly(&a, positions + head * a.head_positions, kept + (size_t)head * a.n_full,
                       so_far + head * a.accumulated.head_floats, now + (size_t)head * a.accumulated.n_columns);
    CHECK_MSG(memcmp(got_kept, kept, n_columns * sizeof *kept) == 0, "%s: %u of %u + %u tokens, window %u: others stay",
              policy->name, a.n_full, c->n_before, c->n_chunk, c->window);
    CHECK_MSG(memcmp(got_positions, positions, n_positions * sizeof *positions) == 0, "%s: other positions",
              policy->name);
    CHECK_MSG(same_floats(got_so_far, so_far, n_so_far), "%s: other sums", policy->name);
    end(&scratch);
    free(positions), free(kept), free(so_far), free(now);
    free(got_positions), free(got_kept), free(got_so_far), free(got_now);
    for (uint32_t i = 0; i < 4; i++) release(&device[i]);
}

static void check_policies(void) {
    static const select_case cases[] = {
        {64, 1, 4, 191, 1},    {64, 3, 4, 128, 63},  {64, 2, 0, 0, 64},   {64, 3, 1, 150, 300},  {128, 5, 4, 383, 1},
        {128, 1, 4, 300, 512}, {128, 2, 7, 70, 257}, {192, 4, 3, 575, 1}, {192, 2, 3, 400, 777}, {320, 1, 4, 959, 1},
    };
    for (uint32_t i = 0; i < sizeof policies / sizeof policies[0]; i++) {
        const lq_kv_policy *policy = NULL;
        CHECK_STATUS(lq_kv_policy_find(policies[i], &policy), LQ_OK);
        for (uint32_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
            for (uint32_t kind = RANDOM; kind <= (policy->needs_accumulated ? BROKEN : RANDOM); kind++)
                check_select(&cases[c], policy, (weights)kind);
    }
}

/* Checks moves of consecutive cells across the ends of sources, into other cells and within their own run. */
static void check_consecutive(uint32_t heads, uint32_t dim, lq_cell_format to) {
    uint32_t lengths[] = {70, 0, 13}, n = 60, first = 19;
    size_t f16 = lq_cell_bytes(LQ_CELL_F16, dim), cell = lq_cell_bytes(to, dim);
    buffer scratch, x = make((size_t)83 * heads * dim, 1.0f), source[3], out[2];
    lq_kv_gather moves[2];
    begin(83, dim, heads, heads, dim, &scratch);
    for (uint32_t i = 0; i < 2; i++) {
        out[i] = make((heads * n * cell + 3) / 4, 0.0f);
        uint8_t *cells = (uint8_t *)out[i].data;
        moves[i] = (lq_kv_gather){.dst = {to, cells, cells, n * cell, n, true, 0},
                                  .n_kv_heads = heads,
                                  .head_dim = dim,
                                  .n_cells = n,
                                  .first = first,
                                  .n_sources = 3};
    }
    for (uint32_t i = 0, at = 0; i < 3; at += lengths[i++]) {
        source[i] = make((heads * (lengths[i] + 1) * f16 + 3) / 4, 0.0f);
        uint8_t *cells = (uint8_t *)source[i].data;
        if (lengths[i] != 0)
            ops->kv_store(backend, LQ_CELL_F16, cells, lengths[i] * f16, x.data + (size_t)at * heads * dim, lengths[i],
                          heads, dim, 0, lengths[i]);
        moves[0].sources[i] = moves[1].sources[i] =
            (lq_attn_run){LQ_CELL_F16, cells, cells, lengths[i] * f16, lengths[i], true, 0};
    }
    uint32_t *columns = malloc(heads * (n + 2) * sizeof *columns); /* the same by a list, whose rows have gaps */
    for (uint32_t i = 0; i < heads * (n + 2); i++) columns[i] = i % (n + 2) < n ? first + i % (n + 2) : UINT32_MAX;
    buffer listed = make(heads * (n + 2), 0.0f);
    send(&listed, columns, heads * (n + 2));
    moves[1].columns = (const uint32_t *)(const void *)listed.data;
    moves[1].head_columns = n + 2;
    for (uint32_t i = 0; i < 2; i++) ops->kv_gather(backend, &moves[i]);
    float *got = fetch(&out[0], "kv_gather"), *wanted = fetch(&out[1], "kv_gather");
    CHECK_MSG(memcmp(got, wanted, heads * n * cell) == 0, "consecutive cells differ from listed ones, %u x %u", heads,
              dim);
    lq_kv_gather within = moves[0]; /* down within the first source: cells 19 to 69 become 0 to 50 */
    buffer values = make(source[0].n, 1.0f);
    within.sources[0].v = (uint8_t *)values.data;
    within.dst = within.sources[0];
    within.n_cells = 51;
    ops->kv_gather(backend, &within);
    if (to == LQ_CELL_F16) {
        float *down = fetch(&source[0], "kv_gather");
        for (uint32_t head = 0; head < heads; head++)
            CHECK(memcmp((uint8_t *)down + head * 70 * f16, (uint8_t *)got + head * n * f16, 51 * f16) == 0);
        free(down);
    }
    end(&scratch);
    free(columns), free(got), free(wanted);
    for (uint32_t i = 0; i < 3; i++) release(&source[i]);
    release(&x), release(&values), release(&listed), release(&out[0]), release(&out[1]);
}

int main(int argc, char **argv) {
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        check_policies();
        check_consecutive(3, 64, LQ_CELL_F16);
        check_consecutive(1, 36, LQ_CELL_Q8_0);
        check_consecutive(2, 80, LQ_CELL_F16);
        close_backend();
    }
    return check_report("check_ops_select");
}
