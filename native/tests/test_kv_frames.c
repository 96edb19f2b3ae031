/* test_kv_frames.c - frames of KV pages: no two share a byte, slabs are shared, settled when they are full and given
 * back when they are empty, from several threads at once. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "kv/frames.h"

/* A backend that only has memory, and counts it. */
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

static void counted_settle(lq_backend *backend, void *memory, uint64_t n_bytes) {
    (void)backend;
    (void)memory;
    CHECK(n_bytes > 0);
    n_settled++;
}

static const lq_backend_ops ops = {
    .name = "memory", .alloc = counted_alloc, .release = counted_release, .settle = counted_settle};
static lq_backend backend = {.ops = &ops}, other = {.ops = &ops};

static void paint(const lq_kv_frame *frame, uint32_t n_blocks, uint64_t block_bytes, int value) {
    uint64_t stride = lq_kv_frame_stride(n_blocks, block_bytes);
    for (uint32_t i = 0; i < n_blocks; i++) memset(lq_kv_frame_memory(frame) + i * stride, value, block_bytes);
}

static bool is_painted(const lq_kv_frame *frame, uint32_t n_blocks, uint64_t block_bytes, int value) {
    const uint8_t *memory = lq_kv_frame_memory(frame);
    uint64_t stride = lq_kv_frame_stride(n_blocks, block_bytes);
    for (uint32_t i = 0; i < n_blocks; i++)
        for (uint64_t b = 0; b < block_bytes; b++)
            if (memory[i * stride + b] != (uint8_t)value) return false;
    return true;
}

/* Frames come and go in no order; each keeps what was written to it. */
static void test_bytes(uint32_t n_blocks, uint64_t block_bytes) {
    enum { N = 150 };
    lq_kv_frame *frames[N] = {NULL};
    unsigned long long random = block_bytes;
    int n = n_blocks * block_bytes > 1 << 20 ? 12 : N;
    for (int step = 0; step < 6 * n; step++) {
        int i = (int)(check_random(&random) % (unsigned)n);
        if (frames[i] != NULL) {
            CHECK(is_painted(frames[i], n_blocks, block_bytes, i));
            lq_kv_frame_release(frames[i]);
            frames[i] = NULL;
            continue;
        }
        CHECK_STATUS(lq_kv_frame_create(&backend, n_blocks, block_bytes, &frames[i]), LQ_OK);
        CHECK((uintptr_t)lq_kv_frame_memory(frames[i]) % 16 == 0);
        paint(frames[i], n_blocks, block_bytes, i);
    }
    for (int i = 0; i < N; i++) {
        CHECK(frames[i] == NULL || is_painted(frames[i], n_blocks, block_bytes, i));
        lq_kv_frame_release(frames[i]);
    }
    CHECK(n_slabs == 0);
}

/* Nine frames of 30 blocks of 7,552 bytes are a huge page but for 2.8 %. */
static void test_slabs(void) {
    lq_kv_frame *frames[10], *foreign, *more;
    long settled = n_settled;
    for (int i = 0; i < 10; i++) {
        CHECK_STATUS(lq_kv_frame_create(&backend, 30, 7552, &frames[i]), LQ_OK);
        CHECK(n_slabs == (i < 9 ? 1 : 2));
        CHECK(n_settled - settled == (i < 8 ? 0 : 1));
        if (i > 0 && i < 9) CHECK(lq_kv_frame_memory(frames[i]) == lq_kv_frame_memory(frames[i - 1]) + 7552);
    }
    CHECK_STATUS(lq_kv_frame_create(&other, 30, 7552, &foreign), LQ_OK);
    CHECK(n_slabs == 3); /* of another backend, or another shape with as many bytes: slabs of their own */
    CHECK_STATUS(lq_kv_frame_create(&backend, 15, 15104, &more), LQ_OK);
    CHECK(n_slabs == 4);
    lq_kv_frame_release(foreign);
    lq_kv_frame_release(more);
    CHECK(n_slabs == 2);
    uint8_t *gap = lq_kv_frame_memory(frames[4]);
    lq_kv_frame_retain(frames[4]);
    lq_kv_frame_release(frames[4]); /* still held once */
    lq_kv_frame_release(frames[9]);
    CHECK(n_slabs == 1);
    lq_kv_frame_release(frames[4]);
    out_of_memory = true; /* the gap needs none */
    CHECK_STATUS(lq_kv_frame_create(&backend, 30, 7552, &frames[4]), LQ_OK);
    CHECK(lq_kv_frame_memory(frames[4]) == gap && n_settled - settled == 2);
    CHECK_STATUS(lq_kv_frame_create(&backend, 30, 7552, &more), LQ_E_MEMORY);
    CHECK(more == NULL);
    out_of_memory = false;
    for (int i = 0; i < 9; i++) lq_kv_frame_release(frames[i]);
    lq_kv_frame_release(NULL);
    CHECK(n_slabs == 0);
}

static void *come_and_go(void *argument) {
    enum { N = 40 };
    int id = *(int *)argument, *failed = argument;
    lq_kv_frame *frames[N] = {NULL};
    unsigned long long random = (unsigned long long)id;
    *failed = 0;
    for (int step = 0; step < 3000; step++) {
        int i = (int)(check_random(&random) % N);
        if (frames[i] != NULL) {
            *failed += !is_painted(frames[i], 2, 128, id);
            lq_kv_frame_release(frames[i]);
            frames[i] = NULL;
        } else {
            *failed += lq_kv_frame_create(&backend, 2, 128, &frames[i]) != LQ_OK;
            paint(frames[i], 2, 128, id);
        }
    }
    for (int i = 0; i < N; i++) lq_kv_frame_release(frames[i]);
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
    return check_report("test_kv_frames");
}
