/* compat.cuh - the parts of CUDA that the kernels use, for two compilers: nvcc (CUDA 11.2 and newer, compute capability
 * 7.2 and newer), and any C++ compiler with the emulation in native/tests/cuda_emulation. */
#ifndef LQ_CUDA_COMPAT_CUH
#define LQ_CUDA_COMPAT_CUH

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "backends/gpu_library.h"
}

#ifdef __CUDACC__
#include <cuda_fp16.h>
/* Starts kernel<<<...>>>(arguments). Put a kernel whose template arguments contain a comma into parentheses. */
#define LQ_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                      \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
/* Declares name as a pointer to the block's dynamic shared memory. */
#define LQ_SHARED(type, name)                                                                                          \
    extern __shared__ uint4 lq_shared_memory[];                                                                        \
    type *name = reinterpret_cast<type *>(lq_shared_memory)
#else
#define LQ_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                      \
    lq_emulated_start(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); })
#define LQ_SHARED(type, name) type *name = reinterpret_cast<type *>(lq_emulated_self->shared)
#include "core/half.h"
#endif

#define LQ_DEVICE static __device__ __forceinline__
#define LQ_WARP 32
#define LQ_ALL_LANES 0xffffffffu

LQ_DEVICE float half_to_float(uint16_t bits) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    return lq_emulated_halves[bits];
#endif
}

LQ_DEVICE uint16_t float_to_half(float value) { /* to nearest, ties to even */
#ifdef __CUDACC__
    return __half_as_ushort(__float2half_rn(value));
#else
    return lq_float_to_half(value);
#endif
}

/* sum + the dot product of a's and b's four signed bytes */
LQ_DEVICE int dot4(int a, int b, int sum) {
#ifdef __CUDACC__
    return __dp4a(a, b, sum);
#else
    for (int i = 0; i < 4; i++) sum += (int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i);
    return sum;
#endif
}

/* Packs four bytes into a word, the first one lowest. */
LQ_DEVICE int pack4(int a, int b, int c, int d) {
    return (int)((uint32_t)(a & 255) | (uint32_t)(b & 255) << 8 | (uint32_t)(c & 255) << 16 | (uint32_t)d << 24);
}

LQ_DEVICE float warp_sum(float x) {
    for (int mask = LQ_WARP / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(LQ_ALL_LANES, x, mask);
    return x;
}

LQ_DEVICE float warp_max(float x) {
    for (int mask = LQ_WARP / 2; mask > 0; mask /= 2) {
        float other = __shfl_xor_sync(LQ_ALL_LANES, x, mask);
        x = other > x ? other : x;
    }
    return x;
}

/* c += a b, computed by a whole warp: a is 16 x 16 and b 16 x 8 signed bytes, c 16 x 8 integers. The lanes hold the
 * fragments of PTX's mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): with g = lane / 4, t = lane % 4,
 *   a[0]: row g, columns 4 t to 4 t + 3; a[1]: row g + 8; b: column g, rows 4 t to 4 t + 3;
 *   c[0], c[1]: row g, columns 2 t, 2 t + 1; c[2], c[3]: row g + 8.
 * Runs on tensor cores from compute capability 7.5 on; before, each lane gets the bytes it needs by shuffles. */
LQ_DEVICE void mma_16x8x16(int c[4], const int a[2], int b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[0]), "+r"(c[1])
        : "r"(a[0]), "r"(b));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[2]), "+r"(c[3])
        : "r"(a[1]), "r"(b));
#else
#ifndef __CUDACC__
    if (lq_emulated_tensor_cores()) {
        lq_emulated_mma_bytes(c, a, b);
        return;
    }
#endif
    int lane = (int)(threadIdx.x % LQ_WARP), row = lane / 4 * 4, column = lane % 4 * 2 * 4;
    for (int k = 0; k < 4; k++) {
        int upper = __shfl_sync(LQ_ALL_LANES, a[0], row + k), lower = __shfl_sync(LQ_ALL_LANES, a[1], row + k);
        int left = __shfl_sync(LQ_ALL_LANES, b, column + k), right = __shfl_sync(LQ_ALL_LANES, b, column + 4 + k);
        c[0] = dot4(upper, left, c[0]);
        c[1] = dot4(upper, right, c[1]);
        c[2] = dot4(lower, left, c[2]);
        c[3] = dot4(lower, right, c[3]);
    }
#endif
}

LQ_DEVICE uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
static inline uint32_t lq_divide_up(uint64_t a, uint32_t b) { return (uint32_t)((a + b - 1) / b); }

#endif
