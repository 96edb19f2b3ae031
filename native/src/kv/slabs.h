/* slabs.h - device memory of pages. Slots of one size are allocated from slabs, which all caches of a backend share. In
 * a slab the first blocks of all slots lie side by side, then the second ones, because attention reads a layer's pages
 * one after the other; and a slab that is all taken can use huge pages. A slab is freed with the last of its slots. */
#ifndef LQ_KV_SLABS_H
#define LQ_KV_SLABS_H

#include "backends/backend.h"

typedef struct lq_kv_slab lq_kv_slab;

typedef struct lq_kv_slot {
    lq_kv_slab *slab; /* NULL: an empty slot, without memory */
    uint64_t bit;
    uint8_t *memory;
} lq_kv_slot;

/* Takes n_blocks blocks of device memory, of block_bytes each, lq_kv_slot_stride() bytes apart. They hold zeros or what
 * earlier owners left. The backend must outlive them. Any thread may take and give. */
lq_status lq_kv_slot_take(lq_backend *backend, uint32_t n_blocks, uint64_t block_bytes, lq_kv_slot *out);
void lq_kv_slot_give(const lq_kv_slot *slot);
uint64_t lq_kv_slot_stride(uint32_t n_blocks, uint64_t block_bytes);

#endif
