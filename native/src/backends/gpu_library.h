/* gpu_library.h - the interface between the core and a backend in a shared library of its own, such as
 * liblogquant_cuda: one function by name, through which each side refuses the other if they were not built from the
 * same headers. */
#ifndef LQ_GPU_LIBRARY_H
#define LQ_GPU_LIBRARY_H

#include "backends/backend.h"

/* Grows whenever backend.h, what it includes, or this file changes. */
#define LQ_GPU_LIBRARY_VERSION 6

typedef struct lq_gpu_core {
    uint32_t version;      /* LQ_GPU_LIBRARY_VERSION the core was built with */
    uint32_t struct_bytes; /* lq_gpu_struct_bytes() */
    lq_status (*fail)(lq_status status, const char *format, ...) LQ_PRINTF(2, 3); /* lq_fail */
    uint64_t (*memory_available)(void); /* lq_memory_available: system memory */
} lq_gpu_core;

typedef struct lq_gpu_device {
    char name[128]; /* as the driver calls it */
    uint32_t major; /* compute capability */
    uint32_t minor;
    uint64_t total_bytes;
    uint64_t free_bytes; /* of an integrated device: available system memory */
    bool compiled;       /* the library holds code for it */
    bool integrated;     /* its memory is the system's */
} lq_gpu_device;

typedef struct lq_gpu_library {
    uint32_t version;
    uint32_t struct_bytes;
    const char *kind;  /* "cuda": what devices are called, cuda:0 and so on */
    const char *archs; /* what was compiled: "75 80 86" */
    uint32_t toolkit;  /* version of CUDA it was built with: 1000 major + 10 minor */
    /* Counts devices. LQ_E_UNSUPPORTED: none, or no driver that this library can use. driver: the newest version of
     * CUDA that the driver knows, 0 if there is none. */
    lq_status (*count)(uint32_t *n_devices, uint32_t *driver);
    lq_status (*look)(uint32_t device, lq_gpu_device *out);
    /* Errors: LQ_E_UNSUPPORTED (no code for this device), LQ_E_MEMORY, LQ_E_INTERNAL. */
    lq_status (*create)(uint32_t device, lq_backend **out);
    /* Names the library that multiplies the tokens of prompts, and loads it to find out; NULL: the backend multiplies
     * them. */
    const char *(*blas)(void);
} lq_gpu_library;

/* Changes when the size of a struct that both sides share does. */
static inline uint32_t lq_gpu_struct_bytes(void) {
    return (uint32_t)(sizeof(lq_backend_ops) + 3 * sizeof(lq_attention) + 5 * sizeof(lq_kv_pages) +
                      7 * sizeof(lq_page_format) + 11 * sizeof(lq_scratch_spec) + 13 * sizeof(lq_format) +
                      17 * sizeof(lq_weight) + 19 * sizeof(lq_gpu_device) + 23 * sizeof(lq_gpu_library));
}

/* The library's one function. NULL: the core is of another version. */
#define LQ_GPU_ENTRY "lq_gpu_library_open"
typedef const lq_gpu_library *(*lq_gpu_entry)(const lq_gpu_core *core);

#endif
