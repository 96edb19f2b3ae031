/* frames.c - shared memory of pages. */
#include "kv/frames.h"

#include <stdatomic.h>

#include "core/system.h"

struct lq_kv_frame {
    atomic_uint n_refs;
    lq_backend *backend;
    uint64_t n_bytes;
    void *memory; /* on the device */
};

lq_status lq_kv_frame_create(lq_backend *backend, uint64_t n_bytes, lq_kv_frame **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_kv_frame), "KV page", &memory));
    lq_kv_frame *frame = memory;
    atomic_init(&frame->n_refs, 1);
    frame->backend = backend;
    frame->n_bytes = n_bytes;
    lq_status status = backend->ops->alloc(backend, n_bytes, "KV page", &frame->memory);
    if (status != LQ_OK) {
        lq_free(frame);
        return status;
    }
    *out = frame;
    return LQ_OK;
}

void lq_kv_frame_retain(lq_kv_frame *frame) { atomic_fetch_add(&frame->n_refs, 1); }

void lq_kv_frame_release(lq_kv_frame *frame) {
    if (frame == NULL || atomic_fetch_sub(&frame->n_refs, 1) != 1) return;
    frame->backend->ops->release(frame->backend, frame->memory, frame->n_bytes);
    lq_free(frame);
}

uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame) { return frame->memory; }
