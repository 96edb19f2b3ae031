/* backend_cuda.cu - a CUDA device as a backend: memory, the order of work, and the library's entry. */
#include "backends/cuda/backend_cuda.cuh"

#include <new>

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
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "release"); /* what was queued may still use it */
    lq_cuda_note(cuda, cudaFree(memory), "release");
}

/* Returns when the host's bytes may change. */
static void cuda_upload(lq_backend *backend, void *dst, const void *host, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_note(cuda, cudaMemcpyAsync(dst, host, n_bytes, cudaMemcpyHostToDevice, cuda->stream), "upload");
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "upload");
}

static void cuda_download(lq_backend *backend, void *host, const void *src, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_note(cuda, cudaMemcpyAsync(host, src, n_bytes, cudaMemcpyDeviceToHost, cuda->stream), "download");
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "download");
}

static void cuda_copy(lq_backend *backend, void *dst, const void *src, size_t n_bytes) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    if (n_bytes == 0) return;
    use_device(cuda);
    lq_cuda_note(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy");
}

/* A copy of its own, freed with the backend. */
static void cuda_settle(lq_backend *, void *, uint64_t) {}

static lq_status cuda_adopt(lq_backend *backend, const void *host, uint64_t n_bytes, const void **out) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    void *memory;
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

static uint64_t cuda_available(lq_backend *backend) {
    size_t free_bytes = 0, total_bytes = 0;
    use_device(lq_cuda(backend));
    return cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess ? free_bytes : 0;
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
    use_device(cuda);
    cuda->scratch = (uint8_t *)scratch;
}

static lq_status cuda_sync(lq_backend *backend) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    use_device(cuda);
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "the work that was queued");
    std::lock_guard<std::mutex> hold(cuda->errors);
    if (cuda->error == cudaSuccess) return LQ_OK;
    return lq_cuda_fail(cuda->error == cudaErrorMemoryAllocation ? LQ_E_MEMORY : LQ_E_INTERNAL,
                        "device cuda:%d failed at '%s': %s; close the model and open it again", cuda->device,
                        cuda->failed_at, cudaGetErrorString(cuda->error));
}

static void cuda_end(lq_backend *backend) {
    lq_cuda(backend)->scratch = NULL;
    lq_cuda(backend)->owner.unlock();
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
    cudaFree(cuda->stage);
    cudaFree(cuda->grid_memory);
    if (cuda->stream != NULL) cudaStreamDestroy(cuda->stream);
    delete cuda;
}

static lq_backend_ops make_ops(void) {
    lq_backend_ops ops;
    ops.name = "cuda";
    ops.free = cuda_free;
    ops.alloc = cuda_alloc;
    ops.release = cuda_release;
    ops.settle = cuda_settle;
    ops.adopt = cuda_adopt;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.copy = cuda_copy;
    ops.available = cuda_available;
    ops.scratch_bytes = cuda_scratch_bytes;
    ops.begin = cuda_begin;
    ops.sync = cuda_sync;
    ops.end = cuda_end;
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
    ops.expert_sum = lq_cuda_expert_sum;
    ops.hadamard = lq_cuda_hadamard;
    ops.kv_store = lq_cuda_kv_store;
    ops.kv_pack = lq_cuda_kv_pack;
    ops.kv_gather = lq_cuda_kv_gather;
    ops.kv_masks = lq_cuda_kv_masks;
    ops.kv_received = lq_cuda_kv_received;
    ops.attention = lq_cuda_attention;
    return ops;
}

static const lq_backend_ops cuda_ops = make_ops();

/* All codebooks in one piece of device memory. */
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

/* Asked for its attributes, a kernel tells whether there is code for the device. */
static __global__ void any_kernel(void) {}

static cudaError_t check_code(uint32_t device) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice((int)device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, any_kernel);
    if (error != cudaSuccess) cudaGetLastError();
    return error;
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
    size_t free_bytes = 0, total_bytes = 0;
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
    out->compiled = check_code(device) == cudaSuccess;
    if (out->compiled && cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) out->free_bytes = free_bytes;
    return LQ_OK;
}

static lq_status set_up(lq_backend_cuda *cuda, const lq_gpu_device *facts) {
    cudaDeviceProp properties;
    cudaError_t error = check_code((uint32_t)cuda->device);
    if (error == cudaErrorNoKernelImageForDevice)
        return lq_cuda_fail(LQ_E_UNSUPPORTED,
                            "cuda:%d (%s) has compute capability %u.%u, this library was built for %s; build it again "
                            "with --arch %u%u",
                            cuda->device, facts->name, (unsigned)facts->major, (unsigned)facts->minor, LQ_CUDA_ARCHS,
                            (unsigned)facts->major, (unsigned)facts->minor);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, cuda->device);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return lq_cuda_fail(error == cudaErrorMemoryAllocation ? LQ_E_MEMORY : LQ_E_INTERNAL,
                            "device cuda:%d cannot be used: %s", cuda->device, cudaGetErrorString(error));
    cuda->n_multiprocessors = (uint32_t)properties.multiProcessorCount;
    lq_status status = upload_grids(cuda);
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
    library.version = LQ_GPU_LIBRARY_VERSION;
    library.struct_bytes = lq_gpu_struct_bytes();
    library.kind = "cuda";
    library.archs = LQ_CUDA_ARCHS;
    library.toolkit = (uint32_t)toolkit;
    library.count = library_count;
    library.look = library_look;
    library.create = library_create;
    return &library;
}
