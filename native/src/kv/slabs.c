/* slabs.c - slots of device memory, allocated from slabs. */
#include "kv/slabs.h"

#include <pthread.h>

#include "core/system.h"

#define SLAB_BYTES ((uint64_t)2 << 20) /* a huge page */
#define MAX_SLAB_PAGES 8               /* huge pages of a slab at most, if one holds several slots */
#define MAX_SLOTS 64                   /* per slab: the bits of lq_kv_slab.free */

struct lq_kv_slab {
    struct lq_kv_slab *next, *before; /* in the list of slabs with free slots */
    lq_backend *backend;
    uint32_t n_blocks;
    uint64_t block_bytes;
    uint64_t n_bytes;
    uint8_t *memory; /* on the device: [n_blocks][slots][block_bytes] */
    uint64_t all;    /* a bit for each slot */
    uint64_t free;   /* a bit for each free slot */
};

/* Slabs with free slots, of all backends. The list is short: one for each size in use, and those with gaps. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static lq_kv_slab *with_free;

/* A fork takes the lock, so that the child finds the list whole and can give back what it inherited. */
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if !defined(_WIN32)
static void hold_list(void) { pthread_mutex_lock(&lock); }

static void let_go_of_list(void) { pthread_mutex_unlock(&lock); }
#endif

static void watch_forks(void) {
#if !defined(_WIN32)
    (void)pthread_atfork(hold_list, let_go_of_list, let_go_of_list);
#endif
}

/* Rounds up to whole huge pages, if little is missing. */
static uint64_t slab_bytes(uint64_t n_bytes) {
    uint64_t whole = (n_bytes + SLAB_BYTES - 1) / SLAB_BYTES * SLAB_BYTES;
    return whole - n_bytes <= whole / 16 ? whole : n_bytes;
}

/* Returns as many slots as fill the fewest huge pages with little left over. */
static uint32_t slots_of_slab(uint64_t slot_bytes) {
    if (slot_bytes == 0) return 1; /* a type without pages */
    for (uint32_t i = 1; i <= MAX_SLAB_PAGES; i++) {
        uint64_t n = i * SLAB_BYTES / slot_bytes;
        if (n >= MAX_SLOTS) return MAX_SLOTS;
        if (n > 0 && slab_bytes(n * slot_bytes) == i * SLAB_BYTES) return (uint32_t)n;
    }
    return 1;
}

uint64_t lq_kv_slot_stride(uint32_t n_blocks, uint64_t block_bytes) {
    return slots_of_slab(n_blocks * block_bytes) * block_bytes;
}

static lq_status create_slab(lq_backend *backend, uint32_t n_blocks, uint64_t block_bytes, lq_kv_slab **out) {
    uint32_t n_slots = slots_of_slab(n_blocks * block_bytes);
    void *memory;
    LQ_TRY(lq_alloc(sizeof(lq_kv_slab), "KV pages", &memory));
    lq_kv_slab *slab = memory;
    *slab = (lq_kv_slab){.backend = backend, .n_blocks = n_blocks, .block_bytes = block_bytes};
    slab->n_bytes = n_slots * n_blocks * block_bytes;
    if (n_slots > 1) slab->n_bytes = slab_bytes(slab->n_bytes);
    slab->all = slab->free = n_slots == MAX_SLOTS ? UINT64_MAX : ((uint64_t)1 << n_slots) - 1;
    lq_status status = backend->ops->alloc(backend, slab->n_bytes, "KV pages", &memory);
    if (status != LQ_OK) {
        lq_free(slab);
        return status;
    }
    slab->memory = memory;
    *out = slab;
    return LQ_OK;
}

static void free_slab(lq_kv_slab *slab) {
    slab->backend->ops->release(slab->backend, slab->memory, slab->n_bytes);
    lq_free(slab);
}

/* The next two change the list; call them with the lock held. */
static void link_slab(lq_kv_slab *slab) {
    slab->before = NULL;
    slab->next = with_free;
    if (with_free != NULL) with_free->before = slab;
    with_free = slab;
}

static void unlink_slab(lq_kv_slab *slab) {
    if (slab->next != NULL) slab->next->before = slab->before;
    if (slab->before != NULL)
        slab->before->next = slab->next;
    else
        with_free = slab->next;
}

/* Takes the first free slot, which lies next to the one taken last if nothing was given back. Returns true if no other
 * is free. */
static bool take(lq_kv_slab *slab, lq_kv_slot *out) {
    uint64_t index = 0;
    while ((slab->free >> index & 1) == 0) index++;
    *out = (lq_kv_slot){slab, (uint64_t)1 << index, slab->memory + index * slab->block_bytes};
    slab->free &= ~out->bit;
    if (slab->free == 0) unlink_slab(slab);
    return slab->free == 0;
}

static lq_kv_slab *find_slab(const lq_backend *backend, uint32_t n_blocks, uint64_t block_bytes) {
    lq_kv_slab *slab = with_free;
    while (slab != NULL && (slab->backend != backend || slab->n_blocks != n_blocks || slab->block_bytes != block_bytes))
        slab = slab->next;
    return slab;
}

lq_status lq_kv_slot_take(lq_backend *backend, uint32_t n_blocks, uint64_t block_bytes, lq_kv_slot *out) {
    *out = (lq_kv_slot){NULL, 0, NULL};
    if (n_blocks == 0 || block_bytes == 0) return LQ_OK;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&lock);
    lq_kv_slab *slab = find_slab(backend, n_blocks, block_bytes);
    if (slab == NULL) {
        lq_status status = create_slab(backend, n_blocks, block_bytes, &slab);
        if (status != LQ_OK) {
            pthread_mutex_unlock(&lock);
            return status;
        }
        link_slab(slab);
    }
    bool whole = take(slab, out);
    pthread_mutex_unlock(&lock);
    /* When the last slot is taken the others have been written: huge pages waste no memory. */
    if (whole) backend->ops->hint_full(backend, slab->memory, slab->n_bytes);
    return LQ_OK;
}

void lq_kv_slot_give(const lq_kv_slot *slot) {
    lq_kv_slab *slab = slot->slab;
    if (slab == NULL) return;
    pthread_mutex_lock(&lock);
    if (slab->free == 0) link_slab(slab);
    slab->free |= slot->bit;
    bool unused = slab->free == slab->all;
    if (unused) unlink_slab(slab);
    pthread_mutex_unlock(&lock);
    if (unused) free_slab(slab);
}
