/* features.c - the levels of 64-bit ARM: which of them CPU and operating system run, and the kernels that each adds. */
#include "backends/cpu/kernels/kernels.h"

/* ---- what the processor says */

static bool always(void) { return true; }

#if defined(__linux__)
#include <sys/auxv.h>

/* Bits of Linux's interface (arch/arm64/include/uapi/asm/hwcap.h). Old C libraries have no names for the newer ones. */
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
#else /* no way to ask: only what every 64-bit ARM processor has */
static bool has_dotprod(void) { return false; }

static bool has_i8mm(void) { return false; }
#endif

/* ---- what each level adds to those before it */

static void init_neon(lq_kernels *kernels) {
    lq_kernels_init_neon_dot(kernels);
    lq_kernels_init_neon_ops(kernels);
    lq_kernels_init_neon_attn(kernels);
    lq_kernels_init_neon_attn_f16(kernels);
}

static void init_dotprod(lq_kernels *kernels) {
    lq_kernels_init_dotprod_dot(kernels);
    lq_kernels_init_dotprod_attn(kernels);
}

static const lq_cpu_level_desc levels[] = {
    {"scalar", NULL, always, lq_kernels_init_scalar},
    {"neon", "scalar", always, init_neon},
    {"dotprod", "neon", has_dotprod, init_dotprod},
    {"i8mm", "dotprod", has_i8mm, lq_kernels_init_i8mm_dot},
};

const lq_cpu_level_desc *lq_cpu_level_table(size_t *n_levels) {
    *n_levels = sizeof levels / sizeof levels[0];
    return levels;
}
