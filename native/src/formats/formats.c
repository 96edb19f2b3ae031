/* formats.c - the table of formats.def, and decoding by type number. */
#include "formats/formats.h"

#include <inttypes.h>

#include "core/status.h"
#include "logquant_gguf.h"

/* Declared here as functions, so that a new format needs no include line. */
#define LQ_FORMAT(id, name, number, block_len, block_bytes)                                                            \
    void lq_dequantize_##id(float *dst, const void *src, size_t n_values);                                             \
    _Static_assert(number < LQ_TYPE_COUNT, #name " needs a larger LQ_TYPE_COUNT");
#include "formats/formats.def"
#undef LQ_FORMAT

static const lq_format formats[LQ_TYPE_COUNT] = {
#define LQ_FORMAT(id, name, number, block_len, block_bytes)                                                            \
    [number] = {number, #name, block_len, block_bytes, lq_dequantize_##id},
#include "formats/formats.def"
#undef LQ_FORMAT
};

const lq_format *lq_format_find(int32_t type) {
    if (type < 0 || type >= LQ_TYPE_COUNT || formats[type].name == NULL) return NULL;
    return &formats[type];
}

lq_status lq_dequantize(int32_t type, const void *src, uint64_t src_bytes, float *dst, uint64_t n_values) {
    const lq_format *format = lq_format_find(type);
    if (format == NULL)
        return lq_fail(LQ_E_UNSUPPORTED, "tensor type %" PRId32 " is not one this build can decode", type);
    if (n_values % format->block_len != 0)
        return lq_fail(LQ_E_ARG, "n_values: %" PRIu64 " is not a multiple of %" PRIu32 ", the block length of %s",
                       n_values, format->block_len, format->name);
    if (src_bytes % format->block_bytes != 0 || src_bytes / format->block_bytes != n_values / format->block_len)
        return lq_fail(LQ_E_ARG,
                       "src_bytes: %" PRIu64 " %s values take %" PRIu64 " blocks of %" PRIu32 " bytes, not %" PRIu64
                       " bytes",
                       n_values, format->name, n_values / format->block_len, format->block_bytes, src_bytes);
    if (n_values > SIZE_MAX / sizeof(float))
        return lq_fail(LQ_E_ARG, "n_values: %" PRIu64 " floats do not fit into memory", n_values);
    if (n_values == 0) return LQ_OK;
    if (src == NULL || dst == NULL) return lq_fail(LQ_E_ARG, "%s is NULL", src == NULL ? "src" : "dst");
    format->dequantize(dst, src, (size_t)n_values);
    return LQ_OK;
}
