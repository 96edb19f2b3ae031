/* frames.h - memory of one page index: the blocks of all layers that have pages. Full pages never change, so caches
 * that hold the same tokens share frames by a count. */
#ifndef LQ_KV_FRAMES_H
#define LQ_KV_FRAMES_H

#include "backends/backend.h"

typedef struct lq_kv_frame lq_kv_frame;

/* n_bytes of zeroed device memory, held once. The backend must outlive the frame. */
lq_status lq_kv_frame_create(lq_backend *backend, uint64_t n_bytes, lq_kv_frame **out);
void lq_kv_frame_retain(lq_kv_frame *frame);
/* Takes NULL. Frames may be shared between threads. */
void lq_kv_frame_release(lq_kv_frame *frame);
uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame);

#endif
