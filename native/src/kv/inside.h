/* inside.h - what a KV cache is made of; for cache.c, which runs it, state.c, which copies it, and look.c, which reads
 * it. */
#ifndef LQ_KV_INSIDE_H
#define LQ_KV_INSIDE_H

#include "kv/cache.h"
#include "kv/cells.h"
#include "kv/frames.h"
#include "kv/log.h"

/* What the layers on one device share. */
typedef struct lq_kv_part {
    lq_backend *backend;
    lq_kv_log_shared log; /* if the recipe selects tokens */
    uint32_t n_logs;      /* layers of that kind */
    void *log_memory;     /* device memory of all of them, layer_bytes each */
    void *log_host;       /* host memory, host_bytes each */
    uint8_t **table;      /* [max_pages] in device memory: what the frames have here */
    float *watch;         /* [layers here][n_kv_heads * n_ctx], of which a layer uses [n_kv_heads][n_cells]; or NULL */
} lq_kv_part;

typedef struct lq_kv_layer_store {
    lq_kv_part *part;
    bool is_log;
    lq_kv_cells cells; /* if not */
    lq_kv_log_layer log;
} lq_kv_layer_store;

/* Columns of a layer's watched attention. They end at the tokens held, unless the chunk was taken back since. */
typedef struct lq_kv_watched {
    uint32_t first_position;
    uint32_t n_cells;
} lq_kv_watched;

/* Floats of a layer's watched attention: every head with room for as many cells as the context has tokens. */
static inline uint64_t lq_kv_watch_floats(const lq_kv_spec *spec) { return (uint64_t)spec->n_kv_heads * spec->n_ctx; }

struct lq_kv_cache {
    lq_kv_spec spec;
    lq_guard *guard;                 /* the owner's, or NULL */
    lq_kv_part parts[LQ_MAX_PLACES]; /* one for each place of spec */
    uint32_t max_pages;
    lq_kv_frame **frames;   /* [max_pages] page p at p % max_pages; NULL where there is none */
    lq_kv_watched *watched; /* [n_layers]; or NULL */
    uint32_t n_tokens;      /* that came, the dropped ones too */
    uint32_t first_page;    /* 64 first_page tokens behind the sinks were dropped to make room */
    uint32_t drop_floor;    /* tokens held when that was done last */
    uint32_t ring_floor;    /* positions below it may have been overwritten in some ring */
    uint32_t min_ring;      /* cells of the smallest ring that is smaller than the context; 0 = none */
    uint32_t max_window;    /* of such rings */
    lq_kv_layer_store layers[];
};

static inline uint32_t lq_kv_part_index(const lq_kv_cache *cache, const lq_kv_part *part) {
    return (uint32_t)(part - cache->parts);
}

/* Bytes from a page's block of one layer to that of the next one here. */
static inline uint64_t lq_kv_part_stride(const lq_kv_part *part) {
    return lq_kv_slot_stride(part->n_logs, part->log.block_bytes);
}

/* Where a layer's watched attention is; the cache watches. */
static inline float *lq_kv_cache_watch(const lq_kv_cache *cache, uint32_t layer) {
    const lq_kv_part *part = cache->layers[layer].part;
    uint32_t index = layer - cache->spec.places[lq_kv_part_index(cache, part)].first_layer;
    return part->watch + index * lq_kv_watch_floats(&cache->spec);
}

/* End of the pages that n_tokens tokens have; 0 in types without pages. */
uint32_t lq_kv_cache_end_page(const lq_kv_cache *cache, uint32_t n_tokens);
/* The cache takes the hold of a frame (or NULL) over, and drops the one that it had of that page. */
void lq_kv_cache_set_frame(lq_kv_cache *cache, uint32_t page, lq_kv_frame *frame);
/* Lets go of all pages that n_tokens tokens do not fill. */
void lq_kv_cache_release_frames(lq_kv_cache *cache, uint32_t n_tokens);

#endif
