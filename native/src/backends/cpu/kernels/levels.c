/* levels.c - the choice of a SIMD level. The tables of levels are in x86/features.c and arm/features.c. */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"

#define MAX_LEVELS 8

#if !defined(__x86_64__) && !defined(__aarch64__) /* only plain C */
static bool always(void) { return true; }

const lq_cpu_level_desc *lq_cpu_level_table(size_t *n) {
    static const lq_cpu_level_desc scalar = {"scalar", NULL, always, lq_kernels_init_scalar};
    *n = 1;
    return &scalar;
}
#endif

/* ---- the choice, made once per process by the first caller */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const lq_cpu_level_desc *levels;
static size_t n_levels;
static bool usable[MAX_LEVELS];
static size_t best; /* the last usable level */
static char usable_names[128];
static char wanted[64]; /* the first characters of LQ_CPU; "": it is not set */

/* The level must exist. */
static size_t level_index(const char *name) {
    size_t i = 0;
    while (strcmp(levels[i].name, name) != 0) i++;
    return i;
}

static void look(void) {
    levels = lq_cpu_level_table(&n_levels);
    assert(n_levels <= MAX_LEVELS);
    for (size_t i = 0; i < n_levels; i++) {
        usable[i] = levels[i].supported();
        if (!usable[i]) continue;
        if (i > 0) strncat(usable_names, ",", sizeof(usable_names) - strlen(usable_names) - 1);
        strncat(usable_names, levels[i].name, sizeof(usable_names) - strlen(usable_names) - 1);
        best = i;
    }
    const char *forced = getenv("LQ_CPU");
    if (forced != NULL) strncat(wanted, forced, sizeof(wanted) - 1);
}

/* Finds a level by name. NULL: the one in LQ_CPU, or the best. */
static lq_status find_level(const char *name, size_t *index) {
    pthread_once(&once, look);
    const char *source = name == NULL ? "LQ_CPU" : "CPU level";
    if (name == NULL) name = wanted[0] != '\0' ? wanted : levels[best].name;
    for (size_t i = 0; i < n_levels; i++) {
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
