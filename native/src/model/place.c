/* place.c - which device a model runs on. */
#include <stdio.h>
#include <string.h>

#include "backends/devices.h"
#include "core/system.h"
#include "model/model.h"

/* What "auto" leaves free beside the weights, for a session. */
#define ROOM_FOR_SESSION ((uint64_t)256 << 20)

/* Puts the path before the last error's text, if it is not there yet. */
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

static uint64_t tensor_bytes(const lq_gguf *gguf) {
    uint64_t sum = 0;
    for (size_t i = 0; i < lq_gguf_n_tensors(gguf); i++) sum += lq_gguf_tensor_at(gguf, i)->data_bytes;
    return sum;
}

static lq_status check_room(const lq_model *model) {
    uint64_t available = model->backend->ops->available(model->backend);
    uint64_t wanted = tensor_bytes(model->gguf) + ROOM_FOR_SESSION;
    char needed[32], free_text[32];
    if (available == 0 || wanted <= available) return LQ_OK;
    lq_format_bytes(needed, wanted);
    lq_format_bytes(free_text, available);
    return lq_fail(LQ_E_MEMORY, "weights and a session need %s, %s has %s free", needed, model->device, free_text);
}

static lq_status place_on_cuda(lq_model *model, const lq_model_options *o, lq_device device, const char *path) {
    snprintf(model->device, sizeof model->device, "cuda:%u", (unsigned)device.index);
    LQ_TRY(lq_backend_cuda_create(o->cuda_library, device.index, model->device_name, &model->backend));
    if (device.kind == LQ_DEVICE_AUTO) LQ_TRY(check_room(model));
    return load(model, path);
}

static lq_status place_on_cpu(lq_model *model, const lq_model_options *o, const char *path) {
    snprintf(model->device, sizeof model->device, "cpu");
    model->device_name[0] = '\0';
    LQ_TRY(lq_backend_cpu_create(o->n_threads, &model->backend));
    model->n_threads = lq_backend_cpu_n_threads(model->backend);
    return load(model, path);
}

/* Back to a model that has its file and no more. */
static void take_back(lq_model *model) {
    lq_model_unload(model);
    if (model->backend != NULL) model->backend->ops->free(model->backend);
    model->backend = NULL;
}

lq_status lq_model_place(lq_model *model, const lq_model_options *o, const char *path) {
    lq_device device;
    LQ_TRY(lq_device_parse(o->device, &device));
    if (device.kind == LQ_DEVICE_CPU) return place_on_cpu(model, o, path);
    lq_status status = place_on_cuda(model, o, device, path);
    if (status == LQ_OK || device.kind == LQ_DEVICE_CUDA) return status;
    if (model->backend != NULL && status != LQ_E_MEMORY) return status; /* the file's fault */
    snprintf(model->device_note, sizeof model->device_note, "%s", lq_error_message());
    take_back(model);
    return place_on_cpu(model, o, path);
}
