/* kv_cell.h - one full-precision token of one KV head: head_dim values, f16 or q8_0. */
#ifndef LQ_FORMATS_KV_CELL_H
#define LQ_FORMATS_KV_CELL_H

#include <stddef.h>
#include <stdint.h>

/* LQ_CELL_Q8_0: blocks of 32 values with a shorter last one, each an f16 d and then its int8 numbers q, x ~ d q;
 * d = max|x| / 127 rounded to f16, q = x / d rounded to nearest even, within -127..127; d = 0: all q are 0. */
typedef enum lq_cell_format { LQ_CELL_F16 = 0, LQ_CELL_Q8_0 = 1 } lq_cell_format;

#define LQ_CELL_BLOCK 32

static inline size_t lq_cell_bytes(lq_cell_format format, uint32_t head_dim) {
    if (format == LQ_CELL_F16) return 2 * (size_t)head_dim;
    return head_dim + 2 * (size_t)((head_dim + LQ_CELL_BLOCK - 1) / LQ_CELL_BLOCK);
}

#endif
