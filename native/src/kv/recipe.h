/* recipe.h - a KV cache type with its settings, from what a user asks for. */
#ifndef LQ_KV_RECIPE_H
#define LQ_KV_RECIPE_H

#include "formats/kv_cell.h"
#include "formats/kv_page.h"
#include "kv/policy.h"
#include "logquant.h"

#define LQ_KV_KEYS_CHARS 64

typedef struct lq_kv_recipe {
    const char *name;
    bool selects; /* a selection of tokens stays in full precision; else every token is a cell of the same format */
    bool evicts;  /* the others are forgotten, not packed: the fields about codes have no meaning */
    lq_cell_format cells;
    bool rotates_keys; /* and queries */
    bool rotates_values;
    lq_page_split keys;
    uint32_t value_bits;
    bool least_squares;
    bool f16_scales;
    const lq_kv_policy *policy;
    uint32_t window;
    uint32_t sinks;
    char keys_text[LQ_KV_KEYS_CHARS]; /* as a user writes them */
} lq_kv_recipe;

/* Resolves what a user asks for. Errors: LQ_E_UNSUPPORTED (name), LQ_E_ARG (a setting out of range, or one that has no
 * effect on the type). */
lq_status lq_kv_recipe_resolve(const lq_kv_options *options, lq_kv_recipe *out);
/* Writes every setting of a recipe to out; its strings are borrowed from the recipe. */
void lq_kv_recipe_describe(const lq_kv_recipe *recipe, lq_kv_options *out);
/* LQ_E_UNSUPPORTED if heads of this size cannot be stored. */
lq_status lq_kv_recipe_check_head(const lq_kv_recipe *recipe, uint32_t head_dim);

#endif
