/* test_vocab.c - tests lq_vocab_merges against a plain merger written here, on random and on hand-made vocabularies. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"

enum { MAX_TOKENS = 400 };

typedef struct vocab {
    size_t n;
    uint64_t offsets[MAX_TOKENS + 1];
    char chars[MAX_TOKENS * 1100];
    size_t n_chars;
    float scores[MAX_TOKENS];
    uint8_t is_piece[MAX_TOKENS];
    int32_t left[MAX_TOKENS], right[MAX_TOKENS]; /* each token's pair, -1 if it has no merge */
} vocab;

static void add_bytes(vocab *v, const char *text, size_t n_bytes, float score) {
    memcpy(v->chars + v->n_chars, text, n_bytes);
    v->n_chars += n_bytes;
    v->scores[v->n] = score;
    v->is_piece[v->n++] = 1;
    v->offsets[v->n] = v->n_chars;
}

static void add(vocab *v, const char *text, float score) { add_bytes(v, text, strlen(text), score); }

/* Whether merge b may follow merge a. */
static bool in_order(const vocab *v, int32_t a, int32_t b) {
    float first = isnan(v->scores[a]) ? -INFINITY : v->scores[a], next = isnan(v->scores[b]) ? -INFINITY : v->scores[b];
    uint64_t n_first = v->offsets[a + 1] - v->offsets[a], n_next = v->offsets[b + 1] - v->offsets[b];
    return first != next ? first > next : n_first != n_next ? n_first > n_next : a < b;
}

static void *copy_of(const void *bytes, size_t n_bytes) {
    void *copy = malloc(n_bytes + (n_bytes == 0));
    if (!copy) exit(2);
    memcpy(copy, bytes, n_bytes);
    return copy;
}

/* Calls lq_vocab_merges with exact-size arrays on the heap, so that the sanitizer sees an access past either end. */
static void run(vocab *v) {
    size_t n_pieces = 0, n_merges = 99;
    for (size_t i = 0; i < v->n; i++) n_pieces += v->is_piece[i];
    uint64_t *offsets = copy_of(v->offsets, (v->n + 1) * sizeof *offsets);
    char *chars = copy_of(v->chars, v->n_chars);
    int32_t *token = malloc((n_pieces + 1) * sizeof *token);
    int32_t *left = malloc(n_pieces * sizeof *left + 1), *right = malloc(n_pieces * sizeof *right + 1);
    if (!token || !left || !right) exit(2);
    token[n_pieces] = 0x5555;
    memset(v->left, 0xff, sizeof v->left);
    memset(v->right, 0xff, sizeof v->right);
    CHECK_STATUS(lq_vocab_merges(v->n, offsets, chars, v->scores, v->is_piece, token, left, right, &n_merges), LQ_OK);
    CHECK(n_merges <= n_pieces && token[n_pieces] == 0x5555);
    for (size_t k = 0; k < n_merges; k++) {
        CHECK_MSG(k == 0 || in_order(v, token[k - 1], token[k]), "merge %zu is out of order", k);
        v->left[token[k]] = left[k];
        v->right[token[k]] = right[k];
    }
    free(offsets);
    free(chars);
    free(token);
    free(left);
    free(right);
}

static void expect(const vocab *v, int32_t id, int32_t left, int32_t right) {
    CHECK_MSG(v->left[id] == left && v->right[id] == right, "token %d: %d + %d, expected %d + %d", (int)id,
              (int)v->left[id], (int)v->right[id], (int)left, (int)right);
}

static void test_hand_made(void) {
    static vocab v;
    v = (vocab){.n = 0};
    add(&v, "a", -10);    /* 0 */
    add(&v, "b", -11);    /* 1 */
    add(&v, "c", -12);    /* 2 */
    add(&v, "ab", -2);    /* 3 */
    add(&v, "bc", -1);    /* 4: better than ab */
    add(&v, "abc", -3);   /* 5 = a + bc */
    add(&v, "aa", -4);    /* 6 */
    add(&v, "aaa", -5);   /* 7 = aa + a: leftmost first */
    add(&v, "abcbc", -6); /* 8: abc + bc */
    add(&v, "cab", -7);   /* 9 = c + ab */
    add(&v, "zz", -8);    /* 10: z is no piece */
    add(&v, "cba", -9);   /* 11: no pair of neighbours is a piece */
    add(&v, "ab", 5);     /* 12: the text of 3, and a better score that does not count */
    add(&v, "", 1);       /* 13 */
    run(&v);
    for (int32_t i = 0; i < 3; i++) expect(&v, i, -1, -1);
    expect(&v, 3, 0, 1);
    expect(&v, 4, 1, 2);
    expect(&v, 5, 0, 4);
    expect(&v, 6, 0, 0);
    expect(&v, 7, 6, 0);
    expect(&v, 8, 5, 4);
    expect(&v, 9, 2, 3);
    expect(&v, 10, -1, -1);
    expect(&v, 11, -1, -1);
    expect(&v, 12, -1, -1);
    expect(&v, 13, -1, -1);
    v.is_piece[4] = 0; /* without bc: ab first */
    run(&v);
    expect(&v, 4, -1, -1);
    expect(&v, 5, 3, 2);
    v.is_piece[4] = 1;
    v.scores[4] = NAN; /* the lowest of all */
    run(&v);
    expect(&v, 4, 1, 2);
    expect(&v, 5, 3, 2);
    v.is_piece[3] = 0; /* the next id with the same text takes over */
    run(&v);
    expect(&v, 3, -1, -1);
    expect(&v, 12, 0, 1);
    expect(&v, 5, 12, 2);
}

static void test_utf8(void) {
    static vocab v;
    v = (vocab){.n = 0};
    add(&v, "\xe2\x96\x81", -1);             /* 0: one character of three bytes */
    add(&v, "\xe2\x96\x81\xe2\x96\x81", -2); /* 1 */
    add(&v, "\xf0\x9f\x98\x80", -3);         /* 2: one of four */
    add(&v, "\xe2\x96\x81\xf0\x9f\x98\x80", -4);
    add(&v, "\x80", -5); /* from here on malformed: anything but a crash */
    add(&v, "\x80\x80", -6);
    add(&v, "\xf0\x9f", -7);
    add(&v, "a\xf0", -8);
    add(&v, "\xff\xfe", -9);
    add(&v, "a", -10);
    add_bytes(&v, "a\0a", 3, -11);
    add(&v, "\xe2\x96", -12); /* cut short at the very end of the characters */
    run(&v);
    expect(&v, 0, -1, -1);
    expect(&v, 1, 0, 0);
    expect(&v, 2, -1, -1);
    expect(&v, 3, 0, 2);
    expect(&v, 5, 4, 4);
    expect(&v, 10, -1, -1);
}

/* Merges of runs of one character double them, as with whitespace; beyond the length limit there are no merges. */
static void test_long(void) {
    static vocab v;
    static char run_of[1100];
    v = (vocab){.n = 0};
    memset(run_of, ' ', sizeof run_of);
    for (size_t n = 1; n <= 1024; n *= 2) add_bytes(&v, run_of, n, -(float)n);
    add_bytes(&v, run_of, 48, -48);   /* 11 = 32 + 16 */
    add_bytes(&v, run_of, 1025, -99); /* 12 */
    run(&v);
    expect(&v, 0, -1, -1);
    for (int32_t i = 1; i <= 10; i++) expect(&v, i, i - 1, i - 1);
    expect(&v, 11, 5, 4);
    expect(&v, 12, -1, -1);
}

/* ---- a merger without any cleverness ----------------------------------------------------------------------------- */

static const char *text_of(const vocab *v, size_t id) { return v->chars + v->offsets[id]; }

static size_t bytes_of(const vocab *v, size_t id) { return (size_t)(v->offsets[id + 1] - v->offsets[id]); }

static int32_t id_of(const vocab *v, const char *text, size_t n_bytes) {
    for (size_t i = 0; i < v->n; i++)
        if (v->is_piece[i] && bytes_of(v, i) == n_bytes && memcmp(text_of(v, i), text, n_bytes) == 0) return (int32_t)i;
    return -1;
}

/* ASCII only: cuts[k] are the symbols' starts. */
static void plain_merge(const vocab *v, size_t id, int32_t *left, int32_t *right) {
    const char *text = text_of(v, id);
    size_t cuts[64], n = bytes_of(v, id);
    *left = *right = -1;
    if (!v->is_piece[id] || id_of(v, text, n) != (int32_t)id) return;
    for (size_t i = 0; i <= n; i++) cuts[i] = i;
    while (n > 1) {
        int best = -1;
        float best_score = 0;
        int32_t pair[2] = {-1, -1};
        for (size_t i = 0; i + 1 < n; i++) {
            int32_t made = id_of(v, text + cuts[i], cuts[i + 2] - cuts[i]);
            if (made < 0 || (best >= 0 && !(v->scores[made] > best_score))) continue;
            best = (int)i;
            best_score = v->scores[made];
            pair[0] = id_of(v, text + cuts[i], cuts[i + 1] - cuts[i]);
            pair[1] = id_of(v, text + cuts[i + 1], cuts[i + 2] - cuts[i + 1]);
        }
        if (best < 0) return;
        memmove(&cuts[best + 1], &cuts[best + 2], (n - (size_t)best - 1) * sizeof cuts[0]);
        n--;
        if (n == 1 && pair[0] >= 0 && pair[1] >= 0) {
            *left = pair[0];
            *right = pair[1];
        }
    }
}

static void test_random(void) {
    unsigned long long state = 7;
    static vocab v;
    int n_merges = 0;
    for (int round = 0; round < 40; round++) {
        v = (vocab){.n = 0};
        for (int i = 0; i < 120; i++) {
            char text[17];
            size_t n = 1 + check_random(&state) % (round % 2 ? 4 : 12);
            for (size_t k = 0; k < n; k++) text[k] = (char)('a' + check_random(&state) % (round % 3 ? 2 : 3));
            add_bytes(&v, text, n, -(float)(check_random(&state) % 20)); /* ties, duplicates */
            v.is_piece[v.n - 1] = check_random(&state) % 10 != 0;
        }
        run(&v);
        for (size_t i = 0; i < v.n; i++) {
            int32_t left, right;
            plain_merge(&v, i, &left, &right);
            expect(&v, (int32_t)i, left, right);
            n_merges += left >= 0;
        }
    }
    CHECK_MSG(n_merges > 500, "only %d merges: the test's vocabularies are too sparse", n_merges);
}

/* With only the pieces that occur in a text, these must have the same merges as among all, in the same order. */
static void test_part(void) {
    unsigned long long state = 11;
    static vocab whole, part;
    whole = (vocab){.n = 0};
    for (int i = 0; i < 300; i++) {
        char text[8];
        size_t n = 1 + check_random(&state) % 7;
        for (size_t k = 0; k < n; k++) text[k] = (char)('a' + check_random(&state) % 3);
        add_bytes(&whole, text, n, -(float)(check_random(&state) % 50));
    }
    for (int round = 0; round < 30; round++) {
        char text[40];
        for (size_t k = 0; k < sizeof text; k++) text[k] = (char)('a' + check_random(&state) % 3);
        part = whole;
        CHECK_STATUS(lq_strings_within(part.n, part.offsets, part.chars, NULL, -1, text, sizeof text, part.is_piece),
                     LQ_OK);
        run(&whole);
        run(&part);
        for (size_t i = 0; i < whole.n; i++)
            if (part.is_piece[i]) expect(&part, (int32_t)i, whole.left[i], whole.right[i]);
    }
}

static void test_arguments(void) {
    uint64_t offsets[2] = {0, 1};
    float score = 0;
    uint8_t piece = 1;
    int32_t token, left, right;
    size_t n = 9;
    CHECK_STATUS(lq_vocab_merges(0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &n), LQ_OK);
    CHECK(n == 0);
    CHECK_STATUS(lq_vocab_merges(0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), LQ_E_ARG);
    CHECK_STATUS(lq_vocab_merges(1, offsets, NULL, &score, &piece, &token, &left, &right, &n), LQ_E_ARG);
    CHECK_STATUS(lq_vocab_merges(1, offsets, "a", &score, &piece, &token, &left, NULL, &n), LQ_E_ARG);
    CHECK_STATUS(lq_vocab_merges((size_t)1 << 31, offsets, "a", &score, &piece, &token, &left, &right, &n), LQ_E_ARG);
}

int main(void) {
    test_hand_made();
    test_utf8();
    test_long();
    test_random();
    test_part();
    test_arguments();
    return check_report("test_vocab");
}
