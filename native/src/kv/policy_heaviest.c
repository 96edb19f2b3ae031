/* policy_heaviest.c - the half that has accumulated most attention so far stays, heavy hitters as in H2O (Zhang et al.
 * 2023); of equal ones the older. */
#include "kv/policy.h"

#include <stddef.h>
#include <string.h>

/* Non-negative floats compare as their bits do; as bits even NaN has a place in the order. */
static uint32_t rank(float accumulated) {
    uint32_t bits;
    memcpy(&bits, &accumulated, sizeof bits);
    return bits;
}

static uint32_t count_from(uint32_t least, uint32_t n, const float *accumulated, const uint32_t *tokens) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) count += rank(accumulated[tokens[i]]) >= least;
    return count;
}

static void keep(uint32_t window, const float *accumulated, uint32_t *tokens) {
    uint32_t least = 0, n = 2 * window, n_kept = 0; /* least: the largest rank that at least window tokens have */
    for (uint32_t bit = (uint32_t)1 << 31; bit != 0; bit >>= 1)
        if (count_from(least | bit, n, accumulated, tokens) >= window) least |= bit;
    uint32_t n_equal = window - (least == UINT32_MAX ? 0 : count_from(least + 1, n, accumulated, tokens));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t its = rank(accumulated[tokens[i]]);
        if (its < least || (its == least && n_equal == 0)) continue;
        n_equal -= its == least;
        tokens[n_kept++] = tokens[i];
    }
}

const lq_kv_policy lq_kv_policy_heaviest = {
    .name = "heaviest", .id = LQ_KV_POLICY_heaviest, .needs_accumulated = true, .keep = keep};
