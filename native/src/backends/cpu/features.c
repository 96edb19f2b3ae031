/* features.c - which SIMD levels this build has, which of them CPU and operating system run, and the choice of one. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/kernels.h"

/* ---- what the processor says */

static bool always(void) { return true; }

#if defined(__x86_64__)
#include <cpuid.h>

/* State the operating system saves, XCR0: bits 1, 2 = xmm, ymm; 5, 6, 7 = mask registers, zmm. */
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
    lq_kernels_init_avx512_strip(kernels);
    lq_kernels_init_avx512_peak(kernels);
}

static void init_avx512vnni(lq_kernels *kernels) {
    lq_kernels_init_avx512vnni_dot(kernels);
    lq_kernels_init_avx512vnni_attn(kernels);
    lq_kernels_init_avx512vnni_strip(kernels);
    lq_kernels_init_avx512vnni_peak(kernels);
}
#endif

#if defined(__aarch64__)

#if defined(__linux__)
#include <sys/auxv.h>

/* Bits of the kernel's interface (Linux, arch/arm64/include/uapi/asm/hwcap.h); C libraries may not name the newer. */
static bool has_dotprod(void) { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; }

static bool has_i8mm(void) { return has_dotprod() && (getauxval(AT_HWCAP2) & 1ul << 13) != 0; }
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static bool says(const char *name) {
    int value = 0;
    size_t n_bytes = sizeof value;
    return sysctlbyname(name, &value, &n_bytes, NULL, 0) == 0 && value != 0;
}

static bool has_dotprod(void) { return says("hw.optional.arm.FEAT_DotProd"); }

static bool has_i8mm(void) { return has_dotprod() && says("hw.optional.arm.FEAT_I8MM"); }
#else /* nobody to ask: what every 64-bit ARM processor has */
static bool has_dotprod(void) { return false; }

static bool has_i8mm(void) { return false; }
#endif

static void init_neon(lq_kernels *kernels) {
    lq_kernels_init_neon_dot(kernels);
    lq_kernels_init_neon_ops(kernels);
    lq_kernels_init_neon_attn(kernels);
}

static void init_dotprod(lq_kernels *kernels) {
    lq_kernels_init_dotprod_dot(kernels);
    lq_kernels_init_dotprod_attn(kernels);
}
#endif

static const lq_cpu_level_desc levels[] = {
    {"scalar", NULL, always, lq_kernels_init_scalar},
#if defined(__x86_64__)
    {"avx2", "scalar", has_avx2, init_avx2},          {"avxvnni", "avx2", has_avxvnni, init_avxvnni},
    {"avx512", "avx2", has_avx512, init_avx512},      {"avx512vnni", "avx512", has_avx512vnni, init_avx512vnni},
#elif defined(__aarch64__)
    {"neon", "scalar", always, init_neon},
    {"dotprod", "neon", has_dotprod, init_dotprod},
    {"i8mm", "dotprod", has_i8mm, lq_kernels_init_i8mm_dot},
#endif
};
#define N_LEVELS (sizeof(levels) / sizeof(levels[0]))

const lq_cpu_level_desc *lq_cpu_level_table(size_t *n_levels) {
    *n_levels = N_LEVELS;
    return levels;
}

/* ---- the choice, made once per process by whoever asks first */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool usable[N_LEVELS];
static size_t best; /* the last usable level */
static char usable_names[128];
static char wanted[64]; /* LQ_CPU when it was read, cut; "" = unset */

static size_t level_index(const char *name) { /* of one that exists */
    size_t i = 0;
    while (strcmp(levels[i].name, name) != 0) i++;
    return i;
}

static void look(void) {
    for (size_t i = 0; i < N_LEVELS; i++) {
        usable[i] = levels[i].supported();
        if (!usable[i]) continue;
        if (i > 0) strncat(usable_names, ",", sizeof(usable_names) - strlen(usable_names) - 1);
        strncat(usable_names, levels[i].name, sizeof(usable_names) - strlen(usable_names) - 1);
        best = i;
    }
    const char *forced = getenv("LQ_CPU");
    if (forced != NULL) strncat(wanted, forced, sizeof(wanted) - 1);
}

/* The level's index. name NULL = as LQ_CPU says, else the best. */
static lq_status find_level(const char *name, size_t *index) {
    pthread_once(&once, look);
    const char *source = name == NULL ? "LQ_CPU" : "CPU level";
    if (name == NULL) name = wanted[0] != '\0' ? wanted : levels[best].name;
    for (size_t i = 0; i < N_LEVELS; i++) {
        if (strcmp(name, levels[i].name) != 0) continue;
        if (!usable[i])
            return lq_fail(LQ_E_UNSUPPORTED, "%s: this CPU or operating system cannot run \"%s\"; use one of %s",
                           source, name, usable_names);
        *index = i;
        return LQ_OK;
    }
    return lq_fail(LQ_E_UNSUPPORTED, "%s: \"%s\" is not a level of this build; use one of %s", source, name,
                   usable_names);
}

static void init_level(lq_kernels *kernels, const lq_cpu_level_desc *level) {
    if (level->base != NULL) init_level(kernels, &levels[level_index(level->base)]);
    level->init(kernels);
}

lq_status lq_kernels_select(lq_kernels *kernels, const char *level) {
    size_t index = 0;
    LQ_TRY(find_level(level, &index));
    memset(kernels, 0, sizeof(*kernels));
    init_level(kernels, &levels[index]);
    kernels->level = levels[index].name;
    return LQ_OK;
}

lq_status lq_cpu_level(const char **level) {
    size_t index = 0;
    if (level == NULL) return lq_fail(LQ_E_ARG, "level is NULL");
    LQ_TRY(find_level(NULL, &index));
    *level = levels[index].name;
    return LQ_OK;
}

const char *lq_cpu_levels(void) {
    pthread_once(&once, look);
    return usable_names;
}
