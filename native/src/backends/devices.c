/* devices.c - finds devices by name, and loads the CUDA backend's library when it is asked for. */
#include "backends/devices.h"

#include <stdlib.h>
#include <string.h>

#include "backends/gpu_library.h"
#include "core/library.h"
#include "logquant_device.h"

#ifdef _WIN32
#define LIBRARY_NAME "logquant_cuda.dll"
#elif defined(__APPLE__)
#define LIBRARY_NAME "liblogquant_cuda.dylib"
#else
#define LIBRARY_NAME "liblogquant_cuda.so"
#endif
#define BUILD_IT "'pylogquant build --cuda' makes one"

lq_status lq_device_parse(const char *text, lq_device *out) {
    *out = (lq_device){LQ_DEVICE_AUTO, 0};
    if (text == NULL || strcmp(text, "auto") == 0) return LQ_OK;
    if (strcmp(text, "cpu") == 0) {
        out->kind = LQ_DEVICE_CPU;
        return LQ_OK;
    }
    const char *digits = text + 5;
    out->kind = LQ_DEVICE_CUDA;
    if (strcmp(text, "cuda") == 0) return LQ_OK;
    if (strncmp(text, "cuda:", 5) == 0 && digits[0] != '\0' && strlen(digits) <= 3 &&
        strspn(digits, "0123456789") == strlen(digits)) {
        out->index = (uint32_t)strtoul(digits, NULL, 10);
        return LQ_OK;
    }
    return lq_fail(LQ_E_ARG, "device '%.60s': must be auto, cpu, cuda, or cuda:0 and so on", text);
}

/* ---- the library */

static lq_status open_library(const char *path, const lq_gpu_library **out) {
    const char *from_environment = getenv("LQ_CUDA_LIBRARY");
    lq_gpu_core core = {LQ_GPU_LIBRARY_VERSION, lq_gpu_struct_bytes(), lq_fail, lq_memory_available};
    lq_gpu_entry entry;
    void *symbol;
    char text[256];
    if (path == NULL && from_environment != NULL && from_environment[0] != '\0') path = from_environment;
    lq_status status = lq_library_find(path != NULL ? path : LIBRARY_NAME, LQ_GPU_ENTRY, &symbol);
    if (status == LQ_E_IO) {
        strncpy(text, lq_error_message(), sizeof text - 1);
        text[sizeof text - 1] = '\0';
        return lq_fail(status, "the CUDA backend's library cannot be loaded: %s; " BUILD_IT, text);
    }
    if (status != LQ_OK) return status;
    memcpy(&entry, &symbol, sizeof entry);
    *out = entry(&core);
    if (*out == NULL || (*out)->version != LQ_GPU_LIBRARY_VERSION || (*out)->struct_bytes != core.struct_bytes)
        return lq_fail(LQ_E_UNSUPPORTED, "%.200s: the CUDA backend's library is of another version; " BUILD_IT,
                       path != NULL ? path : LIBRARY_NAME);
    return LQ_OK;
}

lq_status lq_backend_cuda_create(const char *path, uint32_t index, char name[128], lq_backend **out) {
    const lq_gpu_library *library;
    lq_gpu_device device;
    uint32_t n_devices, driver;
    *out = NULL;
    LQ_TRY(open_library(path, &library));
    LQ_TRY(library->count(&n_devices, &driver));
    if (index >= n_devices)
        return lq_fail(LQ_E_ARG, "there is no device cuda:%u; the last one is cuda:%u", (unsigned)index,
                       (unsigned)(n_devices - 1));
    LQ_TRY(library->look(index, &device));
    memcpy(name, device.name, sizeof device.name);
    return library->create(index, out);
}

/* ---- looking (logquant_device.h) */

size_t lq_sizeof_cuda_info(void) { return sizeof(lq_cuda_info); }
size_t lq_sizeof_cuda_device(void) { return sizeof(lq_cuda_device); }

lq_status lq_cuda_get_info(const char *path, lq_cuda_info *out) {
    const lq_gpu_library *library;
    if (out == NULL || out->struct_size != sizeof *out)
        return lq_fail(LQ_E_ARG, "CUDA info: struct_size is not this library's %zu", sizeof *out);
    *out = (lq_cuda_info){.struct_size = sizeof *out};
    LQ_TRY(open_library(path, &library));
    out->toolkit = library->toolkit;
    out->archs = library->archs;
    out->blas = library->blas();
    return library->count(&out->n_devices, &out->driver);
}

lq_status lq_cuda_get_device(const char *path, uint32_t index, lq_cuda_device *out) {
    const lq_gpu_library *library;
    lq_gpu_device device;
    uint32_t n_devices, driver;
    if (out == NULL || out->struct_size != sizeof *out)
        return lq_fail(LQ_E_ARG, "CUDA device: struct_size is not this library's %zu", sizeof *out);
    LQ_TRY(open_library(path, &library));
    LQ_TRY(library->count(&n_devices, &driver));
    LQ_TRY(library->look(index, &device));
    out->major = device.major;
    out->minor = device.minor;
    out->compiled = device.compiled;
    out->integrated = device.integrated;
    out->total_bytes = device.total_bytes;
    out->free_bytes = device.free_bytes;
    memcpy(out->name, device.name, sizeof out->name);
    return LQ_OK;
}
