/* devices.h - finds the backend of a device by the device's name. */
#ifndef LQ_DEVICES_H
#define LQ_DEVICES_H

#include "backends/backend.h"

typedef enum lq_device_kind { LQ_DEVICE_AUTO = 0, LQ_DEVICE_CPU, LQ_DEVICE_CUDA } lq_device_kind;

typedef struct lq_device {
    lq_device_kind kind;
    uint32_t index; /* of CUDA devices */
} lq_device;

/* Parses "auto" or NULL, "cpu", "cuda" or "cuda:0" and so on. LQ_E_ARG if it is something else. */
lq_status lq_device_parse(const char *text, lq_device *out);

/* Creates the backend of a CUDA device; name: what the driver calls it. library: as in logquant_device.h. Errors:
 * LQ_E_IO (no library), LQ_E_UNSUPPORTED (library, driver, device), LQ_E_ARG (no such device), LQ_E_MEMORY,
 * LQ_E_INTERNAL. */
lq_status lq_backend_cuda_create(const char *library, uint32_t index, char name[128], lq_backend **out);

#endif
