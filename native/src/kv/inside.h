/* inside.h - what a KV cache is made of; for cache.c, which runs it, the kinds of states, copies.c, which copies it,
 * and look.c, which reads it. */
#ifndef LQ_KV_INSIDE_H
#define LQ_KV_INSIDE_H

#include "kv/cache.h"
#include "kv/cells.h"
#include "kv/frames.h"
#include "kv/paged.h"
#include "kv/recurrent.h"

/* Paged layers of one shape on one device. */
#define LQ_KV_MAX_GROUPS LQ_KV_FRAME_MAX_SHAPES

typedef struct lq_kv_group {
    lq_backend *backend;
    uint32_t device;         /* index in spec.devices */
    lq_kv_paged_group paged; /* what the group's layers share */
    uint32_t n_paged;        /* layers */
    void *paged_memory;      /* device memory of all its layers, layer_bytes each */
    uint8_t **table;         /* [max_pages] in device memory: the address of each frame's blocks of this group */
} lq_kv_group;

/* A layer's watched attention. Its last cell is the last token held, unless the chunk was rewound since. */
typedef struct lq_kv_watched {
    float *attention; /* [n_kv_heads][n_cells] in device memory, with room for n_ctx cells; NULL: not watched */
    uint32_t first_position;
    uint32_t n_cells;
} lq_kv_watched;

struct lq_state {
    const lq_state_ops *ops; /* NULL: the layer has no state */
    const lq_kv_layer_spec *layer;
    lq_backend *backend;
    lq_kv_watched watched;
    uint32_t floor; /* in a ring, positions below it may have been overwritten */
    lq_kv_cells cells;
    lq_kv_recurrent recurrent;
    lq_kv_group *group; /* NULL: the layer is not paged */
    lq_kv_paged_layer paged;
};

struct lq_kv_cache {
    lq_kv_spec spec;
    lq_guard *guard;        /* the owner's, or NULL */
    const lq_kv_work *work; /* memory that one layer at a time computes in */
    lq_kv_group groups[LQ_KV_MAX_GROUPS];
    uint32_t n_groups;
    uint32_t max_pages;
    lq_kv_frame **frames; /* [max_pages] page p at p % max_pages; NULL where there is none */
    uint32_t n_tokens;    /* tokens appended, including dropped ones */
    uint32_t first_page;  /* 64 first_page tokens after the sinks were dropped to make room */
    uint32_t drop_floor;  /* tokens held when pages were last dropped */
    lq_kv_chunk pending;  /* a tentative chunk that every layer attended; n_tokens 0: there is none */
    lq_state states[];
};

/* Returns the distance in bytes between the blocks of a page's consecutive layers in a group. */
static inline uint64_t lq_kv_group_stride(const lq_kv_group *group) {
    return lq_kv_slot_stride(group->n_paged, group->paged.block_bytes);
}

/* Returns the number of complete pages of n_tokens tokens, dropped ones included; 0 in types without pages. */
uint32_t lq_kv_cache_end_page(const lq_kv_cache *cache, uint32_t n_tokens);
/* Sets the frame of a page (or NULL): takes over the caller's reference to it, and releases the frame that was in the
 * slot. */
void lq_kv_cache_set_frame(lq_kv_cache *cache, uint32_t page, lq_kv_frame *frame);
/* Releases the frames of all pages that n_tokens tokens do not complete. */
void lq_kv_cache_release_frames(lq_kv_cache *cache, uint32_t n_tokens);
/* Returns the oldest position after the sinks that cells still hold where the oldest tokens were dropped; else 0. */
uint32_t lq_kv_cache_first_cell(const lq_kv_cache *cache, const lq_state *state);

#endif
