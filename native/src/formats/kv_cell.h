/* kv_cell.h - the KV cell: one token's head_dim keys or values of one KV head, stored as f16, q8_0 or q4_0. */
#ifndef LQ_FORMATS_KV_CELL_H
#define LQ_FORMATS_KV_CELL_H

#include <stddef.h>
#include <stdint.h>

/* LQ_CELL_Q8_0: blocks of 32 values (the last may be shorter), each an f16 d and then its int8 numbers q, x ~ d q;
 * d = max|x| / 127 rounded to f16, q = x / d rounded to nearest even, within -127..127; d = 0: all q are 0.
 * LQ_CELL_Q4_0: Q4_0 blocks as in model files, the last one padded with zeros: e = -x / 8 for the x of largest
 * magnitude (the first of them), d = e rounded to f16, q = floor(x (1 / e) + 8.5) within 0..15, x ~ d (q - 8); e = 0:
 * all q are 8. If a value is not finite, the first d of its quantized cell is the NaN LQ_CELL_NAN. */
typedef enum lq_cell_format { LQ_CELL_F16 = 0, LQ_CELL_Q8_0 = 1, LQ_CELL_Q4_0 = 2 } lq_cell_format;

#define LQ_CELL_BLOCK 32
#define LQ_CELL_NAN 0x7e00

static inline size_t lq_cell_bytes(lq_cell_format format, uint32_t head_dim) {
    size_t n_blocks = (head_dim + (size_t)LQ_CELL_BLOCK - 1) / LQ_CELL_BLOCK;
    if (format == LQ_CELL_F16) return 2 * (size_t)head_dim;
    return format == LQ_CELL_Q8_0 ? head_dim + 2 * n_blocks : n_blocks * (2 + LQ_CELL_BLOCK / 2);
}

#endif
