/* arena.h - allocates from one block of memory, in order. With a NULL base it only counts, so that planning and
 * creating run the same code. The memory may be a device's: the arena itself never reads or writes it. */
#ifndef LQ_CORE_ARENA_H
#define LQ_CORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/checked.h"

#define LQ_ARENA_ALIGN 64
#define LQ_ARENA_MOST ((uint64_t)1 << 60)

typedef struct lq_arena {
    uint8_t *base;
    uint64_t n_bytes; /* allocated so far */
    bool overflow;    /* a size was beyond any memory: n_bytes is meaningless */
} lq_arena;

/* Allocates n items, aligned to LQ_ARENA_ALIGN. Returns NULL while it only counts. */
static inline void *lq_arena_take(lq_arena *arena, uint64_t n, uint64_t item_bytes) {
    uint64_t at = arena->n_bytes, n_bytes = 0;
    if (!lq_mul_u64(n, item_bytes, &n_bytes) || !lq_add_u64(at, n_bytes, &arena->n_bytes) ||
        !lq_align_u64(arena->n_bytes, LQ_ARENA_ALIGN, &arena->n_bytes) || arena->n_bytes > LQ_ARENA_MOST)
        arena->overflow = true;
    return arena->base != NULL ? arena->base + at : NULL;
}

static inline float *lq_arena_floats(lq_arena *arena, uint64_t n) { return lq_arena_take(arena, n, sizeof(float)); }

#endif
