/* check_recurrent.c - checks the operations of recurrent layers: they give the bits of a plain loop, however a text is
 * divided into chunks or batched with others. */
#include <stdlib.h>
#include <string.h>

#include "ops_buffers.h"

typedef struct conv_case {
    uint32_t n_tokens, n_channels, n_taps;
} conv_case;

/* A layer and a text, in device memory, and the expected result. */
typedef struct conv_text {
    conv_case is;
    buffer bcx, weights, before;
    float *columns; /* [n_taps - 1 + n_tokens][n_channels]: b x, from the tokens before the text on */
    float *y;       /* [n_tokens][n_channels] */
} conv_text;

static void compute_wanted(conv_text *text) {
    const conv_case *c = &text->is;
    size_t n_before = c->n_taps - 1, n_channels = c->n_channels;
    float *bcx = fetch(&text->bcx, "input"), *weights = fetch(&text->weights, "input");
    float *before = fetch(&text->before, "input");
    text->columns = malloc((n_before + c->n_tokens) * n_channels * sizeof(float));
    text->y = malloc(c->n_tokens * n_channels * sizeof(float));
    memcpy(text->columns, before, n_before * n_channels * sizeof(float));
    for (size_t t = 0; t < c->n_tokens; t++) {
        for (size_t i = 0; i < n_channels; i++) {
            const float *token = bcx + t * 3 * n_channels;
            float sum = 0.0f;
            text->columns[(n_before + t) * n_channels + i] = token[i] * token[2 * n_channels + i];
            for (size_t tap = 0; tap < c->n_taps; tap++)
                sum += weights[i * c->n_taps + tap] * text->columns[(t + tap) * n_channels + i];
            text->y[t * n_channels + i] = token[n_channels + i] * sum;
        }
    }
    free(bcx), free(weights), free(before);
}

static conv_text make_text(const conv_case *is) {
    conv_text text = {.is = *is};
    text.bcx = make((size_t)is->n_tokens * 3 * is->n_channels, 2.0f);
    text.weights = make((size_t)is->n_channels * is->n_taps, 1.0f);
    text.before = make((size_t)(is->n_taps - 1) * is->n_channels, 1.5f);
    compute_wanted(&text);
    return text;
}

static void free_text(conv_text *text) {
    release(&text->bcx), release(&text->weights), release(&text->before);
    free(text->columns), free(text->y);
}

/* Moves the state on by the first n tokens after `before`, as backend.h says, by copying rows. */
static void move_on(const conv_case *c, float *before, const float *bx, uint32_t n) {
    uint32_t n_before = c->n_taps - 1;
    for (uint32_t row = 0; row < n_before; row++) {
        uint32_t from = row + n;
        const float *src =
            from < n_before ? before + (size_t)from * c->n_channels : bx + (size_t)(from - n_before) * c->n_channels;
        ops->copy(backend, before + (size_t)row * c->n_channels, src, c->n_channels * sizeof(float));
    }
}

/* Checks the text in chunks of up to `chunk` tokens. If `tentative`, only a part of each is committed, and the rest is
 * read again. */
static void check_chunks(const conv_text *text, uint32_t chunk, bool tentative) {
    const conv_case *c = &text->is;
    size_t n_channels = c->n_channels, row_bytes = n_channels * sizeof(float);
    buffer scratch, state = make(text->before.n, 0.0f), bx = make(chunk * n_channels, 1.0f);
    buffer y = make(c->n_tokens * n_channels, 1.0f);
    begin(chunk, c->n_channels, 1, 1, 4, &scratch);
    ops->copy(backend, state.data, text->before.data, text->before.n * sizeof(float));
    for (uint32_t at = 0; at < c->n_tokens;) {
        uint32_t left = c->n_tokens - at, n = left < chunk ? left : chunk;
        uint32_t n_taken = tentative && n > 1 ? 1 + (uint32_t)(check_random(&seed) % n) : n;
        lq_conv_sequence sequence = {text->bcx.data + (size_t)at * 3 * n_channels, state.data, bx.data,
                                     y.data + at * n_channels, n};
        lq_short_conv args = {text->weights.data, c->n_channels, c->n_taps, 1, &sequence};
        ops->short_conv(backend, &args);
        move_on(c, state.data, bx.data, n_taken);
        at += n_taken;
    }
    float *got = fetch(&y, "short_conv y"), *got_state = fetch(&state, "short_conv state");
    float *got_bx = fetch(&bx, "short_conv bx");
    CHECK_MSG(memcmp(got, text->y, c->n_tokens * row_bytes) == 0,
              "%u tokens of %u channels, %u taps, in chunks of %u: other bits than a plain loop", c->n_tokens,
              c->n_channels, c->n_taps, chunk);
    CHECK_MSG(memcmp(got_state, text->columns + c->n_tokens * n_channels, (c->n_taps - 1) * row_bytes) == 0,
              "%u tokens of %u channels, %u taps, in chunks of %u: other columns are left", c->n_tokens, c->n_channels,
              c->n_taps, chunk);
    end(&scratch);
    free(got), free(got_state), free(got_bx);
    release(&state), release(&bx), release(&y);
}

/* Checks several sequences in one operation, each a stretch of the text, of different lengths: one is empty. */
static void check_together(const conv_text *text, uint32_t n_sequences) {
    const conv_case *c = &text->is;
    size_t n_channels = c->n_channels, n_rows = 0, n_before = c->n_taps - 1;
    lq_conv_sequence *sequences = malloc(n_sequences * sizeof *sequences);
    uint32_t *first = malloc(n_sequences * sizeof *first);
    buffer scratch, columns = make((n_before + c->n_tokens) * n_channels, 0.0f);
    ops->upload(backend, columns.data, text->columns, columns.n * sizeof(float));
    for (uint32_t i = 0; i < n_sequences; i++) {
        first[i] = (uint32_t)(check_random(&seed) % c->n_tokens);
        uint32_t left = c->n_tokens - first[i];
        sequences[i] = (lq_conv_sequence){.bcx = text->bcx.data + (size_t)first[i] * 3 * n_channels,
                                          .before = columns.data + (size_t)first[i] * n_channels,
                                          .n_tokens = i == 1 ? 0 : 1 + (uint32_t)(check_random(&seed) % left)};
        n_rows += sequences[i].n_tokens;
    }
    buffer bx = make(n_rows * n_channels, 1.0f), y = make(n_rows * n_channels, 1.0f);
    begin(c->n_tokens, c->n_channels, 1, 1, 4, &scratch);
    for (uint32_t i = 0, row = 0; i < n_sequences; row += sequences[i++].n_tokens) {
        sequences[i].bx = bx.data + row * n_channels;
        sequences[i].y = y.data + row * n_channels;
    }
    lq_short_conv args = {text->weights.data, c->n_channels, c->n_taps, n_sequences, sequences};
    ops->short_conv(backend, &args);
    float *got = fetch(&y, "short_conv y"), *got_bx = fetch(&bx, "short_conv bx");
    for (uint32_t i = 0, row = 0; i < n_sequences; row += sequences[i++].n_tokens) {
        size_t n_bytes = sequences[i].n_tokens * n_channels * sizeof(float);
        CHECK_MSG(memcmp(got + row * n_channels, text->y + first[i] * n_channels, n_bytes) == 0 &&
                      memcmp(got_bx + row * n_channels, text->columns + (n_before + first[i]) * n_channels, n_bytes) ==
                          0,
                  "sequence %u of %u has other bits than alone", i, n_sequences);
    }
    end(&scratch);
    free(got), free(got_bx), free(sequences), free(first);
    release(&columns), release(&bx), release(&y);
}

int main(int argc, char **argv) {
    static const conv_case cases[] = {{100, 64, 3}, {70, 200, 4}, {33, 31, 2},
                                      {20, 1, 16},  {9, 300, 1},  {130, 1030, 3}};
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            const uint32_t chunks[] = {1, 2, cases[i].n_taps, 64, 100};
            conv_text text = make_text(&cases[i]);
            for (size_t j = 0; j < sizeof chunks / sizeof chunks[0]; j++) {
                check_chunks(&text, chunks[j], false);
                check_chunks(&text, chunks[j], true);
            }
            for (uint32_t split = 1; split < 5; split++) check_chunks(&text, cases[i].n_tokens - split, false);
            check_together(&text, 3);
            check_together(&text, 35);
            free_text(&text);
        }
        close_backend();
    }
    return check_report("check_recurrent");
}
