/* vocab.c - lq_vocab_merges: the merge list that a score-ordered vocabulary stands for.
 *
 * A text is tokenized by merging, again and again, the adjacent pair whose concatenation is the best-scored piece.
 * Nothing can have been merged across the ends of a token before it formed (its ends would lie inside a larger piece
 * then, for good), so running the rule on the token's own text alone gives exactly the merges that make it. */
#include <math.h>
#include <stdlib.h>

#include "core/hash.h"
#include "core/status.h"
#include "logquant_gguf.h"

enum {
    MAX_PIECE_BYTES =
        1024 /* bounds the quadratic work per token; the longest pieces of real vocabularies have about 100 */
};

/* A lookup is mostly the wait for one cache line: everything that most of them need lies in the slot. */
typedef struct slot {
    uint64_t key; /* key_of() */
    int32_t id;   /* -1: free */
    float score;  /* never NaN */
} slot;

enum { UNKNOWN = -2 };

typedef struct vocab {
    const char *chars;
    const uint32_t *lengths;
    const float *scores;
    uint64_t *starts;  /* [n_tokens] into chars */
    uint8_t *has_slot; /* [n_tokens] a piece, not too long, and no lower id has the same text */
    slot *slots;
    uint64_t mask;
} vocab;

/* Text being merged: symbol i covers bytes start[i]..start[i + 1]; pair i is symbols i and i + 1. */
typedef struct merging {
    uint32_t start[MAX_PIECE_BYTES + 1];
    int32_t symbol_id[MAX_PIECE_BYTES]; /* the piece it is; UNKNOWN as long as it is one character */
    int32_t pair_id[MAX_PIECE_BYTES];   /* the piece the pair makes, or -1 */
    float pair_score[MAX_PIECE_BYTES];
    uint32_t n_symbols;
} merging;

/* Up to 7 bytes are their own key, with their number on top; longer texts have a hash under the byte 0xff. */
static uint64_t key_of(const char *chars, uint32_t n_bytes) {
    uint64_t key = (uint64_t)n_bytes << 56;
    if (n_bytes > 7) return lq_hash(chars, n_bytes, 0) | (uint64_t)0xff << 56;
    for (uint32_t i = 0; i < n_bytes; i++) key |= (uint64_t)(uint8_t)chars[i] << (8 * i);
    return key;
}

/* The slot of these characters, or the free one where they belong. */
static slot *slot_of(const vocab *v, const char *chars, uint32_t n_bytes) {
    uint64_t key = key_of(chars, n_bytes);
    for (uint64_t at = lq_hash_mix(key) & v->mask;; at = (at + 1) & v->mask) {
        slot *s = &v->slots[at];
        if (s->id < 0) return s;
        if (s->key != key) continue;
        if (n_bytes <= 7) return s;
        if (v->lengths[s->id] == n_bytes && memcmp(v->chars + v->starts[s->id], chars, n_bytes) == 0) return s;
    }
}

static lq_status vocab_init(vocab *v, size_t n_tokens, const uint8_t *is_piece) {
    uint64_t n_slots = 16, start = 0;
    while (n_slots / 2 < n_tokens) n_slots *= 2;
    v->starts = malloc((n_tokens ? n_tokens : 1) * sizeof *v->starts);
    v->slots = malloc((size_t)n_slots * sizeof *v->slots);
    v->has_slot = calloc(n_tokens ? n_tokens : 1, 1);
    if (!v->starts || !v->slots || !v->has_slot)
        return lq_fail(LQ_E_MEMORY, "no memory for a vocabulary of %zu tokens", n_tokens);
    v->mask = n_slots - 1;
    memset(v->slots, 0xff, (size_t)n_slots * sizeof *v->slots);
    for (size_t i = 0; i < n_tokens; i++) {
        v->starts[i] = start;
        start += v->lengths[i];
        if (!is_piece[i] || v->lengths[i] == 0 || v->lengths[i] > MAX_PIECE_BYTES) continue;
        slot *s = slot_of(v, v->chars + v->starts[i], v->lengths[i]);
        if (s->id >= 0) continue; /* the lower id has the text */
        s->key = key_of(v->chars + v->starts[i], v->lengths[i]);
        s->id = (int32_t)i;
        v->has_slot[i] = 1;
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
    m->pair_score[i] = s->score; /* not looked at where the id is -1 */
}

static void split_chars(const vocab *v, const char *text, uint32_t n_bytes, merging *m) {
    uint32_t n = 0;
    for (uint32_t at = 0; at < n_bytes; at += char_bytes(text[at])) {
        m->start[n] = at;
        m->symbol_id[n++] = UNKNOWN;
    }
    m->start[n] = n_bytes; /* a last character that is cut short ends with the text */
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

static void find_merge(const vocab *v, size_t id, merging *m, int32_t *left, int32_t *right) {
    const char *text = v->chars + v->starts[id];
    split_chars(v, text, v->lengths[id], m);
    while (m->n_symbols > 2) {
        int64_t at = best_pair(m);
        if (at < 0) return;
        merge_pair(v, text, m, (uint32_t)at);
    }
    if (m->n_symbols < 2) return;
    int32_t first = symbol_id(v, text, m, 0), second = symbol_id(v, text, m, 1);
    if (first < 0 || second < 0) return; /* a character that is no piece has no id to be named by */
    *left = first;
    *right = second;
}

lq_status lq_vocab_merges(size_t n_tokens, const uint32_t *lengths, const char *chars, const float *scores,
                          const uint8_t *is_piece, int32_t *left, int32_t *right) {
    vocab v = {.chars = chars, .lengths = lengths, .scores = scores};
    merging *m = NULL;
    lq_status status;
    if (n_tokens > INT32_MAX / 2) return lq_fail(LQ_E_ARG, "lq_vocab_merges: %zu tokens are too many", n_tokens);
    if (n_tokens > 0 && (!lengths || !chars || !scores || !is_piece || !left || !right))
        return lq_fail(LQ_E_ARG, "lq_vocab_merges: an argument is NULL");
    if ((status = vocab_init(&v, n_tokens, is_piece)) != LQ_OK) goto fail;
    if (!(m = malloc(sizeof *m))) {
        status = lq_fail(LQ_E_MEMORY, "no memory for the merges of a vocabulary");
        goto fail;
    }
    for (size_t i = 0; i < n_tokens; i++) {
        left[i] = right[i] = -1;
        if (v.has_slot[i]) find_merge(&v, i, m, &left[i], &right[i]);
    }
fail:
    free(m);
    free(v.starts);
    free(v.has_slot);
    free(v.slots);
    return status;
}
