/* frames.h - the memory of one page: the blocks of all paged layers, on each layer's device. Full pages never change,
 * so caches that hold the same tokens share frames by reference count. */
#ifndef LQ_KV_FRAMES_H
#define LQ_KV_FRAMES_H

#include "kv/slabs.h"
#include "kv/spec.h"

typedef struct lq_kv_frame lq_kv_frame;

/* The blocks that a frame holds for one group of layers; they lie lq_kv_slot_stride() bytes apart. */
typedef struct lq_kv_frame_shape {
    lq_backend *backend;
    uint32_t n_blocks;
    uint64_t block_bytes;
} lq_kv_frame_shape;

#define LQ_KV_FRAME_MAX_SHAPES 8

/* Creates a frame with memory for n_shapes shapes and a reference count of 1. The backends must outlive it. */
lq_status lq_kv_frame_create(const lq_kv_frame_shape *shapes, uint32_t n_shapes, lq_kv_frame **out);
void lq_kv_frame_retain(lq_kv_frame *frame);
/* Accepts NULL. Frames may be shared between threads. */
void lq_kv_frame_release(lq_kv_frame *frame);
uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame, uint32_t shape);

#endif
