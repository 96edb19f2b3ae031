/* checked.h - size arithmetic that cannot wrap. Each returns false on overflow and leaves *out alone. */
#ifndef LQ_CORE_CHECKED_H
#define LQ_CORE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool lq_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (a > UINT64_MAX - b) return false;
    *out = a + b;
    return true;
}

static inline bool lq_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (b != 0 && a > UINT64_MAX / b) return false;
    *out = a * b;
    return true;
}

/* Rounds up to a multiple of a power of two. */
static inline bool lq_align_u64(uint64_t a, uint64_t alignment, uint64_t *out) {
    if (!lq_add_u64(a, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
}

#endif
