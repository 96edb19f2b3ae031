/* features.c - the levels of x86-64: which of them CPU and operating system run, and the kernels that each adds. */
#include <cpuid.h>

#include "backends/cpu/kernels/kernels.h"

/* ---- what the processor says */

static bool always(void) { return true; }

/* XCR0 says which registers the operating system saves: bits 1, 2 are xmm, ymm; 5, 6, 7 are mask registers and zmm. */
#define XCR0_YMM 0x06u
#define XCR0_ZMM 0xe6u

static bool os_saves(unsigned mask) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

static bool has_avx2(void) {
    unsigned a, b, c, d;
    unsigned leaf1 = bit_FMA | bit_F16C | bit_AVX;
    if (!os_saves(XCR0_YMM) || !__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0;
}

static bool has_avx512(void) {
    unsigned a, b, c, d;
    unsigned leaf7 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    if (!has_avx2() || !os_saves(XCR0_ZMM)) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf7) == leaf7;
}

static bool has_avx512vnni(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & bit_AVX512VNNI) != 0;
}

/* ---- what each level adds to those before it */

static void init_avx2(lq_kernels *kernels) {
    lq_kernels_init_avx2_dot(kernels);
    lq_kernels_init_avx2_ops(kernels);
    lq_kernels_init_avx2_attn(kernels);
    lq_kernels_init_avx2_attn_f16(kernels);
    lq_kernels_init_avx2_strip(kernels);
    lq_kernels_init_avx2_peak(kernels);
}

static void init_avxvnni(lq_kernels *kernels) {
    lq_kernels_init_avxvnni_dot(kernels);
    lq_kernels_init_avxvnni_attn(kernels);
    lq_kernels_init_avxvnni_strip(kernels);
    lq_kernels_init_avxvnni_peak(kernels);
}

static void init_avx512(lq_kernels *kernels) {
    lq_kernels_init_avx512_dot(kernels);
    lq_kernels_init_avx512_ops(kernels);
    lq_kernels_init_avx512_attn(kernels);
    lq_kernels_init_avx512_attn_f16(kernels);
    lq_kernels_init_avx512_strip(kernels);
    lq_kernels_init_avx512_peak(kernels);
}

static void init_avx512vnni(lq_kernels *kernels) {
    lq_kernels_init_avx512vnni_dot(kernels);
    lq_kernels_init_avx512vnni_attn(kernels);
    lq_kernels_init_avx512vnni_strip(kernels);
    lq_kernels_init_avx512vnni_peak(kernels);
}

static const lq_cpu_level_desc levels[] = {
    {"scalar", NULL, always, lq_kernels_init_scalar},
    {"avx2", "scalar", has_avx2, init_avx2},
    {"avxvnni", "avx2", has_avxvnni, init_avxvnni},
    {"avx512", "avx2", has_avx512, init_avx512},
    {"avx512vnni", "avx512", has_avx512vnni, init_avx512vnni},
};

const lq_cpu_level_desc *lq_cpu_level_table(size_t *n_levels) {
    *n_levels = sizeof levels / sizeof levels[0];
    return levels;
}
