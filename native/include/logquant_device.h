/* logquant_device.h - lists GPUs, and tells whether the CUDA backend can use them.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h.
 *
 * The CUDA backend is a shared library of its own, liblogquant_cuda, which is loaded when a model asks for a device
 * (lq_model_options) or one of these functions is called. library: its path; NULL = the path in the environment
 * variable LQ_CUDA_LIBRARY, else liblogquant_cuda where the system finds libraries.
 */
#ifndef LOGQUANT_DEVICE_H
#define LOGQUANT_DEVICE_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lq_cuda_info {
    uint32_t struct_size;
    uint32_t n_devices;
    uint32_t driver;   /* newest CUDA version that the driver supports, 1000 major + 10 minor; 0 = there is no driver */
    uint32_t toolkit;  /* version of CUDA that the library was built with */
    const char *archs; /* compute capabilities that it holds code for, "75 86"; borrowed */
    const char *blas;  /* library that multiplies the tokens of prompts: "libcublas.so.13"; borrowed; NULL = the backend
                          itself, since cuBLAS was not found, or LQ_CUDA_BLAS is "off" */
} lq_cuda_info;

typedef struct lq_cuda_device {
    uint32_t struct_size;
    uint32_t major; /* compute capability */
    uint32_t minor;
    uint32_t compiled;   /* nonzero: the library holds code for it */
    uint32_t integrated; /* nonzero: it shares the system's memory */
    uint64_t total_bytes;
    uint64_t free_bytes;
    char name[128]; /* as the driver calls it */
} lq_cuda_device;

LQ_API size_t lq_sizeof_cuda_info(void);
LQ_API size_t lq_sizeof_cuda_device(void);
/* Errors: LQ_E_IO (no library), LQ_E_UNSUPPORTED (a library of another version; no driver, or one that is too old; no
 * device: known fields of *out are then filled, all others zero). */
LQ_API lq_status lq_cuda_get_info(const char *library, lq_cuda_info *out);
LQ_API lq_status lq_cuda_get_device(const char *library, uint32_t index, lq_cuda_device *out);

/* Checks that library, driver and device fit each other: computes products, operations on rows, the encoding of pages
 * and attention with random numbers on the device and on the CPU, and compares. It takes a few MB and about a second.
 * Errors: as above; LQ_E_ARG (no such device), LQ_E_MEMORY, LQ_E_INTERNAL (the device computes wrongly, or fails). */
LQ_API lq_status lq_cuda_check(const char *library, uint32_t index);

#ifdef __cplusplus
}
#endif

#endif
