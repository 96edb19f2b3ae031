/* vocab.c - lq_vocab_merges: computes the merge list that a score-ordered vocabulary stands for.
 *
 * A text is tokenized by merging, again and again, the adjacent pair whose concatenation is the best-scored piece.
 * Nothing can have been merged across the ends of a token before it formed (its ends would then lie inside a larger
 * piece for good), so applying the rule to the token's own text alone gives exactly the merges that make it. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/hash.h"
#include "core/status.h"
#include "logquant_gguf.h"

enum {
    MAX_PIECE_BYTES =
        1024 /* bounds the quadratic work per token; the longest pieces of real vocabularies have about 100 */
};

/* A lookup mostly waits for one cache line, so the slot holds everything that most lookups need. */
typedef struct slot {
    uint64_t key; /* key_of() */
    int32_t id;   /* -1: free */
    float score;  /* never NaN */
} slot;

enum { UNKNOWN = -2 };

typedef struct vocab {
    const char *chars;
    const uint64_t *offsets; /* [n_tokens + 1] into chars */
    const float *scores;
    slot *slots; /* pieces of at most MAX_PIECE_BYTES; of several with the same text the lowest id */
    uint64_t mask;
} vocab;

typedef struct merge {
    float score; /* never NaN */
    uint32_t n_bytes;
    int32_t token, left, right;
} merge;

/* Text being merged: symbol i covers bytes start[i]..start[i + 1]; pair i is symbols i and i + 1. */
typedef struct merging {
    uint32_t start[MAX_PIECE_BYTES + 1];
    int32_t symbol_id[MAX_PIECE_BYTES]; /* the symbol's piece; UNKNOWN as long as it is a single character */
    int32_t pair_id[MAX_PIECE_BYTES];   /* the piece the pair makes, or -1 */
    float pair_score[MAX_PIECE_BYTES];
    uint32_t n_symbols;
} merging;

/* Texts of up to 7 bytes are their own key, with their length in the top byte; longer ones are hashed, under 0xff. */
static uint64_t key_of(const char *chars, uint32_t n_bytes) {
    uint64_t key = (uint64_t)n_bytes << 56;
    if (n_bytes > 7) return lq_hash(chars, n_bytes, 0) | (uint64_t)0xff << 56;
    for (uint32_t i = 0; i < n_bytes; i++) key |= (uint64_t)(uint8_t)chars[i] << (8 * i);
    return key;
}

static const char *text_of(const vocab *v, int32_t id) { return v->chars + v->offsets[id]; }

static uint64_t bytes_of(const vocab *v, int32_t id) { return v->offsets[id + 1] - v->offsets[id]; }

/* The slot of these characters, or the free one where they belong. */
static slot *slot_of(const vocab *v, const char *chars, uint32_t n_bytes) {
    uint64_t key = key_of(chars, n_bytes);
    for (uint64_t at = lq_hash_mix(key) & v->mask;; at = (at + 1) & v->mask) {
        slot *s = &v->slots[at];
        if (s->id < 0) return s;
        if (s->key != key) continue;
        if (n_bytes <= 7) return s;
        if (bytes_of(v, s->id) == n_bytes && memcmp(text_of(v, s->id), chars, n_bytes) == 0) return s;
    }
}

/* Makes slots for the pieces alone, so that a caller who wants the merges of a few tokens pays for few. */
static lq_status vocab_init(vocab *v, size_t n_tokens, size_t n_pieces, const uint8_t *is_piece) {
    uint64_t n_slots = 16;
    while (n_slots / 2 < n_pieces) n_slots *= 2;
    v->slots = malloc((size_t)n_slots * sizeof *v->slots);
    if (!v->slots) return lq_fail(LQ_E_MEMORY, "no memory for a vocabulary of %zu pieces", n_pieces);
    v->mask = n_slots - 1;
    memset(v->slots, 0xff, (size_t)n_slots * sizeof *v->slots);
    for (size_t i = 0; i < n_tokens; i++) {
        uint64_t n_bytes = is_piece[i] ? bytes_of(v, (int32_t)i) : 0;
        if (n_bytes == 0 || n_bytes > MAX_PIECE_BYTES) continue;
        slot *s = slot_of(v, text_of(v, (int32_t)i), (uint32_t)n_bytes);
        if (s->id >= 0) continue; /* a lower id has the same text */
        s->key = key_of(text_of(v, (int32_t)i), (uint32_t)n_bytes);
        s->id = (int32_t)i;
        s->score = isnan(v->scores[i]) ? -INFINITY : v->scores[i];
    }
    return LQ_OK;
}

/* Bytes of the character that starts with this byte; 1 for what cannot start one. */
static uint32_t char_bytes(char first) {
    uint8_t byte = (uint8_t)first;
    return byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : byte < 0xf8 ? 4 : 1;
}

static void look_up_pair(const vocab *v, const char *text, merging *m, uint32_t i) {
    const slot *s = slot_of(v, text + m->start[i], m->start[i + 2] - m->start[i]);
    m->pair_id[i] = s->id;
    m->pair_score[i] = s->score; /* not read if the id is -1 */
}

static void split_chars(const vocab *v, const char *text, uint32_t n_bytes, merging *m) {
    uint32_t n = 0;
    for (uint32_t at = 0; at < n_bytes; at += char_bytes(text[at])) {
        m->start[n] = at;
        m->symbol_id[n++] = UNKNOWN;
    }
    m->start[n] = n_bytes; /* a truncated last character ends with the text */
    m->n_symbols = n;
    for (uint32_t i = 0; n > 2 && i + 1 < n; i++) look_up_pair(v, text, m, i);
}

/* The pair to merge next, or -1. */
static int64_t best_pair(const merging *m) {
    int64_t best = -1;
    for (uint32_t i = 0; i + 1 < m->n_symbols; i++)
        if (m->pair_id[i] >= 0 && (best < 0 || m->pair_score[i] > m->pair_score[best])) best = i;
    return best;
}

static void merge_pair(const vocab *v, const char *text, merging *m, uint32_t at) {
    uint32_t n_after = m->n_symbols - at - 2; /* symbols behind the pair */
    m->symbol_id[at] = m->pair_id[at];
    memmove(&m->start[at + 1], &m->start[at + 2], (n_after + 1) * sizeof m->start[0]);
    if (n_after > 0) {
        memmove(&m->symbol_id[at + 1], &m->symbol_id[at + 2], n_after * sizeof m->symbol_id[0]);
        memmove(&m->pair_id[at], &m->pair_id[at + 1], n_after * sizeof m->pair_id[0]);
        memmove(&m->pair_score[at], &m->pair_score[at + 1], n_after * sizeof m->pair_score[0]);
    }
    m->n_symbols--;
    if (m->n_symbols == 2) return; /* the pair that is left makes the token itself */
    if (at > 0) look_up_pair(v, text, m, at - 1);
    if (n_after > 0) look_up_pair(v, text, m, at);
}

static int32_t symbol_id(const vocab *v, const char *text, const merging *m, uint32_t i) {
    if (m->symbol_id[i] != UNKNOWN) return m->symbol_id[i];
    return slot_of(v, text + m->start[i], m->start[i + 1] - m->start[i])->id;
}

/* Finds the pair that makes a piece; false if there is none. */
static bool find_merge(const vocab *v, const slot *piece, merging *m, merge *out) {
    const char *text = text_of(v, piece->id);
    uint32_t n_bytes = (uint32_t)bytes_of(v, piece->id);
    split_chars(v, text, n_bytes, m);
    while (m->n_symbols > 2) {
        int64_t at = best_pair(m);
        if (at < 0) return false;
        merge_pair(v, text, m, (uint32_t)at);
    }
    if (m->n_symbols < 2) return false;
    int32_t first = symbol_id(v, text, m, 0), second = symbol_id(v, text, m, 1);
    if (first < 0 || second < 0) return false; /* a character that is no piece has no id */
    *out = (merge){piece->score, n_bytes, piece->id, first, second};
    return true;
}

static int by_rank(const void *one, const void *other) {
    const merge *a = one, *b = other;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    if (a->n_bytes != b->n_bytes) return a->n_bytes > b->n_bytes ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static size_t count_pieces(size_t n_tokens, const uint8_t *is_piece) {
    size_t n = 0;
    for (size_t i = 0; i < n_tokens; i++) n += is_piece[i] != 0;
    return n;
}

lq_status lq_vocab_merges(size_t n_tokens, const uint64_t *offsets, const char *chars, const float *scores,
                          const uint8_t *is_piece, int32_t *token, int32_t *left, int32_t *right, size_t *n_merges) {
    vocab v = {.chars = chars, .offsets = offsets, .scores = scores};
    merging *m = NULL;
    merge *merges = NULL;
    size_t n = 0;
    lq_status status;
    if (n_tokens > INT32_MAX / 2) return lq_fail(LQ_E_ARG, "lq_vocab_merges: %zu tokens are too many", n_tokens);
    if (!n_merges || (n_tokens > 0 && (!offsets || !chars || !scores || !is_piece || !token || !left || !right)))
        return lq_fail(LQ_E_ARG, "lq_vocab_merges: an argument is NULL");
    *n_merges = 0;
    size_t n_pieces = count_pieces(n_tokens, is_piece);
    if ((status = vocab_init(&v, n_tokens, n_pieces, is_piece)) != LQ_OK) goto fail;
    m = malloc(sizeof *m);
    merges = malloc((n_pieces ? n_pieces : 1) * sizeof *merges);
    if (!m || !merges) {
        status = lq_fail(LQ_E_MEMORY, "no memory for the merges of a vocabulary");
        goto fail;
    }
    for (uint64_t at = 0; at <= v.mask; at++)
        if (v.slots[at].id >= 0 && find_merge(&v, &v.slots[at], m, &merges[n])) n++;
    qsort(merges, n, sizeof *merges, by_rank);
    for (size_t i = 0; i < n; i++) {
        token[i] = merges[i].token;
        left[i] = merges[i].left;
        right[i] = merges[i].right;
    }
    *n_merges = n;
fail:
    free(m);
    free(merges);
    free(v.slots);
    return status;
}
