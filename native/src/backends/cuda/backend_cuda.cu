/* backend_cuda.cu - a CUDA device as a backend: memory, order of work, creation, and the library's entry point. */
#include "backends/cuda/backend_cuda.cuh"

#include <stdlib.h>

#include <new>

#include "backends/cuda/fmt_plain.cuh"
#include "backends/cuda/matmul.cuh"

extern "C" {
#include "formats/iq_grids.h"
}

#ifdef _WIN32
#define LQ_EXPORT __declspec(dllexport)
#else
#define LQ_EXPORT __attribute__((visibility("default")))
#endif
#ifndef LQ_CUDA_ARCHS
#error "LQ_CUDA_ARCHS is set by the build"
#endif

lq_status (*lq_cuda_fail)(lq_status status, const char *format, ...);
static uint64_t (*system_memory)(void);

static void use_device(lq_backend_cuda *cuda) { lq_cuda_note(cuda, cudaSetDevice(cuda->device), "cudaSetDevice"); }

void lq_cuda_note(lq_backend_cuda *cuda, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    std::lock_guard<std::mutex> hold(cuda->errors);
    if (cuda->error != cudaSuccess) return;
    cuda->error = error;
    cuda->failed_at = what;
}

/* ---- memory */

static lq_status device_alloc(lq_backend_cuda *cuda, uint64_t n_bytes, const char *purpose, void **out) {
    use_device(cuda);
    *out = NULL;
    cudaError_t error =
        n_bytes > SIZE_MAX ? cudaErrorMemoryAllocation : cudaMalloc(out, n_bytes != 0 ? (size_t)n_bytes : 1);
    if (error == cudaSuccess) return LQ_OK;
    cudaGetLastError(); /* the next kernel's check must not find it */
    *out = NULL;
    return lq_cuda_fail(error == cudaErrorMemoryAllocation ? LQ_E_MEMORY : LQ_E_INTERNAL,
                        "%s: device cuda:%d cannot give %.1f MiB: %s", purpose, cuda->device,
                        (double)n_bytes / (1024.0 * 1024.0), cudaGetErrorString(error));
}

static lq_status cuda_alloc(lq_backend *backend, uint64_t n_bytes, const char *purpose, void **out) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    lq_status status = device_alloc(cuda, n_bytes, purpose, out);
    if (status != LQ_OK || n_bytes == 0) return status;
    lq_cuda_note(cuda, cudaMemsetAsync(*out, 0, (size_t)n_bytes, cuda->stream), "clearing memory");
    return LQ_OK;
}

static void cuda_release(lq_backend *backend, void *memory, uint64_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    (void)n_bytes;
    if (memory == NULL) return;
    use_device(cuda);
    lq_cuda_run_rows(cuda);
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "release"); /* what was queued may still use it */
    lq_cuda_note(cuda, cudaFree(memory), "release");
}

#define OUTBOX_BYTES ((size_t)1 << 20)
#define OUTBOX_PIECE (OUTBOX_BYTES / 4)

/* Returns when the host may change its bytes: at once for small uploads, which pass through the outbox. */
static void cuda_upload(lq_backend *backend, void *dst, const void *host, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_run_rows(cuda);
    if (n_bytes > OUTBOX_PIECE) {
        lq_cuda_note(cuda, cudaMemcpyAsync(dst, host, n_bytes, cudaMemcpyHostToDevice, cuda->stream), "upload");
        lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "upload");
        return;
    }
    std::lock_guard<std::mutex> hold(cuda->sending);
    if (n_bytes > OUTBOX_BYTES - cuda->outbox_used) { /* full: wait until the device has read it */
        lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "upload");
        cuda->outbox_used = 0;
    }
    uint8_t *piece = cuda->outbox + cuda->outbox_used;
    memcpy(piece, host, n_bytes);
    lq_cuda_note(cuda, cudaMemcpyAsync(dst, piece, n_bytes, cudaMemcpyHostToDevice, cuda->stream), "upload");
    cuda->outbox_used += (n_bytes + 63) & ~(size_t)63;
}

static void cuda_download(lq_backend *backend, void *host, const void *src, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_run_rows(cuda);
    lq_cuda_note(cuda, cudaMemcpyAsync(host, src, n_bytes, cudaMemcpyDeviceToHost, cuda->stream), "download");
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "download");
}

static void cuda_copy(lq_backend *backend, void *dst, const void *src, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_run_rows(cuda);
    lq_cuda_note(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy");
}

static void cuda_hint_full(lq_backend *, void *, uint64_t) {}

/* Rows are read in words of up to 16 bytes. */
#define WEIGHT_ALIGNMENT 16

/* A model file is mapped read-only, and devices without access to the host's page tables need the read-only flag. */
static cudaError_t map_host(const void *host, size_t n_bytes, void **device) {
    void *memory = const_cast<void *>(host);
    cudaError_t error = cudaHostRegister(memory, n_bytes, cudaHostRegisterMapped | cudaHostRegisterReadOnly);
    if (error != cudaSuccess) error = cudaHostRegister(memory, n_bytes, cudaHostRegisterMapped);
    if (error != cudaSuccess) return error;
    error = cudaHostGetDevicePointer(device, memory, 0);
    if (error != cudaSuccess) cudaHostUnregister(memory);
    return error;
}

static lq_status cuda_map(lq_backend *backend, const void *host, uint64_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    void *device = NULL;
    if (cuda->weights == WEIGHTS_COPIED) return LQ_OK;
    use_device(cuda);
    cudaError_t error = n_bytes > SIZE_MAX ? cudaErrorMemoryAllocation : map_host(host, (size_t)n_bytes, &device);
    if (error != cudaSuccess) {
        cudaGetLastError(); /* the next kernel's check must not find it */
        if (cuda->weights == WEIGHTS_MAPPED) return LQ_OK;
        return lq_cuda_fail(LQ_E_UNSUPPORTED,
                            "device cuda:%d cannot read the model's file in place: %s; leave LQ_CUDA_WEIGHTS unset",
                            cuda->device, cudaGetErrorString(error));
    }
    mapped_range *range = new (std::nothrow) mapped_range;
    if (range == NULL) {
        cudaHostUnregister(const_cast<void *>(host));
        return lq_cuda_fail(LQ_E_MEMORY, "weights: out of memory");
    }
    std::lock_guard<std::mutex> hold(cuda->memory);
    *range = {(const uint8_t *)host, (const uint8_t *)device, n_bytes, cuda->mapped};
    cuda->mapped = range;
    return LQ_OK;
}

/* The device's address of host bytes. NULL: they are not mapped, or not aligned as weights must be. */
static const void *find_mapped(lq_backend_cuda *cuda, const void *host, uint64_t n_bytes) {
    const uint8_t *first = (const uint8_t *)host;
    std::lock_guard<std::mutex> hold(cuda->memory);
    for (const mapped_range *range = cuda->mapped; range != NULL; range = range->next) {
        if (first < range->host || first >= range->host + range->n_bytes) continue;
        uint64_t offset = (uint64_t)(first - range->host);
        if (n_bytes > range->n_bytes - offset) continue;
        const uint8_t *device = range->device + offset;
        return (uintptr_t)device % WEIGHT_ALIGNMENT == 0 ? device : NULL;
    }
    return NULL;
}

/* Uses mapped bytes in place, else makes a copy, which is freed with the backend. */
static lq_status cuda_adopt(lq_backend *backend, const void *host, uint64_t n_bytes, const void **out) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    void *memory;
    *out = find_mapped(cuda, host, n_bytes);
    if (*out != NULL) return LQ_OK;
    lq_status status = device_alloc(cuda, n_bytes, "weights", &memory);
    if (status != LQ_OK) return status;
    adopted_block *block = new (std::nothrow) adopted_block;
    if (block == NULL) {
        cuda_release(backend, memory, n_bytes);
        return lq_cuda_fail(LQ_E_MEMORY, "weights: out of memory");
    }
    std::lock_guard<std::mutex> hold(cuda->memory);
    block->memory = memory;
    block->next = cuda->adopted;
    cuda->adopted = block;
    cuda_upload(backend, memory, host, (size_t)n_bytes);
    *out = memory;
    return LQ_OK;
}

/* Free bytes of the current device. For an integrated device it is what the system can give: CUDA does not count the
 * file pages that the system would drop. */
static uint64_t free_memory(bool integrated) {
    size_t free_bytes = 0, total_bytes = 0;
    uint64_t of_system = integrated ? system_memory() : 0;
    if (of_system != 0) return of_system;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) return free_bytes;
    cudaGetLastError();
    return 0;
}

static uint64_t cuda_available(lq_backend *backend) {
    use_device(lq_cuda(backend));
    return free_memory(lq_cuda(backend)->integrated);
}

void *lq_cuda_stage(lq_backend_cuda *cuda, const void *host, size_t n_bytes) {
    std::lock_guard<std::mutex> hold(cuda->memory);
    if (n_bytes > cuda->stage_bytes) {
        void *memory;
        lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "lists");
        cudaFree(cuda->stage);
        cuda->stage = NULL;
        cuda->stage_bytes = 0;
        cudaError_t error = cudaMalloc(&memory, 2 * n_bytes);
        lq_cuda_note(cuda, error, "lists");
        if (error != cudaSuccess) return NULL;
        cuda->stage = (uint8_t *)memory;
        cuda->stage_bytes = 2 * n_bytes;
    }
    cuda_upload(&cuda->base, cuda->stage, host, n_bytes);
    return cuda->stage;
}

static uint64_t cuda_scratch_bytes(lq_backend *backend, const lq_scratch_spec *spec) {
    uint64_t matmul = lq_cuda_matmul_scratch(spec);
    uint64_t attention = lq_cuda_attention_scratch(lq_cuda(backend), spec);
    uint64_t routing = (uint64_t)spec->n_tokens * spec->n_used * sizeof(uint32_t);
    uint64_t most = matmul > attention ? matmul : attention;
    return routing > most ? routing : most;
}

/* ---- order */

static void cuda_begin(lq_backend *backend, void *scratch) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    cuda->owner.lock();
    cuda->owner_thread = std::this_thread::get_id();
    use_device(cuda);
    cuda->scratch = (uint8_t *)scratch;
}

static lq_status cuda_sync(lq_backend *backend) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    use_device(cuda);
    lq_cuda_run_rows(cuda);
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "the work that was queued");
    std::lock_guard<std::mutex> hold(cuda->errors);
    if (cuda->error == cudaSuccess) return LQ_OK;
    return lq_cuda_fail(cuda->error == cudaErrorMemoryAllocation ? LQ_E_MEMORY : LQ_E_INTERNAL,
                        "device cuda:%d failed at '%s': %s; close the model and open it again", cuda->device,
                        cuda->failed_at, cudaGetErrorString(cuda->error));
}

static void cuda_end(lq_backend *backend) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    cuda->scratch = NULL;
    cuda->owner_thread = std::thread::id();
    cuda->owner.unlock();
}

/* ---- life */

static void cuda_free(lq_backend *backend) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (cuda == NULL) return;
    use_device(cuda);
    if (cuda->stream != NULL) cudaStreamSynchronize(cuda->stream);
    for (adopted_block *block = cuda->adopted, *next; block != NULL; block = next) {
        next = block->next;
        cudaFree(block->memory);
        delete block;
    }
    for (mapped_range *range = cuda->mapped, *next; range != NULL; range = next) {
        next = range->next;
        cudaHostUnregister(const_cast<uint8_t *>(range->host));
        delete range;
    }
    cudaFree(cuda->stage);
    cudaFree(cuda->grid_memory);
    cudaFree(cuda->ranks);
    lq_blas_close(cuda->blas);
    cudaFree(cuda->slab);
    cudaFreeHost(cuda->outbox);
    if (cuda->stream != NULL) cudaStreamDestroy(cuda->stream);
    delete cuda;
}

static lq_backend_ops make_ops(void) {
    lq_backend_ops ops;
    ops.name = "cuda";
    ops.most_alike = FEW_X;
    ops.free = cuda_free;
    ops.alloc = cuda_alloc;
    ops.release = cuda_release;
    ops.hint_full = cuda_hint_full;
    ops.map = cuda_map;
    ops.adopt = cuda_adopt;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.copy = cuda_copy;
    ops.available = cuda_available;
    ops.scratch_bytes = cuda_scratch_bytes;
    ops.begin = cuda_begin;
    ops.sync = cuda_sync;
    ops.end = cuda_end;
    ops.watch = nullptr;
    ops.embed = lq_cuda_embed;
    ops.rms_norm = lq_cuda_rms_norm;
    ops.matmul = lq_cuda_matmul;
    ops.rope = lq_cuda_rope;
    ops.glu = lq_cuda_glu;
    ops.add = lq_cuda_add;
    ops.softcap = lq_cuda_softcap;
    ops.route = lq_cuda_route;
    ops.expert_gather = lq_cuda_expert_gather;
    ops.expert_matmul = lq_cuda_expert_matmul;
    ops.scale = lq_cuda_scale;
    ops.expert_sum = lq_cuda_expert_sum;
    ops.hadamard = lq_cuda_hadamard;
    ops.kv_store = lq_cuda_kv_store;
    ops.kv_pack = lq_cuda_kv_pack;
    ops.kv_gather = lq_cuda_kv_gather;
    ops.kv_select = lq_cuda_kv_select;
    ops.kv_masks = lq_cuda_kv_masks;
    ops.kv_accumulated = lq_cuda_kv_accumulated;
    ops.attention = lq_cuda_attention;
    ops.best = lq_cuda_best;
    ops.short_conv = lq_cuda_short_conv;
    return ops;
}

static const lq_backend_ops cuda_ops = make_ops();

/* Uploads all codebooks to one allocation. */
static lq_status upload_grids(lq_backend_cuda *cuda) {
    struct {
        const uint16_t *host;
        size_t n;
        const uint16_t **device;
    } grids[] = {{lq_iq2_xxs_grid, 256, &cuda->grids.iq2_xxs}, {lq_iq2_xs_grid, 512, &cuda->grids.iq2_xs},
                 {lq_iq2_s_grid, 1024, &cuda->grids.iq2_s},    {lq_iq3_xxs_grid, 256, &cuda->grids.iq3_xxs},
                 {lq_iq3_s_grid, 512, &cuda->grids.iq3_s},     {lq_iq1_grid, 2048, &cuda->grids.iq1}};
    size_t n = 0;
    void *memory;
    for (auto &grid : grids) n += grid.n;
    lq_status status = device_alloc(cuda, n * sizeof(uint16_t), "codebooks", &memory);
    if (status != LQ_OK) return status;
    cuda->grid_memory = (uint16_t *)memory;
    n = 0;
    for (auto &grid : grids) {
        *grid.device = cuda->grid_memory + n;
        cuda_upload(&cuda->base, cuda->grid_memory + n, grid.host, grid.n * sizeof(uint16_t));
        n += grid.n;
    }
    return LQ_OK;
}

/* Its attributes tell whether the library holds code for a device. */
static __global__ void any_kernel(void) {}

/* capability: the compute capability that the device's code was compiled for, in tens as 75 or 80; a newer device may
 * run code for an older one. */
static cudaError_t check_code(uint32_t device, int *capability) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice((int)device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, any_kernel);
    *capability = error == cudaSuccess ? 10 * attributes.ptxVersion : 0;
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

static bool has_attribute(int device, cudaDeviceAttr attribute) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess) return value != 0;
    cudaGetLastError();
    return false;
}

/* Reads weights in place if the device shares the system's memory and reads it by the system's page tables, through its
 * caches. Boards that lack this do not cache registered memory: there a copy costs time once, but reading in place
 * costs it with every token. */
static lq_status choose_weights(lq_backend_cuda *cuda) {
    const char *asked = getenv("LQ_CUDA_WEIGHTS");
    bool coherent = has_attribute(cuda->device, cudaDevAttrPageableMemoryAccessUsesHostPageTables);
    cuda->weights = cuda->integrated && coherent ? WEIGHTS_MAPPED : WEIGHTS_COPIED;
    if (asked == NULL || asked[0] == '\0') return LQ_OK;
    if (strcmp(asked, "map") != 0 && strcmp(asked, "copy") != 0)
        return lq_cuda_fail(LQ_E_ARG, "LQ_CUDA_WEIGHTS is '%.40s': must be map or copy", asked);
    cuda->weights = strcmp(asked, "map") == 0 ? WEIGHTS_MUST_MAP : WEIGHTS_COPIED;
    return LQ_OK;
}

/* ---- the library */

static lq_status library_count(uint32_t *n_devices, uint32_t *driver) {
    int count = 0, version = 0;
    *n_devices = *driver = 0;
    if (cudaDriverGetVersion(&version) == cudaSuccess) *driver = (uint32_t)version;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) {
        *n_devices = (uint32_t)count;
        return LQ_OK;
    }
    cudaGetLastError();
    if (version == 0) return lq_cuda_fail(LQ_E_UNSUPPORTED, "there is no NVIDIA driver; install one, or use the CPU");
    int toolkit = 0;
    cudaRuntimeGetVersion(&toolkit);
    if (error == cudaErrorInsufficientDriver)
        return lq_cuda_fail(
            LQ_E_UNSUPPORTED,
            "the NVIDIA driver is too old: it knows CUDA %d.%d, this library was built with %d.%d; update "
            "the driver, or build with an older toolkit",
            version / 1000, version % 1000 / 10, toolkit / 1000, toolkit % 1000 / 10);
    return lq_cuda_fail(LQ_E_UNSUPPORTED, "there is no CUDA device: %s",
                        error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
}

static lq_status library_look(uint32_t device, lq_gpu_device *out) {
    cudaDeviceProp properties;
    int capability;
    memset(out, 0, sizeof *out);
    cudaError_t error = cudaGetDeviceProperties(&properties, (int)device);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return lq_cuda_fail(LQ_E_ARG, "there is no device cuda:%u", (unsigned)device);
    }
    size_t length = strnlen(properties.name, sizeof out->name - 1);
    memcpy(out->name, properties.name, length);
    out->major = (uint32_t)properties.major;
    out->minor = (uint32_t)properties.minor;
    out->total_bytes = properties.totalGlobalMem;
    out->compiled = check_code(device, &capability) == cudaSuccess;
    out->integrated = has_attribute((int)device, cudaDevAttrIntegrated);
    if (out->compiled) out->free_bytes = free_memory(out->integrated);
    return LQ_OK;
}

static lq_status set_up(lq_backend_cuda *cuda, const lq_gpu_device *facts) {
    cudaDeviceProp properties;
    int capability;
    cudaError_t error = check_code((uint32_t)cuda->device, &capability);
    if (error == cudaErrorNoKernelImageForDevice)
        return lq_cuda_fail(LQ_E_UNSUPPORTED,
                            "cuda:%d (%s) has compute capability %u.%u, this library was built for %s; build it again "
                            "with --arch %u%u",
                            cuda->device, facts->name, (unsigned)facts->major, (unsigned)facts->minor, LQ_CUDA_ARCHS,
                            (unsigned)facts->major, (unsigned)facts->minor);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, cuda->device);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    void *outbox = NULL;
    if (error == cudaSuccess) error = cudaHostAlloc(&outbox, OUTBOX_BYTES, cudaHostAllocDefault);
    cuda->outbox = (uint8_t *)outbox;
    if (error != cudaSuccess)
        return lq_cuda_fail(error == cudaErrorMemoryAllocation ? LQ_E_MEMORY : LQ_E_INTERNAL,
                            "device cuda:%d cannot be used: %s", cuda->device, cudaGetErrorString(error));
    cuda->n_multiprocessors = (uint32_t)properties.multiProcessorCount;
    cuda->multiplies_f16 = capability >= LQ_F16_CAPABILITY;
    cuda->multiplies_bf16 = capability >= LQ_BF16_CAPABILITY;
    cuda->integrated = facts->integrated;
    lq_status status = choose_weights(cuda);
    if (status == LQ_OK) status = upload_grids(cuda);
    return status == LQ_OK ? cuda_sync(&cuda->base) : status;
}

static lq_status library_create(uint32_t device, lq_backend **out) {
    lq_gpu_device facts;
    *out = NULL;
    lq_status status = library_look(device, &facts);
    if (status != LQ_OK) return status;
    lq_backend_cuda *cuda = new (std::nothrow) lq_backend_cuda();
    if (cuda == NULL) return lq_cuda_fail(LQ_E_MEMORY, "CUDA backend: out of memory");
    cuda->base.ops = &cuda_ops;
    cuda->device = (int)device;
    status = set_up(cuda, &facts);
    if (status != LQ_OK) {
        cuda_free(&cuda->base);
        return status;
    }
    *out = &cuda->base;
    return LQ_OK;
}

extern "C" LQ_EXPORT const lq_gpu_library *lq_gpu_library_open(const lq_gpu_core *core) {
    static lq_gpu_library library;
    if (core == NULL || core->version != LQ_GPU_LIBRARY_VERSION || core->struct_bytes != lq_gpu_struct_bytes())
        return NULL;
    int toolkit = 0;
    cudaRuntimeGetVersion(&toolkit);
    lq_cuda_fail = core->fail;
    system_memory = core->memory_available;
    library.version = LQ_GPU_LIBRARY_VERSION;
    library.struct_bytes = lq_gpu_struct_bytes();
    library.kind = "cuda";
    library.archs = LQ_CUDA_ARCHS;
    library.toolkit = (uint32_t)toolkit;
    library.count = library_count;
    library.look = library_look;
    library.create = library_create;
    library.blas = lq_blas_name;
    return &library;
}
