/* placement.c - chooses a model's devices: one for all of it, or the CPU for its first layers and a GPU for its last.
 */
#include <stdio.h>
#include <string.h>

#include "backends/devices.h"
#include "core/system.h"
#include "model/model.h"

/* A plan leaves memory on the GPU for a session of this size with the default KV cache. */
#define SESSION_TOKENS 4096
#define SESSION_CHUNK 512
/* It also leaves 1/16 of the free memory, at most 512 MiB, to other programs and to the driver itself. */
#define RESERVE_PART 16
#define RESERVE_MOST ((uint64_t)512 << 20)
/* "auto" takes the CPU alone if less than 1/4 of the weights that a token reads would be on the GPU: that would gain
 * less than a third, and each token's activations would cross between the two. */
#define WORTHWHILE_PART 4

/* Puts the path before the last error's text, unless the text begins with it. */
static lq_status name_file(lq_status status, const char *path) {
    char text[512];
    size_t n = strlen(lq_error_message());
    if (strncmp(lq_error_message(), path, strlen(path)) == 0) return status;
    memcpy(text, lq_error_message(), n + 1);
    return lq_fail(status, "%.200s: %s", path, text);
}

static lq_status load(lq_model *model, const char *path) {
    lq_status status = lq_model_load(model);
    return status == LQ_OK ? LQ_OK : name_file(status, path);
}

void lq_model_leave(lq_model *model) {
    lq_model_unload(model);
    for (uint32_t i = 0; i < model->n_devices; i++) model->devices[i].backend->ops->free(model->devices[i].backend);
    memset(model->devices, 0, sizeof model->devices);
    model->n_devices = model->embed_device = model->head_device = model->n_gpu_layers = model->n_threads = 0;
    model->device_name[0] = model->plan[0] = '\0';
}

/* ---- plans */

/* What a plan is made from: a model that was checked but has no devices yet, the backends, and the bytes of weights. */
typedef struct planner {
    lq_model *model;
    lq_backend *gpu, *cpu; /* cpu: NULL until a plan needs it */
    bool tied;             /* the embedding is the output head */
    uint64_t embed_bytes, head_bytes;
    uint64_t *layer_bytes; /* [n_layers] */
    uint64_t available;    /* free bytes on the GPU; UINT64_MAX if it does not tell */
} planner;

typedef struct split {
    uint32_t n_gpu_layers;
    bool embeds; /* the embedding is on the GPU; then everything is */
    bool head;   /* the output head is on the GPU */
} split;

static bool is_named(const lq_gguf_tensor_info *t, const char *name) {
    return t->name_bytes == strlen(name) && memcmp(t->name, name, t->name_bytes) == 0;
}

static void weigh(planner *p) {
    const lq_model *model = p->model;
    for (size_t i = 0; i < lq_gguf_n_tensors(model->gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(model->gguf, i);
        uint32_t layer = lq_tensor_layer(t);
        uint64_t n_bytes = t->n_dims == 1 ? t->dims[0] * sizeof(float) : t->data_bytes;
        if (layer < model->config.n_layers)
            p->layer_bytes[layer] += n_bytes;
        else if (is_named(t, "token_embd.weight"))
            p->embed_bytes += n_bytes;
        else
            p->head_bytes += n_bytes;
    }
    p->tied = model->head.weight.data == model->token_embd.data;
    if (p->tied) p->head_bytes += p->embed_bytes;
}

static void apply(const planner *p, const split *plan) {
    lq_model *model = p->model;
    uint32_t n_layers = model->config.n_layers, first = n_layers - plan->n_gpu_layers;
    model->n_gpu_layers = plan->n_gpu_layers;
    model->embed_device = 0;
    if (plan->embeds) {
        model->n_devices = 1;
        model->devices[0] = (lq_device_layers){p->gpu, 0, n_layers};
        model->head_device = 0;
        return;
    }
    model->n_devices = 2;
    model->devices[0] = (lq_device_layers){p->cpu, 0, first};
    model->devices[1] = (lq_device_layers){p->gpu, first, n_layers};
    model->head_device = plan->head ? 1 : 0;
}

static uint64_t weights_on_gpu(const planner *p, const split *plan) {
    uint32_t n_layers = p->model->config.n_layers;
    uint64_t sum = plan->head ? p->head_bytes : 0;
    if (plan->embeds && !p->tied) sum += p->embed_bytes;
    for (uint32_t i = n_layers - plan->n_gpu_layers; i < n_layers; i++) sum += p->layer_bytes[i];
    return sum;
}

/* Bytes on the GPU that every token reads: all weights but the embedding, of which a token reads one row. */
static uint64_t read_on_gpu(const planner *p, split plan) {
    plan.embeds = false;
    return weights_on_gpu(p, &plan);
}

/* Computes what a session with default settings would allocate on the GPU. The plan must be applied already. */
static lq_status session_on_gpu(const planner *p, uint64_t *n_bytes) {
    const lq_model *model = p->model;
    const lq_config *c = &model->config;
    uint32_t n_ctx = c->n_ctx_train < SESSION_TOKENS ? c->n_ctx_train : SESSION_TOKENS, gpu = model->n_devices - 1;
    lq_kv_spec spec = {.n_devices = model->n_devices,
                       .n_layers = c->n_layers,
                       .layers = model->states,
                       .n_ctx = n_ctx,
                       .n_limit = n_ctx,
                       .n_chunk = n_ctx < SESSION_CHUNK ? n_ctx : SESSION_CHUNK};
    lq_kv_options options;
    lq_kv_bytes kv[LQ_MAX_DEVICES];
    uint64_t state[LQ_MAX_DEVICES];
    memcpy(spec.devices, model->devices, sizeof spec.devices);
    lq_kv_options_init(&options);
    LQ_TRY(lq_kv_recipe_resolve(&options, &spec.recipe));
    lq_status status = lq_kv_cache_plan(&spec, kv);
    if (status == LQ_E_UNSUPPORTED) { /* layers that only cells can store */
        options.name = "f16";
        LQ_TRY(lq_kv_recipe_resolve(&options, &spec.recipe));
        status = lq_kv_cache_plan(&spec, kv);
    }
    LQ_TRY(status);
    LQ_TRY(lq_run_state_plan(model, spec.n_chunk, 1, lq_kv_cache_n_accumulated(&spec), state));
    *n_bytes = kv[gpu].global + kv[gpu].sliding + kv[gpu].recurrent + kv[gpu].other + kv[gpu].work + state[gpu];
    if (model->head_device == gpu) *n_bytes += c->n_vocab * sizeof(float);
    return LQ_OK;
}

static lq_status fits(const planner *p, const split *plan, bool *out) {
    uint64_t session, reserve = p->available / RESERVE_PART;
    if (reserve > RESERVE_MOST) reserve = RESERVE_MOST;
    apply(p, plan);
    LQ_TRY(session_on_gpu(p, &session));
    uint64_t room = p->available - reserve, weights = weights_on_gpu(p, plan);
    *out = weights <= room && session <= room - weights;
    return LQ_OK;
}

static lq_status need_cpu(planner *p, const lq_model_options *o) {
    if (p->cpu != NULL) return LQ_OK;
    LQ_TRY(lq_backend_cpu_create(o->n_threads, &p->cpu));
    return LQ_OK;
}

/* Plans n_layers on the GPU, and the output head and the embedding as far as they fit, the embedding only with all
 * layers. If not even the layers fit, *out has none. */
static lq_status plan_layers(planner *p, const lq_model_options *o, uint32_t n_layers, split *out) {
    bool all = n_layers == p->model->config.n_layers, found;
    split plans[3] = {{n_layers, true, true}, {n_layers, false, true}, {n_layers, false, false}};
    for (int i = all ? 0 : 1; i < 3; i++) {
        if (!plans[i].embeds) LQ_TRY(need_cpu(p, o));
        LQ_TRY(fits(p, &plans[i], &found));
        *out = plans[i];
        if (found) return LQ_OK;
    }
    *out = (split){0, false, false};
    return LQ_OK;
}

/* Finds the plan that has most of what a token reads on the GPU; it has no layers if nothing fits. */
static lq_status plan_most(planner *p, const lq_model_options *o, split *out) {
    *out = (split){0, false, false};
    for (uint32_t n = p->model->config.n_layers; n > 0; n--) {
        split found;
        LQ_TRY(plan_layers(p, o, n, &found));
        if (found.n_gpu_layers != 0 && (out->n_gpu_layers == 0 || read_on_gpu(p, found) > read_on_gpu(p, *out)))
            *out = found;
        if (out->head) break; /* fewer layers would only put less on the GPU */
    }
    return LQ_OK;
}

static lq_status no_room(const planner *p, uint32_t asked, uint64_t needed, uint32_t n_fit) {
    char needed_text[32], free_text[32];
    lq_format_bytes(needed_text, needed);
    lq_format_bytes(free_text, p->available);
    if (n_fit == 0)
        return lq_fail(LQ_E_MEMORY, "%u layers on %s need %s, it has %s free: not enough for one layer and a session",
                       (unsigned)asked, p->model->device, needed_text, free_text);
    return lq_fail(LQ_E_MEMORY, "%u layers on %s need %s, it has %s free; ask for %u layers there, or for fewer",
                   (unsigned)asked, p->model->device, needed_text, free_text, (unsigned)n_fit);
}

/* Plans the number of layers that was asked for: their weights must fit, but sessions check their memory themselves. */
static lq_status plan_asked(planner *p, const lq_model_options *o, uint32_t asked, split *out) {
    uint32_t n_layers = asked < p->model->config.n_layers ? asked : p->model->config.n_layers;
    LQ_TRY(plan_layers(p, o, n_layers, out));
    if (out->n_gpu_layers != 0) return LQ_OK;
    *out = (split){n_layers, false, false};
    uint64_t needed = weights_on_gpu(p, out);
    if (needed <= p->available) return LQ_OK;
    split most;
    LQ_TRY(plan_most(p, o, &most));
    return no_room(p, n_layers, needed, most.n_gpu_layers);
}

static lq_status plan_automatically(planner *p, const lq_model_options *o, bool required, split *out) {
    const split all = {p->model->config.n_layers, true, true};
    char needed[32], free_text[32];
    LQ_TRY(plan_most(p, o, out));
    uint64_t here = read_on_gpu(p, *out), whole = read_on_gpu(p, all);
    if (out->n_gpu_layers != 0 && (required || here >= whole / WORTHWHILE_PART)) return LQ_OK;
    lq_format_bytes(needed, weights_on_gpu(p, &all));
    lq_format_bytes(free_text, p->available);
    if (out->n_gpu_layers == 0)
        return lq_fail(LQ_E_MEMORY, "the weights have %s, %s has %s free: not enough for one layer and a session",
                       needed, p->model->device, free_text);
    return lq_fail(LQ_E_MEMORY, "the weights have %s, %s has %s free: too little for more than %u of %u layers", needed,
                   p->model->device, free_text, (unsigned)out->n_gpu_layers, (unsigned)p->model->config.n_layers);
}

static void describe(lq_model *model, const split *plan) {
    unsigned n = plan->n_gpu_layers, n_layers = model->config.n_layers;
    char layers[64], rest[32] = "";
    if (plan->embeds) {
        snprintf(model->plan, sizeof model->plan, "all %u layers, embedding and output head", n);
        return;
    }
    if (n == n_layers)
        snprintf(layers, sizeof layers, "all %u layers", n);
    else
        snprintf(layers, sizeof layers, "the last %u of %u layers", n, n_layers);
    if (n != n_layers) snprintf(rest, sizeof rest, ", the first %u layers", n_layers - n);
    snprintf(model->plan, sizeof model->plan, "%s%s; on the CPU: embedding%s%s", layers,
             plan->head ? " and the output head" : "", plan->head ? "" : ", output head", rest);
}

/* Chooses a plan and sets the model's devices. On success, planner backends that are not among them were freed. */
static lq_status decide(planner *p, const lq_model_options *o, bool required) {
    lq_model *model = p->model;
    split plan = {0, false, false};
    void *memory;
    LQ_TRY(lq_alloc((uint64_t)model->config.n_layers * sizeof(uint64_t), "layers", &memory));
    p->layer_bytes = memory;
    weigh(p);
    p->available = p->gpu->ops->available(p->gpu);
    if (p->available == 0) p->available = UINT64_MAX;
    lq_status status = o->gpu_layers > 0 ? plan_asked(p, o, (uint32_t)o->gpu_layers, &plan)
                                         : plan_automatically(p, o, required, &plan);
    lq_free(memory);
    model->n_devices = 0; /* nothing was loaded onto the devices of the last plan that was tried */
    lq_model_unload(model);
    if (status != LQ_OK) return status;
    apply(p, &plan);
    describe(model, &plan);
    if (plan.embeds && p->cpu != NULL) {
        p->cpu->ops->free(p->cpu);
        p->cpu = NULL;
    }
    model->n_threads = p->cpu != NULL ? lq_backend_cpu_n_threads(p->cpu) : 0;
    return LQ_OK;
}

/* ---- devices */

static void name_backends(lq_model *model) {
    const char *first = model->devices[0].backend->ops->name;
    const char *second = model->n_devices > 1 ? model->devices[1].backend->ops->name : "";
    snprintf(model->backends, sizeof model->backends, "%s%s%s", first, second[0] != '\0' ? "+" : "", second);
}

/* *checked is false if the file itself was refused; after any other failure the CPU may still run the model. */
static lq_status place_on_cuda(lq_model *model, const lq_model_options *o, lq_device device, const char *path,
                               bool required, bool *checked) {
    planner p = {.model = model};
    snprintf(model->device, sizeof model->device, "cuda:%u", (unsigned)device.index);
    *checked = true;
    LQ_TRY(lq_backend_cuda_create(o->cuda_library, device.index, model->device_name, &p.gpu));
    lq_status status = load(model, path);
    *checked = status == LQ_OK;
    if (status == LQ_OK) status = decide(&p, o, required);
    if (status != LQ_OK) {
        p.gpu->ops->free(p.gpu);
        if (p.cpu != NULL) p.cpu->ops->free(p.cpu);
        return status;
    }
    name_backends(model);
    return load(model, path);
}

static lq_status place_on_cpu(lq_model *model, const lq_model_options *o, const char *path) {
    snprintf(model->device, sizeof model->device, "cpu");
    LQ_TRY(lq_backend_cpu_create(o->n_threads, &model->devices[0].backend));
    model->n_devices = 1;
    model->n_threads = lq_backend_cpu_n_threads(model->devices[0].backend);
    name_backends(model);
    LQ_TRY(load(model, path));
    model->devices[0].end_layer = model->config.n_layers;
    return LQ_OK;
}

static lq_status check_layers(const lq_model_options *o, lq_device device) {
    if (o->gpu_layers < -1)
        return lq_fail(LQ_E_ARG, "%d layers on a GPU: must be 0 or more, or -1 for as many as fit", (int)o->gpu_layers);
    if (device.kind == LQ_DEVICE_CPU && o->gpu_layers > 0)
        return lq_fail(LQ_E_ARG, "%d layers on a GPU with the device 'cpu': ask for 'cuda', or for no layers there",
                       (int)o->gpu_layers);
    return LQ_OK;
}

lq_status lq_model_place(lq_model *model, const lq_model_options *o, const char *path) {
    lq_device device;
    bool checked;
    LQ_TRY(lq_device_parse(o->device, &device));
    LQ_TRY(check_layers(o, device));
    if (device.kind == LQ_DEVICE_CPU || o->gpu_layers == 0) return place_on_cpu(model, o, path);
    bool required = device.kind == LQ_DEVICE_CUDA || o->gpu_layers > 0;
    lq_status status = place_on_cuda(model, o, device, path, required, &checked);
    if (status == LQ_OK || required || !checked) return status;
    snprintf(model->device_note, sizeof model->device_note, "%s", lq_error_message());
    lq_model_leave(model);
    return place_on_cpu(model, o, path);
}
