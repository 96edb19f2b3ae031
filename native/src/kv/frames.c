/* frames.c - shared memory of pages. */
#include "kv/frames.h"

#include <stdatomic.h>

#include "core/system.h"

/* What a frame has on one device. */
typedef struct frame_part {
    lq_backend *backend;
    uint64_t n_bytes;
    void *memory; /* on the device */
} frame_part;

struct lq_kv_frame {
    atomic_uint n_refs;
    uint32_t n_parts;
    frame_part parts[LQ_MAX_PLACES];
};

lq_status lq_kv_frame_create(const lq_place *places, uint32_t n_places, const uint64_t *n_bytes, lq_kv_frame **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_kv_frame), "KV page", &memory));
    lq_kv_frame *frame = memory;
    atomic_init(&frame->n_refs, 1);
    for (uint32_t i = 0; i < n_places; i++) {
        lq_backend *backend = places[i].backend;
        frame->parts[i] = (frame_part){backend, n_bytes[i], NULL};
        frame->n_parts = i + 1;
        lq_status status = LQ_OK;
        if (n_bytes[i] != 0) status = backend->ops->alloc(backend, n_bytes[i], "KV page", &frame->parts[i].memory);
        if (status != LQ_OK) {
            lq_kv_frame_release(frame);
            return status;
        }
    }
    *out = frame;
    return LQ_OK;
}

void lq_kv_frame_retain(lq_kv_frame *frame) { atomic_fetch_add(&frame->n_refs, 1); }

void lq_kv_frame_release(lq_kv_frame *frame) {
    if (frame == NULL || atomic_fetch_sub(&frame->n_refs, 1) != 1) return;
    for (uint32_t i = 0; i < frame->n_parts; i++) {
        const frame_part *part = &frame->parts[i];
        part->backend->ops->release(part->backend, part->memory, part->n_bytes);
    }
    lq_free(frame);
}

uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame, uint32_t place) { return frame->parts[place].memory; }
