/* check.h - macros of the native tests: CHECK reports and counts failures, main returns check_report(). */
#ifndef LQ_TEST_CHECK_H
#define LQ_TEST_CHECK_H

#include <stdio.h>
#include <string.h>

#include "logquant_gguf.h"

static int check_passed, check_failed;

#define CHECK_MSG(condition, ...)                                                                                      \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            check_passed++;                                                                                            \
        } else {                                                                                                       \
            check_failed++;                                                                                            \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
        }                                                                                                              \
    } while (0)

#define CHECK(condition) CHECK_MSG(condition, "failed: %s", #condition)
/* Checks a status, and shows the library's text if it is not the expected one. */
#define CHECK_STATUS(expression, expected)                                                                             \
    do {                                                                                                               \
        lq_status check_status_ = (expression);                                                                        \
        CHECK_MSG(check_status_ == (expected), "%s: status %d, expected %d (%s)", #expression, (int)check_status_,     \
                  (int)(expected), lq_error_message());                                                                \
    } while (0)

/* Deterministic pseudo-random numbers (splitmix64): tests repeat exactly. */
static inline unsigned long long check_random(unsigned long long *state) {
    unsigned long long z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static inline int check_report(const char *name) {
    printf("%s: %d passed, %d failed\n", name, check_passed, check_failed);
    return check_failed != 0;
}

#endif
