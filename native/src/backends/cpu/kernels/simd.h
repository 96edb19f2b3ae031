/* simd.h - what SIMD kernels need from the compiler, and prefetching. A kernel's tiles are small loops over registers:
 * they must be inlined with constant bounds and unrolled completely. Memory that is read once per token must be
 * prefetched early and little by little: a core tracks a few dozen requests, and stalls on more. */
#ifndef LQ_CPU_SIMD_H
#define LQ_CPU_SIMD_H

#include <stddef.h>
#include <stdint.h>

#define LQ_INLINE static inline __attribute__((always_inline))

/* Goes in front of a loop with a constant number of rounds. */
#ifdef __clang__
#define LQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LQ_UNROLL _Pragma("GCC unroll 64")
#endif

/* Prefetches n_bytes that lie `ahead` bytes behind p. Nothing needs to be there. */
LQ_INLINE void lq_prefetch(const void *p, ptrdiff_t ahead, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead + i));
}

#define LQ_STREAM_AHEAD 4096 /* bytes to prefetch ahead in memory that is read sequentially */

#endif
