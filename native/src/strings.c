/* strings.c - tells which of an array's strings occur in a text, and whether they are UTF-8.
 *
 * The text becomes a suffix automaton: the smallest one that takes exactly the text's substrings, of at most two states
 * and three edges per byte, built byte by byte. A string is in the text if it can be walked from the root. Both take
 * time that is linear in what is read, whatever file and text hold. A long text is searched in windows, which overlap
 * so far that the longest string cannot fall between two: walking an automaton that fits the CPU's cache is several
 * times as fast. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "logquant_gguf.h"

enum { WINDOW_BYTES = 1 << 15, MAX_WINDOW_BYTES = 1 << 30 };

enum { NOWHERE = 0, ROOT = 1 }; /* states */

typedef struct state {
    uint32_t length; /* of the longest string that leads here */
    uint32_t link;   /* suffix link: the state of its longest suffix that leads to another state */
    uint32_t edges;  /* index of the first edge, 0 = none */
} state;

typedef struct edge {
    uint32_t to, next;
    uint8_t byte;
} edge;

typedef struct automaton {
    state *states; /* [2 n + 2] */
    edge *edges;   /* [3 n + 1] */
    uint32_t n_states, n_edges;
    uint32_t after_one[256]; /* the state after one byte; most strings are found or ruled out within two */
    uint32_t *after_two;     /* [65536] the state after two bytes, at first + 256 second */
} automaton;

static edge *edge_of(const automaton *a, uint32_t from, uint8_t byte) {
    uint32_t at = a->states[from].edges;
    while (at && a->edges[at].byte != byte) at = a->edges[at].next;
    return at ? &a->edges[at] : NULL;
}

static void add_edge(automaton *a, uint32_t from, uint8_t byte, uint32_t to) {
    a->edges[a->n_edges] = (edge){.to = to, .next = a->states[from].edges, .byte = byte};
    a->states[from].edges = a->n_edges++;
}

/* Adds the state that accepts only the shorter ones of q's strings, up to the length of p's plus one byte. */
static uint32_t split_state(automaton *a, uint32_t p, uint8_t byte, uint32_t q) {
    uint32_t shorter = a->n_states++;
    a->states[shorter] = (state){.length = a->states[p].length + 1, .link = a->states[q].link};
    for (uint32_t at = a->states[q].edges; at; at = a->edges[at].next)
        add_edge(a, shorter, a->edges[at].byte, a->edges[at].to);
    a->states[q].link = shorter;
    for (edge *e; p != NOWHERE && (e = edge_of(a, p, byte)) && e->to == q; p = a->states[p].link) e->to = shorter;
    return shorter;
}

/* Appends a byte to the text so far, which leads to state `last`; returns the state of the longer text. */
static uint32_t append_byte(automaton *a, uint32_t last, uint8_t byte) {
    uint32_t added = a->n_states++, p = last;
    edge *known = NULL;
    a->states[added] = (state){.length = a->states[last].length + 1};
    for (; p != NOWHERE && !(known = edge_of(a, p, byte)); p = a->states[p].link) add_edge(a, p, byte, added);
    if (p == NOWHERE)
        a->states[added].link = ROOT;
    else if (a->states[known->to].length == a->states[p].length + 1)
        a->states[added].link = known->to;
    else
        a->states[added].link = split_state(a, p, byte, known->to);
    return added;
}

static void read_text(automaton *a, const uint8_t *text, size_t n_bytes) {
    uint32_t last = ROOT;
    a->n_states = ROOT + 1;
    a->n_edges = 1;
    a->states[ROOT] = (state){.link = NOWHERE};
    for (size_t i = 0; i < n_bytes; i++) last = append_byte(a, last, text[i]);
    memset(a->after_one, 0, sizeof a->after_one);
    memset(a->after_two, 0, 65536 * sizeof *a->after_two);
    for (uint32_t one = a->states[ROOT].edges; one; one = a->edges[one].next) {
        edge first = a->edges[one];
        a->after_one[first.byte] = first.to;
        for (uint32_t two = a->states[first.to].edges; two; two = a->edges[two].next)
            a->after_two[first.byte + 256u * a->edges[two].byte] = a->edges[two].to;
    }
}

/* The state that these bytes lead to, or NOWHERE if the text has no such continuation. */
static uint32_t walk(const automaton *a, uint32_t from, const uint8_t *bytes, uint64_t n_bytes) {
    uint64_t i = 0;
    if (from == ROOT && n_bytes >= 2) {
        from = a->after_two[bytes[0] + 256u * bytes[1]];
        i = 2;
    } else if (from == ROOT && n_bytes == 1) {
        return a->after_one[bytes[0]];
    }
    for (; from != NOWHERE && i < n_bytes; i++) {
        const edge *e = edge_of(a, from, bytes[i]);
        from = e ? e->to : NOWHERE;
    }
    return from;
}

typedef struct strings {
    size_t n;
    const uint64_t *offsets;
    const uint8_t *chars;
    const uint8_t *wanted; /* or NULL */
    int32_t separator;     /* -1: none */
} strings;

/* Sets within[] of the strings that the automaton accepts. */
static lq_status walk_all(const automaton *a, const strings *s, uint8_t *within) {
    static const uint8_t none[8] = {0};
    for (size_t i = 0; i < s->n; i++) {
        if (s->wanted && !s->wanted[i]) {
            if (s->n - i >= 8 && memcmp(s->wanted + i, none, 8) == 0) i += 7; /* most masks have long gaps */
            continue;
        }
        if (within[i]) continue;
        const uint8_t *string = s->chars + s->offsets[i];
        uint64_t n_bytes = s->offsets[i + 1] - s->offsets[i], n_first = n_bytes;
        if (s->separator >= 0) {
            const uint8_t *at = memchr(string, s->separator, (size_t)n_bytes);
            if (at) n_first = (uint64_t)(at - string);
            if (!at || memchr(at + 1, s->separator, (size_t)(n_bytes - n_first - 1)))
                return lq_fail(LQ_E_FORMAT, "string %zu does not hold the separator %d exactly once", i,
                               (int)s->separator);
        }
        uint32_t end = walk(a, ROOT, string, n_first);
        if (n_first < n_bytes) end = walk(a, end, string + n_first + 1, n_bytes - n_first - 1);
        within[i] = end != NOWHERE;
    }
    return LQ_OK;
}

/* Bytes of the longest wanted string that a text of n_text_bytes can hold, the separator included. */
static uint64_t longest(const strings *s, uint64_t n_text_bytes) {
    uint64_t most = 1;
    for (size_t i = 0; i < s->n; i++) {
        uint64_t n_bytes = s->offsets[i + 1] - s->offsets[i];
        if (n_bytes > most && n_bytes <= n_text_bytes + 1 && (!s->wanted || s->wanted[i])) most = n_bytes;
    }
    return most;
}

lq_status lq_strings_within(size_t n_strings, const uint64_t *offsets, const char *chars, const uint8_t *wanted,
                            int32_t separator, const char *text, uint64_t n_text_bytes, uint8_t *within) {
    strings s = {n_strings, offsets, (const uint8_t *)chars, wanted, separator};
    automaton a = {.states = NULL};
    uint64_t window = n_text_bytes, step = n_text_bytes;
    lq_status status = LQ_OK;
    if ((n_strings > 0 && (!offsets || !chars || !within)) || (n_text_bytes > 0 && !text))
        return lq_fail(LQ_E_ARG, "lq_strings_within: an argument is NULL");
    if (separator > 255) return lq_fail(LQ_E_ARG, "lq_strings_within: the separator %d is no byte", (int)separator);
    if (n_text_bytes > WINDOW_BYTES) {
        uint64_t most = longest(&s, n_text_bytes);
        window = most > WINDOW_BYTES / 2 ? 2 * most : WINDOW_BYTES;
        step = window - (most - 1);
    }
    if (window > MAX_WINDOW_BYTES)
        return lq_fail(LQ_E_ARG, "lq_strings_within: text and strings are too long, of %" PRIu64 " bytes", window);
    a.states = malloc((2 * (size_t)window + 2) * sizeof *a.states);
    a.edges = malloc((3 * (size_t)window + 1) * sizeof *a.edges);
    a.after_two = malloc(65536 * sizeof *a.after_two);
    if (!a.states || !a.edges || !a.after_two) {
        status = lq_fail(LQ_E_MEMORY, "no memory to look for strings in a text of %" PRIu64 " bytes", n_text_bytes);
        goto fail;
    }
    if (n_strings > 0) memset(within, 0, n_strings);
    if (!text) text = "";
    for (uint64_t start = 0;; start += step) {
        uint64_t left = n_text_bytes - start;
        read_text(&a, (const uint8_t *)text + start, (size_t)(left < window ? left : window));
        if ((status = walk_all(&a, &s, within)) != LQ_OK || left <= window) break;
    }
fail:
    free(a.states);
    free(a.edges);
    free(a.after_two);
    return status;
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------- */

static bool follows(uint8_t byte) { return (byte & 0xc0) == 0x80; }

/* Bytes of the first character; 0 if it is invalid: cut short, overlong, a surrogate, or past U+10FFFF. */
static uint32_t character(const uint8_t *at, uint64_t n_bytes) {
    if (at[0] < 0x80) return 1;
    if (at[0] < 0xc2 || n_bytes < 2 || !follows(at[1])) return 0;
    if (at[0] < 0xe0) return 2;
    if (n_bytes < 3 || !follows(at[2])) return 0;
    if (at[0] < 0xf0) {
        bool is_overlong = at[0] == 0xe0 && at[1] < 0xa0, is_surrogate = at[0] == 0xed && at[1] >= 0xa0;
        return is_overlong || is_surrogate ? 0 : 3;
    }
    if (n_bytes < 4 || !follows(at[3]) || at[0] > 0xf4) return 0;
    bool is_overlong = at[0] == 0xf0 && at[1] < 0x90, is_past_end = at[0] == 0xf4 && at[1] >= 0x90;
    return is_overlong || is_past_end ? 0 : 4;
}

static bool is_utf8(const uint8_t *bytes, uint64_t n_bytes) {
    for (uint64_t i = 0; i < n_bytes;) {
        uint64_t word, end = n_bytes - i > 8 ? i + 8 : n_bytes;
        if (n_bytes - i >= 8 && (memcpy(&word, bytes + i, 8), (word & 0x8080808080808080u) == 0)) {
            i += 8;
            continue;
        }
        while (i < end) {
            uint32_t n = character(bytes + i, n_bytes - i);
            if (n == 0) return false;
            i += n;
        }
    }
    return true;
}

lq_status lq_strings_check_utf8(size_t n_strings, const uint64_t *offsets, const char *chars) {
    const uint8_t *bytes = (const uint8_t *)chars;
    if (n_strings == 0) return LQ_OK;
    if (!offsets || !chars) return lq_fail(LQ_E_ARG, "lq_strings_check_utf8: an argument is NULL");
    /* Check all bytes at once, then that no string ends inside a character: several times as fast as string by string.
     */
    bool is_good = is_utf8(bytes, offsets[n_strings]);
    for (size_t i = 1; is_good && i < n_strings; i++)
        is_good = offsets[i] == offsets[n_strings] || !follows(bytes[offsets[i]]);
    for (size_t i = 0; !is_good && i < n_strings; i++)
        if (!is_utf8(bytes + offsets[i], offsets[i + 1] - offsets[i]))
            return lq_fail(LQ_E_FORMAT, "string %zu is not UTF-8", i);
    return LQ_OK;
}
