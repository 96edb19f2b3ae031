/* fuzz_kv.c - takes any bytes as KV options and as the keys and values of pages: options are refused with a one-line
 * text or mean what they say, and encoding never leaves its buffers, whatever the numbers (infinities, NaN).
 *
 * With -DLQ_LIBFUZZER and -fsanitize=fuzzer a libFuzzer target; otherwise a program that runs a fixed number of
 * deterministic inputs, or with --seconds N [SEED] as many as fit. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"
#include "core/half.h"
#include "formats/kv_page.h"
#include "kv/recipe.h"
#include "logquant_kv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned long n_accepted, n_layers;

static void fail(const char *what) {
    fprintf(stderr, "fuzz_kv: %s; last error: %s\n", what, lq_error_message());
    abort();
}

/* ---- reading the input */

typedef struct input {
    const uint8_t *data;
    size_t n;
} input;

static uint32_t take_byte(input *in) {
    if (in->n == 0) return 0;
    in->n--;
    return *in->data++;
}

/* Takes characters up to a 0 byte, or one of the words that users write. */
static const char *take_text(input *in, char text[64], const char *const *words, uint32_t n_words) {
    uint32_t choice = take_byte(in) % (n_words + 3);
    if (choice == 0) return NULL;
    if (choice <= n_words) return words[choice - 1];
    uint32_t n = 0, c;
    while (n < 63 && (c = take_byte(in)) != 0) text[n++] = (char)c;
    text[n] = '\0';
    return text;
}

static lq_kv_options take_options(input *in, char texts[4][64]) {
    static const char *const names[] = {"logquant",    "logquant-small",
                                        "logquant-hq", "logquant-paper",
                                        "kivi",        "streaming",
                                        "h2o",         "q4_0",
                                        "q4_0-plain",  "f16",
                                        "q8_0"};
    static const char *const keys[] = {"1", "2", "3", "4", "5", "4:3/8,2:3/8,1:1/4", "5:1/64,1:63/64", "3:1/2,2:1/2"};
    static const char *const overlays[] = {"f16", "q8_0"}, *const selects[] = {"even", "newest", "heaviest"};
    lq_kv_options o;
    lq_kv_options_init(&o);
    o.name = take_text(in, texts[0], names, sizeof names / sizeof names[0]);
    o.keys = take_text(in, texts[1], keys, 8);
    o.overlay = take_text(in, texts[2], overlays, 2);
    o.select = take_text(in, texts[3], selects, 3);
    o.value_bits = take_byte(in) % 6;
    o.window = take_byte(in) % 5 * 32;
    o.sinks = (int32_t)(take_byte(in) % 70) - 2;
    return o;
}

static void check_error(lq_status status) {
    const char *text = lq_error_message();
    if (status != LQ_E_ARG && status != LQ_E_UNSUPPORTED && status != LQ_E_MEMORY) fail("a poor status");
    if (text[0] == '\0' || strchr(text, '\n') != NULL) fail("a poor refusal");
}

/* ---- pages */

/* Encodes a page of any half floats into buffers of exactly its size. */
static void code_page(const lq_kv_recipe *recipe, uint32_t head_dim, input *in) {
    lq_page_format f;
    size_t n = (size_t)LQ_PAGE_TOKENS * head_dim;
    float *x = malloc(n * sizeof *x);
    uint16_t *order = malloc(head_dim * sizeof *order);
    lq_page_format_init(&f, head_dim, &recipe->keys, recipe->value_bits, recipe->least_squares, recipe->f16_scales);
    lq_page_record record = {malloc(f.k_bytes), malloc(f.v_bytes), malloc(f.scale_bytes)};
    uint8_t *codes = malloc(n), *seen = calloc(head_dim, 1);
    float *base = malloc((head_dim + 64) * sizeof *base), *step = malloc((head_dim + 64) * sizeof *step);
    if (!x || !order || !record.k || !record.v || !record.scales || !codes || !seen || !base || !step) exit(2);

    uint32_t pattern = take_byte(in), low = take_byte(in), high = take_byte(in);
    for (size_t i = 0; i < n; i++) {
        if (i % 7 == pattern % 7) low = low * 5 + 1 + take_byte(in), high = high * 3 + 7 + take_byte(in);
        x[i] = lq_half_to_float((uint16_t)((low + i * (pattern >> 3)) % 256 | (high % 256) << 8));
    }
    lq_page_learn_order(&f, x, order);
    for (uint32_t i = 0; i < head_dim; i++) {
        if (order[i] >= head_dim || seen[order[i]]++) fail("the order is no permutation");
    }
    uint32_t places = 0;
    for (uint32_t i = 0; i < f.n_tiers; i++) places += f.tiers[i].n_channels;
    if (places != head_dim) fail("the tiers do not cover the head");
    lq_page_encode_keys(&f, x, order, record);
    lq_page_encode_values(&f, x, record);
    lq_page_unpack_keys(&f, record.k, codes);
    lq_page_key_scales(&f, record.scales, base, step);
    for (uint32_t tier = 0; tier < f.n_tiers; tier++)
        for (uint32_t i = 0; i < f.tiers[tier].n_channels * LQ_PAGE_TOKENS; i++)
            if (codes[f.tiers[tier].first_channel * LQ_PAGE_TOKENS + i] >> f.tiers[tier].bits) fail("a key code");
    lq_page_unpack_values(&f, record.v, codes);
    for (size_t i = 0; i < n; i++)
        if (codes[i] >> f.v_bits) fail("a value code");
    for (uint32_t g = 0; g < f.n_groups; g++) lq_page_value_scales(&f, record.scales, g, base, step);
    free(x), free(order), free(record.k), free(record.v), free(record.scales), free(codes), free(seen), free(base);
    free(step);
}

/* ---- a whole layer */

static void run_layer(const lq_kv_options *kv, uint32_t head_dim, input *in) {
    lq_kv_layer_options o;
    lq_kv_layer *layer = NULL;
    lq_kv_usage usage;
    lq_kv_layer_options_init(&o);
    o.n_kv_heads = 1 + take_byte(in) % 3;
    o.n_heads = o.n_kv_heads * (1 + take_byte(in) % 3);
    o.head_dim = head_dim;
    o.n_ctx = 1 + take_byte(in) * 4;
    o.n_chunk = 1 + take_byte(in);
    o.n_threads = 1;
    o.kv = *kv;
    lq_status status = lq_kv_layer_create(&o, &layer);
    if (status != LQ_OK) {
        check_error(status);
        return;
    }
    n_layers++;
    uint32_t n_most = o.n_chunk, held = 0;
    float *q = malloc((size_t)n_most * o.n_heads * head_dim * sizeof *q),
          *out = malloc((size_t)n_most * o.n_heads * head_dim * sizeof *out);
    if (!q || !out) exit(2);
    for (size_t i = 0; i < (size_t)n_most * o.n_heads * head_dim; i++) q[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
    for (int step = 0; step < 12; step++) {
        uint32_t n = take_byte(in), kept = 0;
        if (n % 8 == 7) {
            if (lq_kv_layer_rewind(layer, held - held * (n % 5) / 4, &kept) != LQ_OK || kept > held) fail("rewind");
            held = kept;
            continue;
        }
        status = lq_kv_layer_attend(layer, q, q, q, n, out); /* there are at least as many query heads as KV heads */
        bool fits = n >= 1 && n <= (o.n_chunk < o.n_ctx ? o.n_chunk : o.n_ctx) && n <= o.n_ctx - held;
        if ((status == LQ_OK) != fits) fail("a chunk was taken or refused wrongly");
        if (fits) held += n;
        for (size_t i = 0; fits && i < (size_t)n * o.n_heads * head_dim; i++)
            if (!isfinite(out[i]) || fabsf(out[i]) > 4.0f) fail("attention gave no mean of its values");
        if (lq_kv_get_usage(lq_kv_layer_cache(layer), &usage) != LQ_OK || usage.n_tokens != held ||
            usage.n_sinks + usage.n_full + usage.n_packed + usage.n_dropped != held)
            fail("tokens do not add up");
    }
    free(q), free(out);
    lq_kv_layer_close(&layer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    char texts[4][64];
    lq_kv_recipe recipe, again;
    lq_kv_options o = take_options(&in, texts), described;
    uint32_t head_dim = 8 * (1 + take_byte(&in) % 20);
    lq_status status = lq_kv_recipe_resolve(&o, &recipe);
    if (status != LQ_OK) {
        check_error(status);
        return 0;
    }
    n_accepted++;
    lq_kv_recipe_describe(&recipe, &described);
    if (lq_kv_recipe_resolve(&described, &again) != LQ_OK || memcmp(&again, &recipe, sizeof again) != 0)
        fail("a description means something else");
    if (recipe.selects && !recipe.evicts) code_page(&recipe, head_dim, &in);
    run_layer(&o, head_dim, &in);
    return 0;
}

#ifndef LQ_LIBFUZZER

int main(int argc, char **argv) {
    enum { N_ROUNDS = 6000, MOST = 600 };
    bool timed = argc > 2 && strcmp(argv[1], "--seconds") == 0;
    time_t end = timed ? time(NULL) + atoi(argv[2]) : 0;
    unsigned long long state = timed && argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    unsigned long n_rounds = 0;
    static uint8_t bytes[MOST];
    for (; timed ? time(NULL) < end : n_rounds < N_ROUNDS; n_rounds++) {
        size_t n = check_random(&state) % MOST;
        for (size_t at = 0; at < n; at++) bytes[at] = (uint8_t)check_random(&state);
        if (check_random(&state) % 4 != 0) /* mostly valid words, so that not all inputs are refused */
            for (size_t at = 0; at < 4 && at < n; at++) bytes[at] = 0;
        if (n > 6 && check_random(&state) % 2 == 0) bytes[4] = bytes[5] = 0, bytes[6] = 3;
        LLVMFuzzerTestOneInput(bytes, n);
        check_passed++;
    }
    CHECK_MSG(n_accepted > n_rounds / 20 && n_accepted < n_rounds / 20 * 19, "%lu accepted", n_accepted);
    CHECK_MSG(n_layers > n_rounds / 50, "%lu layers ran", n_layers);
    return check_report("fuzz_kv");
}

#endif
