/* arch.c - the table of architectures. */
#include "model/arch.h"

#include <string.h>

#define LQ_ARCH(name) extern const lq_arch lq_arch_##name;
#include "model/archs.def"
#undef LQ_ARCH

static const lq_arch *const archs[] = {
#define LQ_ARCH(name) &lq_arch_##name,
#include "model/archs.def"
#undef LQ_ARCH
};

static const char names[] =
#define LQ_ARCH(name) ", " #name
#include "model/archs.def"
#undef LQ_ARCH
    ;

lq_status lq_arch_find(const char *name, size_t name_bytes, const lq_arch **out) {
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++) {
        if (strlen(archs[i]->name) == name_bytes && memcmp(archs[i]->name, name, name_bytes) == 0) {
            *out = archs[i];
            return LQ_OK;
        }
    }
    return lq_fail(LQ_E_UNSUPPORTED, "architecture '%.*s' is not supported; this build runs: %s",
                   (int)(name_bytes < 60 ? name_bytes : 60), name, names + 2);
}
