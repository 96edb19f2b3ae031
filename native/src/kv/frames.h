/* frames.h - memory of one page index: the blocks of all layers that have pages. Full pages never change, so caches
 * that hold the same tokens share frames by a count.
 *
 * Frames of one size come in slabs, for all caches of a backend: in a slab, the blocks of one layer lie side by side,
 * because attention reads them one after the other; and a slab that is taken whole can lie in huge pages of memory. It
 * goes when the last of its frames does. */
#ifndef LQ_KV_FRAMES_H
#define LQ_KV_FRAMES_H

#include "backends/backend.h"

typedef struct lq_kv_frame lq_kv_frame;

/* n_blocks blocks of device memory, of block_bytes each, held once. The first is at lq_kv_frame_memory(), the others
 * lq_kv_frame_stride() bytes apart. What they hold is left over from other frames. The backend must outlive the frame.
 */
lq_status lq_kv_frame_create(lq_backend *backend, uint32_t n_blocks, uint64_t block_bytes, lq_kv_frame **out);
void lq_kv_frame_retain(lq_kv_frame *frame);
/* Takes NULL. Frames may be shared between threads. */
void lq_kv_frame_release(lq_kv_frame *frame);
uint8_t *lq_kv_frame_memory(const lq_kv_frame *frame);

uint64_t lq_kv_frame_stride(uint32_t n_blocks, uint64_t block_bytes);

#endif
