/* fuzz_mutate.h - the driver of the fuzz targets that read files.
 *
 *   fuzz_x                      a fixed number of mutations, always the same
 *   fuzz_x --seconds N [SEED]   as many as fit into N seconds
 *   fuzz_x --corpus FOLDER      writes the files that mutations start from
 *
 * Built with LQ_LIBFUZZER (see CONTRIBUTING.md), a target is libFuzzer's instead and has no main(). */
#ifndef LQ_TEST_FUZZ_MUTATE_H
#define LQ_TEST_FUZZ_MUTATE_H

#include <time.h>

#include "check.h"
#include "gguf_build.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void mutate(bytes *b, unsigned long long *state) {
    static const unsigned long long edges[] = {0, 1, 2, 31, 255, 65536, 1ull << 31, 1ull << 32, 1ull << 62, ~0ull};
    unsigned n_changes = 1 + (unsigned)(check_random(state) % 3);
    while (n_changes-- > 0 && b->n > 16) {
        size_t at = check_random(state) % (b->n - 8), width = (size_t)1 << (check_random(state) % 4);
        unsigned long long value;
        switch (check_random(state) % 5) {
        case 0: /* one bit */
            b->data[at] ^= (unsigned char)(1u << (check_random(state) % 8));
            break;
        case 1: /* an edge value over a field */
            value = edges[check_random(state) % (sizeof edges / sizeof edges[0])];
            memcpy(b->data + at, &value, width);
            break;
        case 2: /* a field, a little off */
            b->data[at] = (unsigned char)(b->data[at] + (int)(check_random(state) % 5) - 2);
            break;
        case 3: /* bytes taken out */
            memmove(b->data + at, b->data + at + width, b->n - at - width);
            b->n -= width;
            break;
        default: /* cut short */
            if (check_random(state) % 4 == 0) b->n = at + 1;
        }
    }
}

/* Writes the corpus if the arguments ask for it; returns whether they do. */
static inline bool fuzz_corpus(int argc, char **argv, const bytes *seeds, unsigned n_seeds) {
    char path[512];
    if (argc < 3 || strcmp(argv[1], "--corpus") != 0) return false;
    for (unsigned i = 0; i < n_seeds; i++) {
        snprintf(path, sizeof path, "%s/seed%u", argv[2], i);
        write_file(path, seeds[i].data, seeds[i].n);
    }
    return true;
}

/* Runs mutations of the n_seeds files in turn; returns how many. */
static inline unsigned long fuzz_mutations(int argc, char **argv, unsigned long n_rounds, const bytes *seeds,
                                           unsigned n_seeds) {
    static bytes b;
    bool timed = argc > 2 && strcmp(argv[1], "--seconds") == 0;
    time_t end = timed ? time(NULL) + atoi(argv[2]) : 0;
    unsigned long long state = timed && argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    unsigned long n = 0;
    for (; timed ? time(NULL) < end : n < n_rounds; n++) {
        b = seeds[n % n_seeds];
        mutate(&b, &state);
        LLVMFuzzerTestOneInput(b.data, b.n);
        check_passed++;
    }
    return n;
}

#endif
