/* bytes.h - little-endian values inside packed blocks: GGUF data may start at any address. */
#ifndef LQ_FORMATS_BYTES_H
#define LQ_FORMATS_BYTES_H

#include "core/half.h"

static inline float lq_read_half(const uint8_t bytes[2]) {
    return lq_half_to_float((uint16_t)(bytes[0] | bytes[1] << 8));
}

static inline uint32_t lq_read_u32(const uint8_t bytes[4]) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

#endif
