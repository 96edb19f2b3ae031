/* recipe.c - names and settings of KV cache types. */
#include "kv/recipe.h"

#include <stdio.h>
#include <string.h>

#define MAX_DENOMINATOR 64
#define MAX_WINDOW (1u << 20)
#define MAX_SINKS 64

typedef struct preset {
    const char *name;
    const char *keys; /* NULL: evicts */
    uint32_t value_bits;
    bool least_squares, f16_scales, rotates_values;
    const char *policy;
    uint32_t window;
    const char *overlay;
    uint32_t sinks;
} preset;

static const preset presets[] = {
#define LQ_RECIPE(...) {__VA_ARGS__},
#include "kv/recipes.def"
#undef LQ_RECIPE
};

#define N_PRESETS (sizeof presets / sizeof presets[0])

/* ",logquant,..." made by the preprocessor; the first comma is skipped. */
#define LQ_RECIPE(name, ...) "," name
static const char names[] =
#include "kv/recipes.def"
    ",q4_0,q4_0-plain,q8_0,f16";
#undef LQ_RECIPE

/* Types that store every token as a cell. */
typedef struct cell_type {
    const char *name;
    lq_cell_format cells;
    bool rotates; /* keys, queries and values */
} cell_type;

static const cell_type cell_types[] = {
    {"q4_0", LQ_CELL_Q4_0, true},
    {"q4_0-plain", LQ_CELL_Q4_0, false},
    {"q8_0", LQ_CELL_Q8_0, false},
    {"f16", LQ_CELL_F16, false},
};

#define N_CELL_TYPES (sizeof cell_types / sizeof cell_types[0])

const char *lq_kv_names(void) { return names + 1; }

void lq_kv_options_init(lq_kv_options *options) {
    memset(options, 0, sizeof *options);
    options->sinks = -1;
}

/* ---- key widths: "2" or "4:3/8,2:3/8,1:1/4" */

static bool take_number(const char **at, uint32_t *out) {
    uint32_t n = 0;
    const char *p = *at;
    for (; *p >= '0' && *p <= '9' && p - *at < 4; p++) n = n * 10 + (uint32_t)(*p - '0');
    if (p == *at) return false;
    *at = p;
    *out = n;
    return true;
}

static bool take(const char **at, char c) {
    if (**at != c) return false;
    ++*at;
    return true;
}

static lq_status bad_keys(const char *text, const char *why) {
    return lq_fail(LQ_E_ARG, "key widths '%.60s': %s; write one width from 1 to 5, or tiers such as 4:3/8,2:3/8,1:1/4",
                   text, why);
}

static lq_status parse_keys(const char *text, lq_page_split *out) {
    const char *at = text;
    uint32_t bits = 0, num = 1, den = 1;
    uint64_t sum = 0, unit = 1;
    memset(out, 0, sizeof *out);
    do {
        if (out->n_tiers == LQ_PAGE_MAX_TIERS) return bad_keys(text, "there are more than 5 tiers");
        if (!take_number(&at, &bits)) return bad_keys(text, "a width is missing");
        if (bits < 1 || bits > 5) return bad_keys(text, "a width must be 1 to 5 bits");
        if (out->n_tiers > 0 && bits >= out->tiers[out->n_tiers - 1].bits) return bad_keys(text, "widths must fall");
        if (out->n_tiers == 0 && *at == '\0') {
            num = den = 1;
        } else if (!take(&at, ':') || !take_number(&at, &num) || !take(&at, '/') || !take_number(&at, &den)) {
            return bad_keys(text, "a tier is width:part, the part a fraction");
        }
        if (num == 0 || den == 0 || num > den || den > MAX_DENOMINATOR)
            return bad_keys(text, "a part must be above 0, at most 1, its denominator at most 64");
        out->tiers[out->n_tiers].bits = bits;
        out->tiers[out->n_tiers].numerator = num;
        out->tiers[out->n_tiers++].denominator = den;
        sum = sum * den + num * unit; /* at most 5 * 64^5 */
        unit *= den;
    } while (take(&at, ','));
    if (*at != '\0') return bad_keys(text, "there is something after the last tier");
    if (sum != unit) return bad_keys(text, "the parts do not add up to 1");
    return LQ_OK;
}

/* At most 5 tiers of 8 characters each: text is long enough. */
static void write_keys(const lq_page_split *keys, char text[LQ_KV_KEYS_CHARS]) {
    size_t n = 0;
    for (uint32_t i = 0; i < keys->n_tiers; i++) {
        const char *comma = i > 0 ? "," : "";
        unsigned bits = keys->tiers[i].bits;
        int written = keys->n_tiers == 1
                          ? snprintf(text, LQ_KV_KEYS_CHARS, "%u", bits)
                          : snprintf(text + n, LQ_KV_KEYS_CHARS - n, "%s%u:%u/%u", comma, bits,
                                     (unsigned)keys->tiers[i].numerator, (unsigned)keys->tiers[i].denominator);
        n += (size_t)written;
    }
}

/* ---- settings */

static lq_status parse_overlay(const char *text, lq_cell_format *out) {
    if (strcmp(text, "f16") == 0)
        *out = LQ_CELL_F16;
    else if (strcmp(text, "q8_0") == 0)
        *out = LQ_CELL_Q8_0;
    else
        return lq_fail(LQ_E_ARG, "KV overlay '%.40s' does not exist; there are 'f16' and 'q8_0'", text);
    return LQ_OK;
}

static lq_status resolve_codes(const preset *p, const lq_kv_options *o, lq_kv_recipe *out) {
    const char *keys = o->keys != NULL ? o->keys : p->keys;
    if (p->keys == NULL) {
        out->evicts = true;
        if (o->keys == NULL && o->value_bits == 0) return LQ_OK;
        return lq_fail(LQ_E_ARG,
                       "KV cache type '%s' drops tokens and packs none: %s have no effect on it; choose a logquant "
                       "type, or leave them out",
                       p->name, o->keys != NULL ? "key widths" : "value bits");
    }
    out->least_squares = p->least_squares;
    out->f16_scales = p->f16_scales;
    out->rotates_values = p->rotates_values;
    LQ_TRY(parse_keys(keys, &out->keys));
    write_keys(&out->keys, out->keys_text);
    out->value_bits = o->value_bits != 0 ? o->value_bits : p->value_bits;
    if (out->value_bits < 2 || out->value_bits > 4)
        return lq_fail(LQ_E_ARG, "values of %u bits are not supported; there are 2, 3 and 4",
                       (unsigned)out->value_bits);
    return LQ_OK;
}

static lq_status resolve_selection(const preset *p, const lq_kv_options *o, lq_kv_recipe *out) {
    out->selects = true;
    LQ_TRY(resolve_codes(p, o, out));
    out->window = o->window != 0 ? o->window : p->window;
    if (out->window % LQ_PAGE_TOKENS != 0 || out->window > MAX_WINDOW)
        return lq_fail(LQ_E_ARG, "a KV window of %u tokens is not supported; it must be a multiple of 64, at most %u",
                       (unsigned)out->window, MAX_WINDOW);
    out->sinks = o->sinks >= 0 ? (uint32_t)o->sinks : p->sinks;
    if (o->sinks < -1 || out->sinks > MAX_SINKS)
        return lq_fail(LQ_E_ARG, "%d sinks are not supported; there may be 0 to %d", (int)o->sinks, MAX_SINKS);
    LQ_TRY(parse_overlay(o->overlay != NULL ? o->overlay : p->overlay, &out->cells));
    return lq_kv_policy_find(o->select != NULL ? o->select : p->policy, &out->policy);
}

/* Names the first setting that was given, or returns NULL: types of cells have no settings. */
static const char *given(const lq_kv_options *o) {
    if (o->keys != NULL) return "key widths";
    if (o->value_bits != 0) return "value bits";
    if (o->window != 0) return "a window";
    if (o->sinks != -1) return "sinks";
    if (o->overlay != NULL) return "an overlay";
    return o->select != NULL ? "a selection" : NULL;
}

static lq_status resolve_cells(const cell_type *type, const lq_kv_options *o, lq_kv_recipe *out) {
    if (given(o) != NULL)
        return lq_fail(LQ_E_ARG,
                       "KV cache type '%s' stores every token alike: %s has no effect on it; choose a "
                       "logquant type, or leave it out",
                       type->name, given(o));
    out->name = type->name;
    out->cells = type->cells;
    out->rotates_keys = out->rotates_values = type->rotates;
    return LQ_OK;
}

lq_status lq_kv_recipe_resolve(const lq_kv_options *o, lq_kv_recipe *out) {
    const char *name = o->name != NULL ? o->name : presets[0].name;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < N_PRESETS; i++) {
        if (strcmp(presets[i].name, name) != 0) continue;
        out->name = presets[i].name;
        return resolve_selection(&presets[i], o, out);
    }
    for (size_t i = 0; i < N_CELL_TYPES; i++)
        if (strcmp(cell_types[i].name, name) == 0) return resolve_cells(&cell_types[i], o, out);
    return lq_fail(LQ_E_UNSUPPORTED, "KV cache type '%.40s' does not exist; this build has: %s", name, lq_kv_names());
}

void lq_kv_recipe_describe(const lq_kv_recipe *recipe, lq_kv_options *out) {
    lq_kv_options_init(out);
    out->name = recipe->name;
    if (!recipe->selects) return;
    if (!recipe->evicts) {
        out->keys = recipe->keys_text;
        out->value_bits = recipe->value_bits;
    }
    out->window = recipe->window;
    out->sinks = (int32_t)recipe->sinks;
    out->overlay = recipe->cells == LQ_CELL_F16 ? "f16" : "q8_0";
    out->select = recipe->policy->name;
}

lq_status lq_kv_recipe_check_head(const lq_kv_recipe *recipe, uint32_t head_dim) {
    if (recipe->selects && !recipe->evicts && (head_dim % 8 != 0 || head_dim > LQ_PAGE_MAX_HEAD_DIM))
        return lq_fail(LQ_E_UNSUPPORTED,
                       "KV cache type '%s' needs a head size that is a multiple of 8, at most %d; this one is %u: use "
                       "f16",
                       recipe->name, LQ_PAGE_MAX_HEAD_DIM, (unsigned)head_dim);
    if (recipe->cells != LQ_CELL_F16 && head_dim > LQ_PAGE_MAX_HEAD_DIM)
        return lq_fail(LQ_E_UNSUPPORTED, "KV cache type '%s' needs a head size of at most %d; this one is %u: use f16",
                       recipe->name, LQ_PAGE_MAX_HEAD_DIM, (unsigned)head_dim);
    return LQ_OK;
}
