/* frames.c - memory of pages, shared by reference count. */
#include "kv/frames.h"

#include <stdatomic.h>

#include "core/system.h"

struct lq_kv_frame {
    atomic_uint n_refs;
    uint32_t n_slots;
    lq_kv_slot slots[LQ_KV_FRAME_MAX_SHAPES];
};

lq_status lq_kv_frame_create(const lq_kv_frame_shape *shapes, uint32_t n_shapes, lq_kv_frame **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_kv_frame), "KV page", &memory));
    lq_kv_frame *frame = memory;
    atomic_init(&frame->n_refs, 1);
    for (uint32_t i = 0; i < n_shapes; i++) {
        lq_status status =
            lq_kv_slot_take(shapes[i].backend, shapes[i].n_blocks, shapes[i].block_bytes, &frame->slots[i]);
        if (status != LQ_OK) {
            lq_kv_frame_release(frame);
            return status;
        }
        frame->n_slots = i + 1;
    }
    *out = frame;
    return LQ_OK;
}

void lq_kv_frame_retain(lq_kv_frame *frame) { atomic_fetch_add(&frame->n_refs, 1); }

void lq_kv_frame_release(lq_kv_frame *frame) {
    if (frame == NULL || atomic_fetch_sub(&frame->n_refs, 1) != 1) return;
    for (uint32_t i = 0; i < frame->n_slots; i++) lq_kv_slot_give(&frame->slots[i]);
    lq_free(frame);
}

uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame, uint32_t shape) { return frame->slots[shape].memory; }
