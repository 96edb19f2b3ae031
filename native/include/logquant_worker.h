/* logquant_worker.h - threads and scratch memory that work on LogQuant caches in the caller's memory: for frameworks
 * that hold keys and values in tensors of their own.
 *
 * SPDX-License-Identifier: MIT
 *
 * Conventions as in logquant.h; terms and layouts: docs/format.md. The caller keeps a layer's cells, pages, masks and
 * orders, and decides which tokens stay; a worker stores tokens as f16 cells, codes pages, and computes attention. No
 * call keeps a pointer to the caller's memory. KV cache types that do not select tokens (q8_0, f16 ...) have no worker.
 */
#ifndef LOGQUANT_WORKER_H
#define LOGQUANT_WORKER_H

#include "logquant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lq_kv_worker lq_kv_worker;

typedef struct lq_kv_worker_options {
    uint32_t struct_size;
    uint32_t n_heads; /* query heads, a multiple of n_kv_heads */
    uint32_t n_kv_heads;
    uint32_t head_dim;  /* a multiple of 8 */
    uint32_t n_chunk;   /* tokens of one call, at most; 0 = 512 */
    uint32_t n_threads; /* 0 = physical cores */
    lq_kv_options kv;
} lq_kv_worker_options;

/* What the caller's memory has to look like. */
typedef struct lq_kv_worker_info {
    uint32_t struct_size;
    uint32_t n_chunk;
    uint32_t overlay_cell_bytes; /* one token of one head in the overlay's format; an f16 cell has 2 head_dim */
    /* A page's block holds all KV heads: [head] key codes, [head] value codes, [head] scales, padded to 64 bytes. The
     * first three sizes are bytes of one head, block_bytes is the whole block. All are 0 where drops is set. */
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint32_t scale_bytes;
    uint32_t block_bytes;
    uint32_t drops; /* nonzero: tokens that are given up are forgotten, there are no pages */
    uint32_t least_squares;
    uint32_t f16_scales;
    uint32_t rotates_values;
    uint32_t needs_accumulated; /* nonzero: tokens are selected by accumulated attention */
    lq_kv_options kv;           /* all settings of the type; strings are borrowed from the worker */
} lq_kv_worker_info;

/* Cells of one layer, 2-byte aligned: [n_kv_heads] runs of n_cells, each head_bytes after the one before. */
typedef struct lq_kv_worker_cells {
    const void *k;
    const void *v;
    uint64_t head_bytes;
    uint32_t n_cells; /* 0: the pointers are not read */
} lq_kv_worker_cells;

/* Attention for the queries of the last n_tokens cells of `chunk`. A query sees all cells but those of later tokens in
 * the chunk, and the codes of all page tokens whose mask bit is clear. */
typedef struct lq_kv_worker_attention {
    uint32_t struct_size;
    uint32_t n_tokens;
    const float *q; /* [n_tokens][n_heads][head_dim] */
    float *out;     /* the same shape; rotated back where the type rotates values */
    float scale;
    float softcap;        /* c > 0: scores become c tanh(score / c) after scaling; 0 = no cap */
    const uint8_t *pages; /* [n_pages] blocks, 64-byte aligned */
    uint32_t n_pages;
    uint32_t mask_stride;  /* from one head's masks to the next one's, at least n_pages */
    const uint64_t *masks; /* [n_kv_heads][mask_stride]: bit t set, token t of the page is a cell of the overlay */
    const uint16_t *order; /* [n_kv_heads][head_dim]: the key channel at each index of a page */
    lq_kv_worker_cells sinks;
    lq_kv_worker_cells overlay; /* in the overlay's format; the other cells are f16 */
    lq_kv_worker_cells open;
    lq_kv_worker_cells chunk;
    /* NULL, or a buffer [n_kv_heads][cells of all four, in this order]: receives the probability that each cell got,
     * summed over the queries and the query heads of the group. */
    float *accumulated;
} lq_kv_worker_attention;

LQ_API void lq_kv_worker_options_init(lq_kv_worker_options *options);
/* Errors: LQ_E_ARG, LQ_E_UNSUPPORTED, LQ_E_MEMORY. */
LQ_API lq_status lq_kv_worker_create(const lq_kv_worker_options *options, lq_kv_worker **out);
LQ_API void lq_kv_worker_close(lq_kv_worker **worker);
/* info->struct_size must be set. */
LQ_API lq_status lq_kv_worker_get_info(const lq_kv_worker *worker, lq_kv_worker_info *info);

/* For all functions below: one thread at a time; LQ_E_ARG if the arguments do not fit together. */

/* Stores k (after rope) and v, [n_tokens][n_kv_heads][head_dim], as f16 cells [n_kv_heads][n_tokens][head_dim]; rotates
 * values where the type does. n_tokens is at most n_chunk. */
LQ_API lq_status lq_kv_worker_store(lq_kv_worker *worker, const float *k, const float *v, uint32_t n_tokens,
                                    uint16_t *k_cells, uint16_t *v_cells);
/* Codes n_pages pages from the first 64 n_pages of these f16 cells. pages: [n_pages] blocks, 64-byte aligned. order:
 * [n_kv_heads][head_dim]; if learn_order is not 0, it is written first, from the first page. */
LQ_API lq_status lq_kv_worker_pack(lq_kv_worker *worker, const lq_kv_worker_cells *cells, uint32_t n_pages,
                                   uint32_t learn_order, uint16_t *order, uint8_t *pages);
LQ_API lq_status lq_kv_worker_attend(lq_kv_worker *worker, const lq_kv_worker_attention *args);

LQ_API size_t lq_sizeof_kv_worker_options(void);
LQ_API size_t lq_sizeof_kv_worker_info(void);
LQ_API size_t lq_sizeof_kv_worker_attention(void);

#ifdef __cplusplus
}
#endif

#endif
