/* plan.c - sessions before they exist: their options resolved and checked, and the memory that they would take. */
#include <stdio.h>
#include <string.h>

#include "core/checked.h"
#include "core/system.h"
#include "session/inside.h"

#define DEFAULT_CHUNK 512
#define MAX_CHUNK 65536
#define MAX_TOKENS ((uint32_t)1 << 28)
#define MAX_CHECKPOINTS 65536

static lq_status resolve_context(const lq_model *model, const lq_session_options *o, uint32_t *n_ctx) {
    uint32_t trained = model->config.n_ctx_train;
    *n_ctx = o->n_ctx != 0 ? o->n_ctx : trained;
    if (*n_ctx > trained && !o->allow_long)
        return lq_fail(LQ_E_ARG,
                       "a context of %u tokens is longer than the %u the model was trained for; "
                       "ask for at most %u, or allow a long context explicitly",
                       (unsigned)*n_ctx, (unsigned)trained, (unsigned)trained);
    if (*n_ctx > MAX_TOKENS) return lq_fail(LQ_E_ARG, "a context of %u tokens is too long", (unsigned)*n_ctx);
    return LQ_OK;
}

static lq_status check_watching(const lq_session_layout *plan) {
    if (strcmp(plan->kv.recipe.name, "f16") != 0)
        return lq_fail(
            LQ_E_ARG,
            "attention can be watched with f16 KV only: '%s' packs, rounds or drops tokens, and would change "
            "what is seen",
            plan->kv.recipe.name);
    if (plan->drops)
        return lq_fail(LQ_E_ARG, "attention cannot be watched where a full context drops its oldest tokens: "
                                 "what is left are no longer neighbours");
    return LQ_OK;
}

/* Bytes of logits that stay on the output head's device; 0 if it cannot pick the best of them. */
uint64_t lq_session_device_logits_bytes(const lq_model *model) {
    const lq_backend *backend = model->devices[model->head_device].backend;
    return backend->ops->best != NULL ? (uint64_t)model->config.n_vocab * sizeof(float) : 0;
}

/* Bytes that a session takes in host memory, whatever the devices. */
static uint64_t own_bytes(const lq_model *model, const lq_session_layout *plan) {
    uint64_t n_logit_rows = 1 + (uint64_t)plan->kv.max_tentative;
    return (uint64_t)plan->kv.n_ctx * sizeof(int32_t) + 2 * (plan->kv.n_ctx / 8) +
           plan->max_checkpoints * sizeof(lq_checkpoint *) + n_logit_rows * model->config.n_vocab * sizeof(float) +
           sizeof(lq_session);
}

static void plan_need(lq_session_layout *plan, const lq_kv_bytes *kv) {
    uint32_t n_tentative = plan->kv.max_tentative != 0 ? plan->kv.max_tentative + LQ_LEAST_ALIKE - 1 : 0;
    lq_work_need *need = &plan->need;
    need->n_rows = plan->kv.n_chunk > n_tentative ? plan->kv.n_chunk : n_tentative;
    need->n_parts = 1;
    need->n_accumulated = lq_kv_cache_n_accumulated(&plan->kv);
    for (uint32_t i = 0; i < plan->kv.n_devices; i++) need->kv_bytes[i] = kv[i].work;
}

/* Plans memory by device; host memory counts as the first device's. */
static lq_status plan_memory(const lq_model *model, lq_session_layout *plan) {
    uint64_t work[LQ_MAX_DEVICES];
    lq_kv_bytes kv[LQ_MAX_DEVICES];
    lq_memory *sum = &plan->memory;
    LQ_TRY(lq_kv_cache_plan(&plan->kv, kv));
    plan_need(plan, kv);
    LQ_TRY(lq_workspace_plan(model, &plan->need, work));
    for (uint32_t i = 0; i < model->n_devices; i++) {
        uint64_t scratch = kv[i].other + (i == 0 ? own_bytes(model, plan) : 0), *total = &plan->device_bytes[i];
        if (i == model->head_device) scratch += lq_session_device_logits_bytes(model);
        if (!lq_add_u64(kv[i].global, kv[i].sliding, total) || !lq_add_u64(*total, kv[i].recurrent, total) ||
            !lq_add_u64(*total, scratch, total) || !lq_add_u64(*total, work[i], total) ||
            !lq_add_u64(sum->total_bytes, *total, &sum->total_bytes))
            return lq_fail(LQ_E_MEMORY, "a context of %u tokens is beyond any memory", (unsigned)plan->kv.n_ctx);
        sum->kv_global_bytes += kv[i].global;
        sum->kv_sliding_bytes += kv[i].sliding;
        sum->recurrent_bytes += kv[i].recurrent;
        sum->scratch_bytes += scratch;
        sum->workspace_bytes += work[i];
    }
    return LQ_OK;
}

static lq_status check_tentative(const lq_session_options *o) {
    if (o->max_tentative > LQ_MAX_TENTATIVE)
        return lq_fail(LQ_E_ARG, "%u tentative tokens are too many; at most %d", (unsigned)o->max_tentative,
                       LQ_MAX_TENTATIVE);
    if (o->max_tentative != 0 && o->watch_attention != 0)
        return lq_fail(LQ_E_ARG,
                       "attention cannot be watched where tokens may be tentative: it is that of a whole chunk");
    return LQ_OK;
}

lq_status lq_session_resolve(const lq_model *model, const lq_session_options *o, lq_session_layout *plan) {
    const lq_config *c = &model->config;
    memset(plan, 0, sizeof *plan);
    LQ_TRY(lq_kv_recipe_resolve(&o->kv, &plan->kv.recipe));
    LQ_TRY(resolve_context(model, o, &plan->kv.n_ctx));
    if (o->max_checkpoints > MAX_CHECKPOINTS)
        return lq_fail(LQ_E_ARG, "%u checkpoints are too many; at most %u", (unsigned)o->max_checkpoints,
                       MAX_CHECKPOINTS);
    if (o->n_chunk > MAX_CHUNK)
        return lq_fail(LQ_E_ARG, "a chunk of %u tokens is too large; at most %u", (unsigned)o->n_chunk, MAX_CHUNK);
    if (o->on_full > LQ_ON_FULL_DROP)
        return lq_fail(LQ_E_ARG, "what to do when the context is full: there is no choice %u", (unsigned)o->on_full);
    plan->drops = o->on_full == LQ_ON_FULL_DROP;
    plan->kv.watches = o->watch_attention != 0;
    if (plan->kv.watches) LQ_TRY(check_watching(plan));
    plan->kv.n_limit = plan->kv.n_ctx;
    if (plan->drops) plan->kv.n_limit = o->allow_long ? MAX_TOKENS : c->n_ctx_train;
    LQ_TRY(lq_kv_cache_check_dropping(&plan->kv));
    plan->kv.n_chunk = o->n_chunk != 0 ? o->n_chunk : DEFAULT_CHUNK;
    uint32_t longest = plan->drops ? plan->kv.n_ctx / 2 : plan->kv.n_ctx; /* room is made for a chunk at a time */
    if (plan->kv.n_chunk > longest) plan->kv.n_chunk = longest;
    LQ_TRY(check_tentative(o));
    plan->kv.max_tentative = o->max_tentative;
    plan->allow_long = o->allow_long != 0;
    plan->max_checkpoints = o->max_checkpoints;
    plan->max_checkpoint_bytes = o->max_checkpoint_bytes;
    memcpy(plan->kv.devices, model->devices, sizeof plan->kv.devices);
    plan->kv.n_devices = model->n_devices;
    plan->kv.n_layers = c->n_layers;
    plan->kv.layers = lq_model_states(model, plan->kv.n_ctx);
    return plan_memory(model, plan);
}

/* Memory that a session needs on a device, and what is available there. */
typedef struct shortage {
    uint64_t needed;
    uint64_t available;
    const char *where; /* follows "needs 1 GiB" in the message */
} shortage;

static bool is_short(const lq_model *model, const lq_session_options *o, const lq_session_layout *plan, shortage *out) {
    *out = (shortage){plan->memory.total_bytes, o->memory_budget, ""};
    if (o->memory_budget != 0) return out->needed > out->available;
    for (uint32_t i = 0; i < model->n_devices; i++) {
        lq_backend *backend = model->devices[i].backend;
        *out = (shortage){plan->device_bytes[i], backend->ops->available(backend), ""};
        if (model->n_devices > 1) out->where = i == 0 ? " on the CPU" : " on the GPU";
        if (out->available != 0 && out->needed > out->available) return true;
    }
    return false;
}

/* Returns the longest context that fits, in steps of 256, or 0: what a user can ask for instead. Bisects, because a
 * cache with pages has a part that does not shrink with the context. */
static uint32_t fitting_context(const lq_model *model, const lq_session_options *o, uint32_t n_ctx) {
    uint32_t fits = 0, too_many = (n_ctx + 255) / 256;
    while (fits + 1 < too_many) {
        lq_session_layout plan;
        lq_session_options smaller = *o;
        uint32_t middle = fits + (too_many - fits) / 2;
        smaller.n_ctx = middle * 256;
        shortage lack;
        if (lq_session_resolve(model, &smaller, &plan) == LQ_OK && !is_short(model, o, &plan, &lack))
            fits = middle;
        else
            too_many = middle;
    }
    return fits * 256;
}

lq_status lq_session_check_budget(const lq_model *model, const lq_session_options *o, const lq_session_layout *plan) {
    char needed[32], free_text[32];
    shortage lack;
    if (!is_short(model, o, plan, &lack)) return LQ_OK;
    lq_format_bytes(needed, lack.needed);
    lq_format_bytes(free_text, lack.available);
    uint32_t fits = fitting_context(model, o, plan->kv.n_ctx);
    if (fits == 0)
        return lq_fail(LQ_E_MEMORY, "a context of %u tokens with %s KV needs %s%s, %s free; no context fits",
                       (unsigned)plan->kv.n_ctx, plan->kv.recipe.name, needed, lack.where, free_text);
    return lq_fail(LQ_E_MEMORY, "a context of %u tokens with %s KV needs %s%s, %s free; try a context of %u",
                   (unsigned)plan->kv.n_ctx, plan->kv.recipe.name, needed, lack.where, free_text, (unsigned)fits);
}

lq_status lq_session_check_options(const lq_model *model, const lq_session_options *options) {
    if (model == NULL || options == NULL) return lq_fail(LQ_E_ARG, "model and options must be given");
    if (options->struct_size != sizeof *options)
        return lq_fail(LQ_E_ARG, "session options were not made by lq_session_options_init of this library");
    return LQ_OK;
}

void lq_session_options_init(lq_session_options *options) {
    memset(options, 0, sizeof *options);
    options->struct_size = (uint32_t)sizeof *options;
    options->max_checkpoints = 8;
    options->max_checkpoint_bytes = (uint64_t)256 << 20;
    lq_kv_options_init(&options->kv);
}

lq_status lq_session_plan(const lq_model *model, const lq_session_options *options, lq_memory *out) {
    lq_session_layout plan;
    if (out == NULL) return lq_fail(LQ_E_ARG, "out is NULL");
    LQ_TRY(lq_session_check_options(model, options));
    LQ_TRY(lq_session_resolve(model, options, &plan));
    *out = plan.memory;
    return LQ_OK;
}
