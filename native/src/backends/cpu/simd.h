/* simd.h - the two compiler hints that the SIMD kernels need: their tiles are small loops over registers, which have to
 * be inlined with constant bounds and unrolled completely. */
#ifndef LQ_CPU_SIMD_H
#define LQ_CPU_SIMD_H

#define LQ_INLINE static inline __attribute__((always_inline))

/* In front of a loop with a constant number of rounds. */
#ifdef __clang__
#define LQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LQ_UNROLL _Pragma("GCC unroll 64")
#endif

#endif
