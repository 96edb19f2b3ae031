/* simd.h - what the SIMD kernels ask of compiler and memory. Their tiles are small loops over registers, which have to
 * be inlined with constant bounds and unrolled completely; and memory that they read once a token comes in time only if
 * it is asked for some time before, little by little: a core keeps track of a few dozen requests, and more hold it up.
 */
#ifndef LQ_CPU_SIMD_H
#define LQ_CPU_SIMD_H

#include <stddef.h>
#include <stdint.h>

#define LQ_INLINE static inline __attribute__((always_inline))

/* In front of a loop with a constant number of rounds. */
#ifdef __clang__
#define LQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LQ_UNROLL _Pragma("GCC unroll 64")
#endif

/* Asks for n_bytes that lie `ahead` bytes behind p, which need not be there. */
LQ_INLINE void lq_ask_for(const void *p, ptrdiff_t ahead, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64) __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead + i));
}

#define LQ_STREAM_AHEAD 4096 /* bytes, in memory that is read from one end to the other */

#endif
