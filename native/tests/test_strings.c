/* test_strings.c - tests lq_strings_within against a naive search, lq_strings_check_utf8 against a plain decoder. */
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"

enum { MAX_STRINGS = 3000, MAX_CHARS = 400000 };

typedef struct strings {
    size_t n, n_chars;
    uint64_t offsets[MAX_STRINGS + 1];
    char chars[MAX_CHARS];
    uint8_t wanted[MAX_STRINGS], within[MAX_STRINGS];
} strings;

static strings s;
static unsigned long long state = 5;

static size_t below(size_t n) { return (size_t)(check_random(&state) % n); }

static void add(const char *bytes, size_t n_bytes) {
    if (s.n == MAX_STRINGS || s.n_chars + n_bytes > MAX_CHARS) exit(2);
    memcpy(s.chars + s.n_chars, bytes, n_bytes);
    s.n_chars += n_bytes;
    s.wanted[s.n++] = 1;
    s.offsets[s.n] = s.n_chars;
}

static void clear(void) { s.n = s.n_chars = 0; }

static bool is_in(const char *text, size_t n_text, const char *string, size_t n_bytes) {
    for (size_t at = 0; at + n_bytes <= n_text; at++)
        if (memcmp(text + at, string, n_bytes) == 0) return true;
    return false;
}

static void *copy_of(const void *bytes, size_t n_bytes) {
    void *copy = malloc(n_bytes + (n_bytes == 0));
    if (!copy) exit(2);
    memcpy(copy, bytes, n_bytes);
    return copy;
}

/* Searches for all strings, with exact-size copies on the heap, so that the sanitizer sees an access past either end.
 */
static lq_status look(bool masked, int32_t separator, const char *text, size_t n_text) {
    uint64_t *offsets = copy_of(s.offsets, (s.n + 1) * sizeof *offsets);
    char *chars = copy_of(s.chars, s.n_chars), *hay = copy_of(text, n_text);
    uint8_t *within = copy_of(s.within, s.n), *wanted = copy_of(s.wanted, s.n);
    memset(within, 0x55, s.n);
    lq_status status = lq_strings_within(s.n, offsets, chars, masked ? wanted : NULL, separator, hay, n_text, within);
    memcpy(s.within, within, s.n);
    free(offsets);
    free(chars);
    free(hay);
    free(within);
    free(wanted);
    return status;
}

static void compare(bool masked, int32_t separator, const char *text, size_t n_text) {
    static char joined[MAX_CHARS];
    CHECK_STATUS(look(masked, separator, text, n_text), LQ_OK);
    size_t n_wrong = 0;
    for (size_t i = 0; i < s.n; i++) {
        size_t n = 0;
        for (uint64_t at = s.offsets[i]; at < s.offsets[i + 1]; at++)
            if ((uint8_t)s.chars[at] != separator) joined[n++] = s.chars[at];
        bool expected = (!masked || s.wanted[i]) && is_in(text, n_text, joined, n);
        n_wrong += s.within[i] != expected;
    }
    CHECK_MSG(n_wrong == 0, "%zu of %zu strings are wrong, in a text of %zu bytes", n_wrong, s.n, n_text);
}

/* Makes random strings, half of them cut out of the text. */
static void fill(const char *text, size_t n_text, size_t n_letters, size_t n_longest, int32_t separator) {
    char string[256];
    clear();
    for (size_t i = 0; i < 400; i++) {
        size_t n = below(n_longest + 1);
        if (i % 2 && n <= n_text)
            memcpy(string, text + below(n_text - n + 1), n);
        else
            for (size_t k = 0; k < n; k++) string[k] = (char)('a' + below(n_letters));
        if (separator >= 0) {
            size_t at = below(n + 1);
            memmove(string + at + 1, string + at, n - at);
            string[at] = (char)separator;
            n++;
        }
        add(string, n);
        s.wanted[i] = below(5) != 0;
    }
}

static void test_random(void) {
    static char text[600];
    for (size_t round = 0; round < 300; round++) {
        size_t n_letters = 1 + round % 5, n_text = below(round < 100 ? 12 : sizeof text);
        for (size_t i = 0; i < n_text; i++) text[i] = (char)('a' + below(n_letters));
        int32_t separator = round % 3 == 0 ? ' ' : round % 3 == 1 ? 0xff : -1;
        fill(text, n_text, n_letters, 3 + round % 40, separator);
        compare(round % 2, separator, text, n_text);
    }
}

static void test_every_byte(void) {
    char text[512];
    for (int i = 0; i < 512; i++) text[i] = (char)(i % 3 ? i : 255 - i / 2);
    clear();
    for (int i = 0; i < 256; i++) add((char[]){(char)i}, 1);
    for (int i = 0; i < 2000; i++) add((char[]){(char)below(256), (char)below(256)}, 2);
    for (size_t i = 0; i < 500; i++) add(text + i, below(12));
    compare(false, -1, text, sizeof text);
    compare(false, -1, "", 0);
    CHECK(s.within[0] == 0);
}

/* Searches texts longer than a window, for strings across its ends and for strings longer than it. */
static void test_long(void) {
    static char text[200001];
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < sizeof text; i++) text[i] = (char)(kind == 2 ? 'a' : 'a' + below(kind ? 2 : 26));
        for (size_t n_text = (1 << 15) - 1; n_text <= sizeof text; n_text += n_text / 3) {
            clear();
            for (size_t at = (1 << 15) - 40; at < (1 << 15) + 40 && at + 100 < n_text; at++) add(text + at, 64);
            for (size_t i = 0; i < 50; i++) add(text + below(n_text - 100), below(100));
            add(text + n_text - 1, 1);
            add(text + n_text - 90, 90);
            add("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 32);
            compare(false, -1, text, n_text);
            add(text + 1000, 20000);
            add(text + 100, n_text - 100 < 100000 ? n_text - 100 : 100000);
            s.chars[s.n_chars - 1] ^= 1; /* found nowhere, with luck */
            compare(false, -1, text, n_text);
        }
    }
}

static void test_separators(void) {
    const char *good[] = {"a b", "ab c", " a", "a ", " "}, *bad[] = {"ab", "a b c", "", "a  b"};
    clear();
    for (size_t i = 0; i < 5; i++) add(good[i], strlen(good[i]));
    compare(false, ' ', "xabx", 4);
    CHECK(s.within[0] && !s.within[1] && s.within[2] && s.within[3] && s.within[4]);
    for (size_t i = 0; i < 4; i++) {
        clear();
        add("a b", 3);
        add(bad[i], strlen(bad[i]));
        CHECK_STATUS(look(false, ' ', "xabx", 4), LQ_E_FORMAT);
        CHECK(strstr(lq_error_message(), "string 1 "));
        CHECK_STATUS(look(false, ' ', "", 0), LQ_E_FORMAT);
        s.wanted[1] = 0;
        CHECK_STATUS(look(true, ' ', "xabx", 4), LQ_OK);
        CHECK(s.within[0] == 1 && s.within[1] == 0);
    }
}

static void test_arguments(void) {
    uint64_t offsets[2] = {0, 1};
    uint8_t within = 9;
    CHECK_STATUS(lq_strings_within(0, NULL, NULL, NULL, -1, NULL, 0, NULL), LQ_OK);
    CHECK_STATUS(lq_strings_within(1, offsets, "a", NULL, -1, NULL, 0, &within), LQ_OK);
    CHECK(within == 0);
    CHECK_STATUS(lq_strings_within(1, offsets, "a", NULL, -1, NULL, 1, &within), LQ_E_ARG);
    CHECK_STATUS(lq_strings_within(1, NULL, "a", NULL, -1, "a", 1, &within), LQ_E_ARG);
    CHECK_STATUS(lq_strings_within(1, offsets, NULL, NULL, -1, "a", 1, &within), LQ_E_ARG);
    CHECK_STATUS(lq_strings_within(1, offsets, "a", NULL, -1, "a", 1, NULL), LQ_E_ARG);
    CHECK_STATUS(lq_strings_within(1, offsets, "a", NULL, 256, "a", 1, &within), LQ_E_ARG);
    CHECK_STATUS(lq_strings_check_utf8(0, NULL, NULL), LQ_OK);
    CHECK_STATUS(lq_strings_check_utf8(1, NULL, "a"), LQ_E_ARG);
    CHECK_STATUS(lq_strings_check_utf8(1, offsets, NULL), LQ_E_ARG);
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */

/* Decodes by the definition: a code point, and then whether these are the bytes that stand for it. */
static bool plain_utf8(const uint8_t *at, size_t n) {
    while (n > 0) {
        size_t more = at[0] < 0x80 ? 0 : at[0] < 0xc0 ? 9 : at[0] < 0xe0 ? 1 : at[0] < 0xf0 ? 2 : at[0] < 0xf8 ? 3 : 9;
        static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (more >= n) return false;
        uint32_t point = more == 0 ? at[0] : at[0] & (0x3fu >> more);
        for (size_t i = 1; i <= more; i++) {
            if (at[i] >> 6 != 2) return false;
            point = point << 6 | (at[i] & 0x3f);
        }
        if (point < least[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
        at += more + 1;
        n -= more + 1;
    }
    return true;
}

static void check_utf8(size_t expected) {
    uint64_t *offsets = copy_of(s.offsets, (s.n + 1) * sizeof *offsets);
    char *chars = copy_of(s.chars, s.n_chars), words[40];
    CHECK_STATUS(lq_strings_check_utf8(s.n, offsets, chars), expected == s.n ? LQ_OK : LQ_E_FORMAT);
    snprintf(words, sizeof words, "string %zu is not UTF-8", expected);
    CHECK(expected == s.n || strcmp(lq_error_message(), words) == 0);
    free(offsets);
    free(chars);
}

static void test_utf8(void) {
    static const uint8_t bytes[] = {0,    'a',  0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2,
                                    0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xf8, 0xff};
    size_t n_good = 0, n_kinds = sizeof bytes;
    for (size_t i = 0; i < n_kinds * n_kinds * n_kinds * n_kinds; i++) {
        uint8_t four[4] = {bytes[i % n_kinds], bytes[i / n_kinds % n_kinds], bytes[i / n_kinds / n_kinds % n_kinds],
                           bytes[i / n_kinds / n_kinds / n_kinds]};
        uint64_t offsets[2] = {0, 4};
        bool expected = plain_utf8(four, 4), found = lq_strings_check_utf8(1, offsets, (char *)four) == LQ_OK;
        if (found != expected) CHECK_MSG(false, "%02x %02x %02x %02x: %d", four[0], four[1], four[2], four[3], found);
        n_good += expected;
    }
    CHECK(n_good > 100);
    for (size_t n = 0; n < 40; n++) { /* bad at any place, before and behind whole words of ASCII */
        clear();
        for (size_t i = 0; i < n; i++) add("abcdefghijklmnopqr", i % 19);
        add("", 0);
        check_utf8(s.n);
        add("abcdefghij\xc3", 11);
        add("\xa4", 1); /* together with what is before it, a character */
        check_utf8(n + 1);
        s.n -= 2, s.n_chars -= 12;
        add("\xe2\x96\x81", 3);
        check_utf8(s.n);
        add("\xe2\x96", 2);
        check_utf8(n + 2);
    }
}

int main(void) {
    test_random();
    test_every_byte();
    test_long();
    test_separators();
    test_arguments();
    test_utf8();
    return check_report("test_strings");
}
