/* emulation.cpp - runs the threads of a block as fibers, and emulates CUDA's runtime with host memory as device memory.
 * It is compiled with cuda_runtime.h of this folder, or, where it replaces the runtime's library (ptx/runtime.cpp),
 * with CUDA's own. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <vector>

#include "core/half.h"
#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WITH_ASAN 1
#else
#define WITH_ASAN 0
#endif

#define STACK_BYTES ((size_t)(WITH_ASAN ? 256 : 64) << 10)
#define WARP 32u

thread_local lq_emulated_thread *lq_emulated_self;

static std::recursive_mutex device; /* work on the device runs one at a time: it opens and closes all device memory */

void lq_emulated_fail(const char *what) { /* may abort: this library is for tests only */
    fprintf(stderr, "emulated CUDA: %s\n", what);
    abort();
}

static const float *all_halves() {
    static float values[65536];
    for (uint32_t i = 0; i < 65536; i++) values[i] = lq_half_to_float((uint16_t)i);
    return values;
}
const float *const lq_emulated_halves = all_halves();

/* ---- switching fibers: saves the callee-saved registers and the stack pointer */

extern "C" void lq_emulated_switch(void **from, void *to);
#if defined(__x86_64__)
__asm__(".text\n.globl lq_emulated_switch\n.hidden lq_emulated_switch\nlq_emulated_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void *first_frame(uint8_t *stack_end, void (*entry)()) {
    void **at = (void **)(void *)stack_end;
    *--at = NULL; /* keeps the stack 16-byte aligned at entry, as after a call */
    *--at = (void *)entry;
    for (int i = 0; i < 6; i++) *--at = NULL;
    return at;
}
#elif defined(__aarch64__)
__asm__(".text\n.globl lq_emulated_switch\n.hidden lq_emulated_switch\nlq_emulated_switch:\n"
        "sub sp, sp, #160\nstp x19, x20, [sp, #0]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
        "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
        "ldp x19, x20, [sp, #0]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
        "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\nret\n");
static void *first_frame(uint8_t *stack_end, void (*entry)()) {
    void **at = (void **)(void *)(stack_end - 160);
    memset(at, 0, 160);
    at[11] = (void *)entry; /* x30 */
    return at;
}
#else
#error "the CUDA emulation knows x86-64 and 64-bit ARM"
#endif

/* ---- the threads of the running block */

enum wait_state { READY, AT_BARRIER, IN_WARP, DONE };

struct fiber {
    void *stack_pointer;
    wait_state state;
    unsigned number;
    unsigned n_exchanges;
    lq_emulated_thread self;
    void *asan_fake_stack;
};

struct warp {
    unsigned n_alive, n_waiting;
    uint64_t values[2][WARP]; /* of this exchange, and of the one before, which slower lanes may still read */
};

struct emulated_block {
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    std::vector<uint8_t *> stacks;
    unsigned n, n_alive, n_at_barrier;
    fiber *current;
    void *host_stack_pointer;
    void *host_fake_stack;
    const void *host_stack_bottom;
    size_t host_stack_size;
    void (*function)(const void *);
    const void *context;
    size_t shared_bytes;
    bool reverse;
    bool wrong_warps;
    bool tensor_cores;
    ~emulated_block() {
        for (uint8_t *stack : stacks) free(stack);
    }
};

static thread_local emulated_block *running;

static void go_to(fiber *from, fiber *to) { /* NULL: the host's stack */
    emulated_block *b = running;
    void **save = from != NULL ? &from->stack_pointer : &b->host_stack_pointer;
    b->current = to;
    lq_emulated_self = to != NULL ? &to->self : NULL;
#if WITH_ASAN
    bool ends = from != NULL && from->state == DONE;
    void **fake = ends ? NULL : from != NULL ? &from->asan_fake_stack : &b->host_fake_stack;
    if (to != NULL)
        __sanitizer_start_switch_fiber(fake, b->stacks[to->number], STACK_BYTES);
    else
        __sanitizer_start_switch_fiber(fake, b->host_stack_bottom, b->host_stack_size);
#endif
    lq_emulated_switch(save, to != NULL ? to->stack_pointer : b->host_stack_pointer);
#if WITH_ASAN
    __sanitizer_finish_switch_fiber(from != NULL ? from->asan_fake_stack : b->host_fake_stack, NULL, NULL);
#endif
}

static void go_on(fiber *from) {
    emulated_block *b = running;
    for (unsigned i = 1; i <= b->n; i++) {
        unsigned next = (b->reverse ? from->number + b->n - i : from->number + i) % b->n;
        if (b->fibers[next].state != READY) continue;
        if (next != from->number) go_to(from, &b->fibers[next]);
        return;
    }
    if (b->n_alive != 0)
        lq_emulated_fail("threads wait for each other: a barrier or warp operation that not all of them reach");
    go_to(from, NULL);
}

static void release_barrier(emulated_block *b) {
    if (b->n_at_barrier == 0 || b->n_at_barrier != b->n_alive) return;
    for (fiber &f : b->fibers)
        if (f.state == AT_BARRIER) f.state = READY;
    b->n_at_barrier = 0;
}

static void release_warp(emulated_block *b, unsigned index) {
    warp *w = &b->warps[index];
    if (w->n_waiting == 0 || w->n_waiting != w->n_alive) return;
    for (unsigned i = index * WARP; i < b->n && i < (index + 1) * WARP; i++)
        if (b->fibers[i].state == IN_WARP) b->fibers[i].state = READY;
    w->n_waiting = 0;
}

static void fiber_main() {
    emulated_block *b = running;
#if WITH_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
    if (b->host_stack_bottom == NULL) b->host_stack_bottom = bottom, b->host_stack_size = size;
#endif
    b->function(b->context);
    fiber *f = b->current;
    f->state = DONE;
    b->n_alive--;
    b->warps[f->number / WARP].n_alive--;
    release_barrier(b);
    release_warp(b, f->number / WARP);
    go_on(f);
    lq_emulated_fail("a thread came back after its end");
}

void lq_emulated_sync_block() {
    emulated_block *b = running;
    fiber *self = b->current;
    self->state = AT_BARRIER;
    b->n_at_barrier++;
    release_barrier(b);
    go_on(self);
}

bool lq_emulated_tensor_cores() { return running->tensor_cores; }

unsigned lq_emulated_lane() { return running->current->number % WARP; }

const uint64_t *lq_emulated_gather(uint64_t value) {
    emulated_block *b = running;
    fiber *self = b->current;
    unsigned index = self->number / WARP, turn = self->n_exchanges++ % 2;
    warp *w = &b->warps[index];
    w->values[turn][(self->number + (b->wrong_warps ? 1 : 0)) % WARP] = value;
    self->state = IN_WARP;
    w->n_waiting++;
    release_warp(b, index);
    go_on(self);
    return w->values[turn];
}

static void run_block(emulated_block *b, dim3 grid, dim3 block, dim3 at, uint8_t *shared) {
    b->n_alive = b->n;
    b->n_at_barrier = 0;
    for (warp &w : b->warps) w.n_alive = w.n_waiting = 0;
    for (unsigned i = 0; i < b->n; i++) {
        fiber *f = &b->fibers[i];
#if WITH_ASAN /* the last thread that had this stack left it from its outermost function */
        ASAN_UNPOISON_MEMORY_REGION(b->stacks[i] + STACK_BYTES - 4096, 4096);
#endif
        f->stack_pointer = first_frame(b->stacks[i] + STACK_BYTES, fiber_main);
        f->state = READY;
        f->number = i;
        f->n_exchanges = 0;
        f->asan_fake_stack = NULL;
        f->self = {
            dim3(i % block.x, i / block.x % block.y, i / block.x / block.y), at, block, grid, shared, b->shared_bytes};
        b->warps[i / WARP].n_alive++;
    }
    go_to(NULL, &b->fibers[b->reverse ? b->n - 1 : 0]);
}

static void open_memory(bool open);
static bool fault(const char *name);

static uint64_t n_launches; /* kernels started so far; tests read it */

extern "C" __attribute__((visibility("default"))) uint64_t lq_emulated_launches(void) {
    std::lock_guard<std::recursive_mutex> hold(device);
    return n_launches;
}

void lq_emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, void (*function)(const void *),
                        const void *context) {
    static thread_local emulated_block b;
    std::lock_guard<std::recursive_mutex> hold(device);
    const char *order = getenv("LQ_EMULATED_ORDER");
    n_launches++;
    b.n = block.x * block.y * block.z;
    b.reverse = order != NULL && strcmp(order, "reverse") == 0;
    b.wrong_warps = fault("warps");
    b.tensor_cores = lq_emulated_capability() >= 75;
    b.function = function;
    b.context = context;
    b.shared_bytes = shared_bytes;
    b.host_stack_bottom = NULL;
    if (b.n == 0 || b.n > 1024) lq_emulated_fail("a block of no threads, or of more than 1024");
    if (shared_bytes > 48 << 10) lq_emulated_fail("more than 48 KiB of shared memory");
    b.fibers.resize(b.n);
    b.warps.resize((b.n + WARP - 1) / WARP);
    while (b.stacks.size() < b.n) b.stacks.push_back((uint8_t *)malloc(STACK_BYTES));
    uint8_t *shared = (uint8_t *)aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16);
    running = &b;
    open_memory(true);
    unsigned n_blocks = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < n_blocks; i++) {
        unsigned at = b.reverse ? n_blocks - 1 - i : i;
        memset(shared, 0xff, shared_bytes); /* NaNs: a kernel must not rely on what an earlier block left */
        run_block(&b, grid, block, dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y), shared);
    }
    open_memory(false);
    running = NULL;
    free(shared);
}

void lq_emulated_library_call(void (*function)(const void *), const void *context) {
    std::lock_guard<std::recursive_mutex> hold(device);
    open_memory(true);
    function(context);
    open_memory(false);
}

/* ---- device memory. With LQ_EMULATED_GUARD=1 it lies in one area that only kernels and copies can access. */

#define AREA_BYTES ((size_t)32 << 30)
#define DEVICE_BYTES ((size_t)2 << 30) /* unless LQ_EMULATED_BYTES is set */

static struct {
    uint8_t *area; /* NULL: no guard, plain memory */
    size_t used;
    size_t n_bytes; /* allocated */
    std::map<void *, size_t> sizes;
    bool asked;
} memory;

static std::map<void *, size_t> registered; /* host memory that kernels may read */

static void copy_late_ones();

static void open_memory(bool open) {
    if (memory.area != NULL && memory.used != 0 &&
        mprotect(memory.area, memory.used, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        lq_emulated_fail("mprotect");
    if (open) copy_late_ones();
}

static size_t device_bytes() {
    const char *wanted = getenv("LQ_EMULATED_BYTES");
    return wanted != NULL ? (size_t)strtoull(wanted, NULL, 10) : DEVICE_BYTES;
}

static void ask_for_guard() {
    const char *wanted = getenv("LQ_EMULATED_GUARD");
    if (memory.asked) return;
    memory.asked = true;
    if (wanted == NULL || strcmp(wanted, "1") != 0) return;
    void *area = mmap(NULL, AREA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) lq_emulated_fail("no address space for guarded memory");
    memory.area = (uint8_t *)area;
}

cudaError_t cudaMalloc(void **out, size_t n_bytes) {
    std::lock_guard<std::recursive_mutex> hold(device);
    ask_for_guard();
    if (n_bytes == 0 || memory.n_bytes > device_bytes() || n_bytes > device_bytes() - memory.n_bytes)
        return cudaErrorMemoryAllocation;
    void *at;
    if (memory.area != NULL) {
        size_t room = (n_bytes + 4095) / 4096 * 4096;
        if (room > AREA_BYTES - memory.used) lq_emulated_fail("guarded memory is used up");
        at = memory.area + memory.used;
        memory.used += room;
    } else {
        at = aligned_alloc(256, (n_bytes + 255) / 256 * 256);
        if (at == NULL) return cudaErrorMemoryAllocation;
    }
    open_memory(true);
    memset(at, 0xa5, n_bytes);
    open_memory(false);
    memory.sizes[at] = n_bytes;
    memory.n_bytes += n_bytes;
    *out = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *at) {
    std::lock_guard<std::recursive_mutex> hold(device);
    if (at == NULL) return cudaSuccess;
    auto found = memory.sizes.find(at);
    if (found == memory.sizes.end()) lq_emulated_fail("cudaFree of what was not allocated");
    if (memory.area != NULL)
        madvise(at, (found->second + 4095) / 4096 * 4096, MADV_DONTNEED);
    else
        free(at);
    memory.n_bytes -= found->second;
    memory.sizes.erase(found);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t n_bytes, cudaStream_t) {
    std::lock_guard<std::recursive_mutex> hold(device);
    open_memory(true);
    memset(at, value, n_bytes);
    open_memory(false);
    return cudaSuccess;
}

/* Copies from page-locked memory are done late, as a device may do them: at the next other operation or wait. A host
 * that changes the bytes before that is caught by wrong results. */
struct late_copy {
    void *dst;
    const void *src;
    size_t n_bytes;
};
static std::vector<late_copy> late_copies;
static std::map<const uint8_t *, size_t> locked; /* page-locked memory */

static bool is_locked(const void *at) {
    auto after = locked.upper_bound((const uint8_t *)at);
    if (after == locked.begin()) return false;
    --after;
    return (const uint8_t *)at < after->first + after->second;
}

static void copy_late_ones() {
    for (const late_copy &c : late_copies) memmove(c.dst, c.src, c.n_bytes);
    late_copies.clear();
}

static uint64_t n_downloads; /* copies to the host so far; the host waits for each */

extern "C" __attribute__((visibility("default"))) uint64_t lq_emulated_downloads(void) {
    std::lock_guard<std::recursive_mutex> hold(device);
    return n_downloads;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t) {
    std::lock_guard<std::recursive_mutex> hold(device);
    n_downloads += kind == cudaMemcpyDeviceToHost;
    if (is_locked(src)) {
        late_copies.push_back({dst, src, n_bytes});
        return cudaSuccess;
    }
    open_memory(true);
    memmove(dst, src, n_bytes);
    open_memory(false);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t n_bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> hold(device);
    *out = aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    if (*out == NULL) return cudaErrorMemoryAllocation;
    locked[(const uint8_t *)*out] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *at) {
    std::lock_guard<std::recursive_mutex> hold(device);
    if (at == NULL) return cudaSuccess;
    if (locked.erase((const uint8_t *)at) == 0) lq_emulated_fail("cudaFreeHost of what was not allocated");
    free(at);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    std::lock_guard<std::recursive_mutex> hold(device);
    open_memory(true);
    open_memory(false);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    std::lock_guard<std::recursive_mutex> hold(device);
    *total_bytes = device_bytes();
    *free_bytes = *total_bytes > memory.n_bytes ? *total_bytes - memory.n_bytes : 0;
    return cudaSuccess;
}

/* ---- one device, which environment variables change:
 * LQ_EMULATED_FAULT=driver: the driver is too old; =device: there is no device; =map: it cannot map memory; =warps: it
 * computes wrong results; =blas, =products: see blas.cpp.
 * LQ_EMULATED_INTEGRATED=1: it shares the system's memory; =coherent: it also reads it as the host does.
 * LQ_EMULATED_CAPABILITY=7.5: its compute capability, 8.0 if unset. */

static bool is_set(const char *variable, const char *value) {
    const char *found = getenv(variable);
    return found != NULL && strcmp(found, value) == 0;
}

static bool fault(const char *name) { return is_set("LQ_EMULATED_FAULT", name); }

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int index) {
    bool coherent = is_set("LQ_EMULATED_INTEGRATED", "coherent");
    if (index != 0) return cudaErrorInvalidDevice;
    *value = coherent || (attribute == cudaDevAttrIntegrated && is_set("LQ_EMULATED_INTEGRATED", "1"));
    return cudaSuccess;
}

int lq_emulated_capability() {
    const char *wanted = getenv("LQ_EMULATED_CAPABILITY");
    return wanted != NULL ? (int)(10.0 * atof(wanted) + 0.5) : 80;
}

/* As on boards: memory that is mapped read-only needs the read-only flag, and can be registered only once. */
cudaError_t cudaHostRegister(void *at, size_t n_bytes, unsigned flags) {
    std::lock_guard<std::recursive_mutex> hold(device);
    if (fault("map")) return cudaErrorNotSupported;
    if ((flags & cudaHostRegisterReadOnly) == 0 || registered.count(at) != 0) return cudaErrorInvalidValue;
    registered[at] = n_bytes;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *at) {
    std::lock_guard<std::recursive_mutex> hold(device);
    if (registered.erase(at) == 0) lq_emulated_fail("cudaHostUnregister of what was not registered");
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *at, unsigned) {
    std::lock_guard<std::recursive_mutex> hold(device);
    if (registered.count(at) == 0) return cudaErrorInvalidValue;
    *out = at;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    default:
        return "emulated error";
    }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (fault("driver")) return cudaErrorInsufficientDriver;
    if (fault("device")) return cudaErrorNoDevice;
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int index) {
    if (index != 0) return cudaErrorInvalidDevice;
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "emulated on the CPU");
    properties->major = lq_emulated_capability() / 10;
    properties->minor = lq_emulated_capability() % 10;
    properties->multiProcessorCount = 3;
    properties->totalGlobalMem = device_bytes();
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = NULL;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
