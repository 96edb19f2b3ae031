/* kernels_input.h - buffers between sentinels, random values and blocks, and a clock, for the checks of kernels. The
 * including file defines _POSIX_C_SOURCE first. */
#ifndef LQ_TEST_KERNELS_INPUT_H
#define LQ_TEST_KERNELS_INPUT_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"
#include "formats/formats.h"

static unsigned long long seed = 1;

/* ---- buffers with sentinels */

#define GUARD 64
#define SENTINEL 0xa5

/* A buffer of n_bytes, `shift` bytes off a 64-byte boundary, between guards. */
typedef struct guarded {
    uint8_t *memory;
    uint8_t *data;
    size_t n_bytes;
    size_t total;
} guarded;

static guarded guarded_new(size_t n_bytes, size_t shift) {
    guarded g = {.n_bytes = n_bytes, .total = (n_bytes + 3 * GUARD + 63) / 64 * 64};
    g.memory = aligned_alloc(64, g.total);
    if (g.memory == NULL) exit(2);
    memset(g.memory, SENTINEL, g.total);
    g.data = g.memory + GUARD + shift;
    return g;
}

static bool guarded_intact(const guarded *g) {
    for (uint8_t *p = g->memory; p < g->memory + g->total; p++)
        if ((p < g->data || p >= g->data + g->n_bytes) && *p != SENTINEL) return false;
    return true;
}

static void guarded_free(guarded *g) {
    free(g->memory);
    g->memory = NULL;
}

static void *exact(size_t n_bytes) { /* so that AddressSanitizer sees a read past the end */
    void *p = malloc(n_bytes ? n_bytes : 1);
    if (p == NULL) exit(2);
    return p;
}

/* Seconds, for benchmarks. */
static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- random input */

static float uniform(void) { return (float)(check_random(&seed) >> 40) * 0x1p-23f - 1.0f; }

typedef enum shape { PLAIN, ZEROS, HUGE_ONES, TINY, MIXED, SPIKE, N_SHAPES } shape;

static void fill(float *x, size_t n, shape s) {
    for (size_t i = 0; i < n; i++) {
        float v = uniform();
        switch (s) {
        case ZEROS:
            v = i % 3 ? 0.0f : -0.0f;
            break;
        case HUGE_ONES:
            v *= 1e15f;
            break;
        case TINY:
            v *= 1e-30f;
            break;
        case MIXED:
            v *= powf(10.0f, 6.0f * uniform());
            break;
        case SPIKE:
            v *= i % 37 == 5 ? 1000.0f : 0.01f;
            break;
        default:
            break;
        }
        x[i] = v;
    }
}

/* Finds the offsets of half floats (scales) in a block; returns how many there are. */
static inline size_t half_places(int32_t type, size_t places[2]) {
    places[0] = 0, places[1] = 2;
    switch (type) {
    case LQ_TYPE_Q4_1:
    case LQ_TYPE_Q5_1:
    case LQ_TYPE_Q4_K:
    case LQ_TYPE_Q5_K:
        return 2;
    case LQ_TYPE_Q2_K:
        places[0] = 80, places[1] = 82;
        return 2;
    case LQ_TYPE_Q3_K:
        places[0] = 108;
        return 1;
    case LQ_TYPE_Q6_K:
        places[0] = 208;
        return 1;
    case LQ_TYPE_TQ2_0:
        places[0] = 64;
        return 1;
    case LQ_TYPE_MXFP4:
    case LQ_TYPE_IQ1_M:
        return 0;
    default:
        return 1;
    }
}

/* Fills blocks with random bits, except that half floats (scales) are between 2^-8 and 2 in size, of either sign. */
static inline void fill_blocks(uint8_t *p, int32_t type, size_t n_blocks) {
    const lq_format *format = lq_format_find(type);
    size_t halves[2], n_halves = half_places(type, halves);
    for (size_t b = 0; b < n_blocks; b++, p += format->block_bytes) {
        for (size_t i = 0; i < format->block_bytes; i++) p[i] = (uint8_t)check_random(&seed);
        if (type == LQ_TYPE_MXFP4) p[0] = (uint8_t)(b % 11 == 10 ? b % 2 : 120u + p[0] % 9u);
        if (type == LQ_TYPE_IQ1_M) /* the top nibbles of four words, the lowest first: 0x2400 */
            for (int i = 0; i < 4; i++) p[49 + 2 * i] = (uint8_t)((p[49 + 2 * i] & 15) | "\0\0\4\2"[i] << 4);
        for (size_t i = 0; i < n_halves; i++) {
            uint64_t r = check_random(&seed);
            uint16_t h = (uint16_t)((r & 0x83ff) | (7 + (r >> 32) % 9) << 10);
            if (b % 11 == 10) h = 0;
            memcpy(p + halves[i], &h, 2);
        }
    }
}

#endif
