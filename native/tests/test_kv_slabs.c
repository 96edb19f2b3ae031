/* test_kv_slabs.c - tests the memory of KV pages, from several threads at once: no two slots share a byte; caches share
 * slabs; full slabs are settled (asked to use huge pages), empty ones freed. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "kv/slabs.h"

/* A backend that only allocates memory, and counts it. */
static atomic_long n_slabs, n_settled;
static atomic_bool out_of_memory;

static lq_status counted_alloc(lq_backend *backend, uint64_t n_bytes, const char *purpose, void **out) {
    (void)backend;
    (void)purpose;
    *out = NULL;
    if (out_of_memory) return LQ_E_MEMORY;
    *out = calloc(1, n_bytes);
    n_slabs++;
    return LQ_OK;
}

static void counted_release(lq_backend *backend, void *memory, uint64_t n_bytes) {
    (void)backend;
    (void)n_bytes;
    free(memory);
    n_slabs--;
}

static void counted_hint_full(lq_backend *backend, void *memory, uint64_t n_bytes) {
    (void)backend;
    (void)memory;
    (void)n_bytes;
    n_settled++;
}

static const lq_backend_ops ops = {
    .name = "memory", .alloc = counted_alloc, .release = counted_release, .hint_full = counted_hint_full};
static lq_backend backend = {.ops = &ops}, other = {.ops = &ops};

static void paint(const lq_kv_slot *slot, uint32_t n_blocks, uint64_t block_bytes, int value) {
    uint64_t stride = lq_kv_slot_stride(n_blocks, block_bytes);
    for (uint32_t i = 0; i < n_blocks; i++) memset(slot->memory + i * stride, value, block_bytes);
}

static bool is_painted(const lq_kv_slot *slot, uint32_t n_blocks, uint64_t block_bytes, int value) {
    const uint8_t *memory = slot->memory;
    uint64_t stride = lq_kv_slot_stride(n_blocks, block_bytes);
    for (uint32_t i = 0; i < n_blocks; i++)
        for (uint64_t b = 0; b < block_bytes; b++)
            if (memory[i * stride + b] != (uint8_t)value) return false;
    return true;
}

/* Takes and frees slots in random order; each keeps the bytes written to it. */
static void test_bytes(uint32_t n_blocks, uint64_t block_bytes) {
    enum { N = 150 };
    lq_kv_slot slots[N] = {{NULL, 0, NULL}};
    unsigned long long random = block_bytes;
    int n = n_blocks * block_bytes > 1 << 20 ? 12 : N;
    for (int step = 0; step < 6 * n; step++) {
        int i = (int)(check_random(&random) % (unsigned)n);
        if (slots[i].slab != NULL) {
            CHECK(is_painted(&slots[i], n_blocks, block_bytes, i));
            lq_kv_slot_give(&slots[i]);
            slots[i].slab = NULL;
            continue;
        }
        CHECK_STATUS(lq_kv_slot_take(&backend, n_blocks, block_bytes, &slots[i]), LQ_OK);
        CHECK((uintptr_t)slots[i].memory % 16 == 0);
        paint(&slots[i], n_blocks, block_bytes, i);
    }
    for (int i = 0; i < N; i++) {
        CHECK(slots[i].slab == NULL || is_painted(&slots[i], n_blocks, block_bytes, i));
        lq_kv_slot_give(&slots[i]);
    }
    CHECK(n_slabs == 0);
}

/* Nine slots of 30 blocks of 7,552 bytes are a huge page but for 2.8 %. */
static void test_slabs(void) {
    lq_kv_slot slots[10], foreign, more;
    long settled = n_settled;
    for (int i = 0; i < 10; i++) {
        CHECK_STATUS(lq_kv_slot_take(&backend, 30, 7552, &slots[i]), LQ_OK);
        CHECK(n_slabs == (i < 9 ? 1 : 2));
        CHECK(n_settled - settled == (i < 8 ? 0 : 1));
        if (i > 0 && i < 9) CHECK(slots[i].memory == slots[i - 1].memory + 7552);
    }
    CHECK_STATUS(lq_kv_slot_take(&other, 30, 7552, &foreign), LQ_OK);
    CHECK(n_slabs == 3); /* of another backend, or another shape with as many bytes: slabs of their own */
    CHECK_STATUS(lq_kv_slot_take(&backend, 15, 15104, &more), LQ_OK);
    CHECK(n_slabs == 4);
    lq_kv_slot_give(&foreign);
    lq_kv_slot_give(&more);
    CHECK(n_slabs == 2);
    uint8_t *gap = slots[4].memory;
    lq_kv_slot_give(&slots[4]);
    lq_kv_slot_give(&slots[9]);
    CHECK(n_slabs == 1);
    out_of_memory = true; /* the gap needs none */
    CHECK_STATUS(lq_kv_slot_take(&backend, 30, 7552, &slots[4]), LQ_OK);
    CHECK(slots[4].memory == gap && n_settled - settled == 2);
    CHECK_STATUS(lq_kv_slot_take(&backend, 30, 7552, &more), LQ_E_MEMORY);
    CHECK(more.slab == NULL && more.memory == NULL);
    CHECK_STATUS(lq_kv_slot_take(&backend, 0, 7552, &more), LQ_OK); /* a device without layers that have pages */
    CHECK(more.slab == NULL);
    lq_kv_slot_give(&more);
    out_of_memory = false;
    for (int i = 0; i < 9; i++) lq_kv_slot_give(&slots[i]);
    CHECK(n_slabs == 0);
}

static void *come_and_go(void *argument) {
    enum { N = 40 };
    int id = *(int *)argument, *failed = argument;
    lq_kv_slot slots[N] = {{NULL, 0, NULL}};
    unsigned long long random = (unsigned long long)id;
    *failed = 0;
    for (int step = 0; step < 3000; step++) {
        int i = (int)(check_random(&random) % N);
        if (slots[i].slab != NULL) {
            *failed += !is_painted(&slots[i], 2, 128, id);
            lq_kv_slot_give(&slots[i]);
            slots[i].slab = NULL;
        } else {
            *failed += lq_kv_slot_take(&backend, 2, 128, &slots[i]) != LQ_OK;
            paint(&slots[i], 2, 128, id);
        }
    }
    for (int i = 0; i < N; i++) lq_kv_slot_give(&slots[i]);
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[4];
    int ids[4];
    for (int i = 0; i < 4; i++) {
        ids[i] = i + 1;
        CHECK(pthread_create(&threads[i], NULL, come_and_go, &ids[i]) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(ids[i] == 0);
    }
    CHECK(n_slabs == 0);
}

int main(void) {
    test_bytes(1, 64);
    test_bytes(3, 192);
    test_bytes(30, 7552);
    test_bytes(7, 150016);      /* a slab of several huge pages */
    test_bytes(1, 3000000);     /* a few frames each */
    test_bytes(2, 8500 * 1024); /* one frame each */
    test_slabs();
    test_threads();
    return check_report("test_kv_slabs");
}
