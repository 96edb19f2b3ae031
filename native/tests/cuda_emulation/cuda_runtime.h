/* cuda_runtime.h - emulates enough of CUDA to run the backend's kernels on a CPU, for tests. The threads of a block are
 * fibers, which switch only at barriers and warp operations. The include path finds it before CUDA's own header.
 *
 * It detects barriers that not every thread reaches, host code that follows a pointer to device memory
 * (LQ_EMULATED_GUARD=1), and results that depend on which thread runs first (LQ_EMULATED_ORDER=reverse: a missing
 * barrier gives other numbers). It does not detect races that both orders hide, and says nothing about speed. */
#ifndef LQ_EMULATED_CUDA_RUNTIME_H
#define LQ_EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
/* Static is enough: blocks run one after the other, on the host thread that started them. */
#define __shared__ static thread_local

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct int4 {
    int x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};

#include "emulation.h"
#include "warp_mma.h"

#define threadIdx (lq_emulated_self->index)
#define blockIdx (lq_emulated_self->block)
#define blockDim (lq_emulated_self->block_dim)
#define gridDim (lq_emulated_self->grid)

template <class F> void lq_emulated_start(dim3 grid, dim3 block, size_t shared_bytes, const F &kernel) {
    lq_emulated_launch(
        grid, block, shared_bytes, [](const void *context) { (*static_cast<const F *>(context))(); }, &kernel);
}

static inline void __syncthreads() { lq_emulated_sync_block(); }
static inline void __syncwarp(unsigned = ~0u) { lq_emulated_gather(0); }

template <class T> T lq_emulated_move(T value, unsigned source) {
    uint64_t bits = 0;
    static_assert(sizeof value <= sizeof bits, "warp operations move up to 8 bytes");
    memcpy(&bits, &value, sizeof value);
    bits = lq_emulated_gather(bits)[source & 31];
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned, T value, int source) { return lq_emulated_move(value, (unsigned)source); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return lq_emulated_move(value, lq_emulated_lane() ^ (unsigned)mask);
}

static inline unsigned long long atomicOr(unsigned long long *at, unsigned long long bits) {
    unsigned long long before = *at;
    *at = before | bits;
    return before;
}

/* ---- arithmetic */

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* ---- the calls of CUDA's runtime that the backend makes; device memory is host memory */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorNotSupported = 801
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
typedef struct CUstream_st *cudaStream_t; /* CUDA's own type: the PTX build links blas.cpp with code from nvcc */
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, integrated;
    size_t totalGlobalMem;
};
struct cudaFuncAttributes {
    int ptxVersion;
};
enum { cudaStreamNonBlocking = 1 };
enum { cudaHostAllocDefault = 0 };
enum { cudaHostRegisterMapped = 2, cudaHostRegisterReadOnly = 8 };
enum cudaDeviceAttr { cudaDevAttrIntegrated = 18, cudaDevAttrPageableMemoryAccessUsesHostPageTables = 100 };

extern "C" {
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **memory, size_t n_bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaHostAlloc(void **memory, size_t n_bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t n_bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaHostGetDevicePointer(void **device, void *memory, unsigned flags);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t n_bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
}
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, F *) {
    attributes->ptxVersion = lq_emulated_capability();
    return cudaSuccess;
}

#endif
