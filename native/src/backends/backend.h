/* backend.h - what model/ and kv/ know of a device: memory, and about a dozen operations on f32 activations.
 *
 * Activations are row-major [n_tokens][width], f32, in device memory; pointers to device memory are plain pointers that
 * only a backend may follow. Operations are queued in order and cannot fail once their sizes were planned; a device
 * that can break reports it in sync(). One owner at a time: begin() ... end() around a run of operations. */
#ifndef LQ_BACKEND_H
#define LQ_BACKEND_H

#include <stdbool.h>

#include "core/ranked.h"
#include "core/status.h"
#include "formats/formats.h"
#include "formats/kv_cell.h"
#include "formats/kv_page.h"
#include "kv/policy.h"

typedef struct lq_backend lq_backend;

/* A weight matrix in device memory: n_rows outputs of n_cols inputs, rows row_bytes apart. A vector has one row. */
typedef struct lq_weight {
    const void *data; /* NULL: the model has no such tensor */
    const lq_format *format;
    uint32_t n_rows;
    uint32_t n_cols;
    size_t row_bytes;
    /* Factors of its products, in device memory: [1], or one for each matrix of a stack. NULL: none. matmul() and
     * expert_matmul() leave them to scale(). */
    const float *factors;
} lq_weight;

/* One product of a group that shares its input: y[t][r] = sum_c weight[r][c] x[t][c] (+ bias[r]). */
typedef struct lq_matmul {
    const lq_weight *weight;
    const float *bias; /* [n_rows] or NULL */
    float *y;          /* [n_x][n_rows] */
} lq_matmul;

#define LQ_MATMUL_MAX_GROUP 3

typedef enum lq_rope_style {
    LQ_ROPE_PAIRS = 0, /* rotates (x[2i], x[2i+1]) */
    LQ_ROPE_HALVES = 1 /* rotates (x[i], x[i + n_rot/2]) */
} lq_rope_style;

typedef enum lq_activation { LQ_ACT_SILU = 0, LQ_ACT_GELU_TANH = 1 } lq_activation;

/* A run of full-precision tokens of one layer: [n_kv_heads][...] cells of head_dim values. */
typedef struct lq_attn_run {
    lq_cell_format format;
    uint8_t *k;
    uint8_t *v;
    uint64_t head_bytes; /* from one head's first cell to the next one's */
    uint32_t n_cells;
    bool history;  /* every query sees every cell, and pos0 says nothing: positions need not follow each other */
    uint32_t pos0; /* position of the first cell; the others follow */
} lq_attn_run;

/* Packed pages of one layer: pages first_page to end_page - 1; page p has slot p % n_slots in the tables. Bit t of a
 * mask: token t of the page is kept in full precision elsewhere, skip its code. All pointers are to device memory. */
typedef struct lq_kv_pages {
    const lq_page_format *format;
    uint8_t *const *frames; /* [n_slots] memory of a page, of all layers; this layer's block (formats/kv_page.h) is
                               block_offset bytes from there */
    uint64_t block_offset;
    uint64_t *masks; /* [n_kv_heads][n_slots] */
    uint32_t n_slots;
    uint32_t first_page;
    uint32_t end_page;
    uint16_t *order; /* [n_kv_heads][head_dim] page order of key channels */
} lq_kv_pages;

static inline uint8_t *lq_kv_page_block(const lq_kv_pages *pages, uint32_t page) {
    return pages->frames[page % pages->n_slots] + pages->block_offset;
}

static inline uint64_t *lq_kv_page_mask(const lq_kv_pages *pages, uint32_t kv_head, uint32_t page) {
    return pages->masks + (size_t)kv_head * pages->n_slots + page % pages->n_slots;
}

#define LQ_ATTN_MAX_RUNS 4

/* Causal attention of n_tokens queries at positions pos0.. over the unmasked tokens of all pages and the cells of all
 * runs, one softmax over their union. A query at p sees all pages and, of runs that are no history, cells at positions
 * in (p - window, p]; window 0 = no lower limit. */
typedef struct lq_attention {
    float *q;   /* [n_tokens][n_heads][head_dim] */
    float *out; /* the same shape */
    uint32_t n_tokens;
    uint32_t pos0;
    uint32_t n_heads;
    uint32_t n_kv_heads; /* divides n_heads; query head h reads KV head h / (n_heads / n_kv_heads) */
    uint32_t head_dim;
    uint32_t window;
    float scale;
    float softcap;            /* c > 0: scores become c tanh(score / c) after scaling; 0 = they stay */
    const lq_kv_pages *pages; /* NULL: none */
    uint32_t n_runs;
    lq_attn_run runs[LQ_ATTN_MAX_RUNS];
    /* NULL, or [n_kv_heads][cells of all runs, in their order]: overwritten with the sum over all queries of the chunk
     * and all query heads of the group of the probability that each cell got. */
    float *accumulated;
} lq_attention;

/* Codes n_pages pages of all KV heads. The cells of the sources, one after the other, are the pages' tokens. */
typedef struct lq_kv_pack {
    const lq_kv_pages *pages;
    uint32_t first_page;
    uint32_t n_pages;
    bool learn_order; /* first writes pages->order, from the first of these pages */
    uint32_t n_kv_heads;
    uint32_t n_sources;
    lq_attn_run sources[2]; /* f16 */
} lq_kv_pack;

/* Copies cells, keys and values, changing their format where it differs: cell i of head h of dst becomes the cell that
 * columns[h * head_columns + i] counts over the sources, one after the other; without columns, cell first + i. Columns
 * are in device memory and rise. dst may be the first source itself, as long as no cell is read after it was
 * overwritten (columns[i] >= i). */
typedef struct lq_kv_gather {
    lq_attn_run dst;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_cells;
    const uint32_t *columns; /* NULL: consecutive cells, from `first` on */
    uint32_t head_columns;   /* from one head's first column to the next one's */
    uint32_t first;
    uint32_t n_sources;
    lq_attn_run sources[3];
} lq_kv_gather;

/* Masks of all pages: exactly the bits of the tokens at the listed positions are set; tokens of pages that are gone are
 * left out. */
typedef struct lq_kv_masks {
    const lq_kv_pages *pages;
    uint32_t n_kv_heads;
    const uint32_t *positions; /* in device memory: [n_kv_heads] rows of n_tokens, head_positions apart */
    size_t head_positions;
    uint32_t n_tokens;
    uint32_t pos0; /* position of page 0's first token */
} lq_kv_masks;

/* Adds to each head's accumulated attention, [n_kv_heads] rows head_floats apart, what a chunk's queries gave, now:
 * [n_kv_heads][n_columns]. Columns from n_before on are new, and become what they were given. */
typedef struct lq_kv_accumulated {
    float *so_far;
    uint64_t head_floats;
    float *now;
    uint32_t n_kv_heads;
    uint32_t n_before;
    uint32_t n_columns;
} lq_kv_accumulated;

/* Chooses, for each KV head, which tokens of a layer stay in full precision (kv/policy.h). The tokens to choose from
 * are those of the old overlay, whose positions are listed, then the ones that follow each other from position pos0 on.
 * Of those that stay the first n_overlay become the new overlay. All arrays are in device memory. */
typedef struct lq_kv_selection {
    const lq_kv_policy *policy;
    uint32_t window;
    uint32_t n_kv_heads;
    uint32_t n_tokens; /* to choose from */
    uint32_t n_listed; /* of the old overlay */
    uint32_t pos0;
    uint32_t n_full;       /* that stay: lq_kv_n_full(n_tokens, window) */
    uint32_t n_overlay;    /* at most n_full */
    uint32_t *positions;   /* [n_kv_heads] rows head_positions apart: of the old overlay, then of the new one */
    size_t head_positions; /* at least n_listed and n_overlay */
    uint32_t *columns; /* [n_kv_heads][n_full]: written, the indices of those that stay among the n_tokens, rising */
    /* Accumulated attention, where the policy needs it: added up as kv_accumulated() does, but so_far then holds the
     * sums of the first n_sinks columns, which always stay, and of the n_full tokens. now is overwritten. */
    lq_kv_accumulated accumulated;
    uint32_t n_sinks; /* columns before those of the n_tokens */
} lq_kv_selection;

/* Which experts of a layer take which tokens: n_used choices a token, in order of experts. Arrays in device memory. */
typedef struct lq_expert_choice {
    uint32_t n_tokens;
    uint32_t n_experts;
    uint32_t n_used;     /* 1..n_experts */
    const float *router; /* [n_tokens][n_experts] logits */
    uint32_t *first;     /* [n_experts + 1] choices of expert e: first[e] .. first[e + 1] - 1 */
    uint32_t *token;     /* [n_tokens * n_used] whose choice it is; rising within an expert */
    float *weight;       /* [n_tokens * n_used] part of the expert in the token's output */
    bool apart;          /* what a choice gives must not depend on how many others take its expert */
} lq_expert_choice;

/* One sequence of a short convolution: the next n_tokens tokens, after those that `before` comes from. */
typedef struct lq_conv_sequence {
    const float *bcx;    /* [n_tokens][3 * n_channels]: a token's gates b, then its gates c, then its inputs x */
    const float *before; /* [n_taps - 1][n_channels]: b x of the tokens before, the oldest first; 0 before the text */
    float *bx;           /* [n_tokens][n_channels], written: b x of each token */
    float *y;            /* [n_tokens][n_channels] */
    uint32_t n_tokens;
} lq_conv_sequence;

#define LQ_CONV_MAX_TAPS 16

/* A causal convolution of each channel by itself, gated before and after: y = c conv(b x), where the convolution of a
 * token's channel is the sum of weights[i] times b x of the token n_taps - 1 - i places back, for i = 0, 1, ... in this
 * order. The sums of a token do not depend on how many tokens come with it. For a caller that takes in only the first n
 * of the tokens, the next `before` is the last n_taps - 1 rows of `before` followed by the first n rows of bx. */
typedef struct lq_short_conv {
    const float *weights; /* [n_channels][n_taps] */
    uint32_t n_channels;
    uint32_t n_taps; /* 1 to LQ_CONV_MAX_TAPS */
    uint32_t n_sequences;
    const lq_conv_sequence *sequences; /* in host memory; none reads what another writes */
} lq_short_conv;

/* Largest sizes of a session's operations, from which a backend plans its scratch memory. */
typedef struct lq_scratch_spec {
    uint32_t n_tokens; /* of one chunk */
    uint32_t n_cols;   /* widest matmul input */
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_accumulated; /* most cells whose accumulated attention is asked for; 0 = never asked for */
    uint32_t n_used;        /* experts of a token; 0 = no expert operations */
    uint32_t n_together;    /* attentions in one operation; 0 = 1 */
} lq_scratch_spec;

/* Products of at least so many rows of x, and at most lq_backend_ops.most_alike, give each row the same bits, whatever
 * the number of the others. */
#define LQ_LEAST_ALIKE 3

typedef struct lq_backend_ops {
    const char *name;
    uint32_t most_alike;
    void (*free)(lq_backend *);

    /* ---- memory */
    lq_status (*alloc)(lq_backend *, uint64_t n_bytes, const char *purpose, void **out); /* zeroed, 64-byte aligned */
    void (*release)(lq_backend *, void *memory, uint64_t n_bytes);
    /* Hint: this allocation is now full and will be read often (the CPU asks for huge pages). */
    void (*hint_full)(lq_backend *, void *memory, uint64_t n_bytes);
    /* A whole file in memory, of which adopt() will ask for parts: a device that reads the host's memory as its own may
     * do so instead of copying. LQ_E_UNSUPPORTED: it cannot, and was told to (LQ_CUDA_WEIGHTS). */
    lq_status (*map)(lq_backend *, const void *host, uint64_t n_bytes);
    /* Makes host bytes that outlive the backend usable on the device: the CPU reads them in place. */
    lq_status (*adopt)(lq_backend *, const void *host, uint64_t n_bytes, const void **out);
    void (*upload)(lq_backend *, void *dst, const void *host, size_t n_bytes);
    void (*download)(lq_backend *, void *host, const void *src, size_t n_bytes);
    void (*copy)(lq_backend *, void *dst, const void *src, size_t n_bytes); /* within device memory */
    uint64_t (*available)(lq_backend *);                                    /* bytes that can be had; 0 = unknown */
    uint64_t (*scratch_bytes)(lq_backend *, const lq_scratch_spec *);

    /* ---- order */
    void (*begin)(lq_backend *, void *scratch); /* scratch of scratch_bytes() for the operations up to end() */
    lq_status (*sync)(lq_backend *);            /* all queued operations are done, or what went wrong */
    void (*end)(lq_backend *);
    /* Operations until end() may leave out what is not done yet once should_stop says so, which may never change its
     * mind: what they write is then worth nothing. NULL: the device has no need, its operations are short. */
    void (*watch)(lq_backend *, bool (*should_stop)(const void *context), const void *context);

    /* ---- operations */
    void (*embed)(lq_backend *, float *dst, const lq_weight *table, const int32_t *tokens, uint32_t n_tokens,
                  float scale);
    void (*rms_norm)(lq_backend *, float *dst, const float *x, const float *weight, uint32_t n_rows, uint32_t n_cols,
                     float eps);
    void (*matmul)(lq_backend *, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x);
    /* rotations: [n_tokens][n_rot / 2] pairs (cos, sin); the first n_rot of each head's values are rotated, in place */
    void (*rope)(lq_backend *, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                 const float *rotations, lq_rope_style style);
    void (*glu)(lq_backend *, float *gate, const float *up, size_t n,
                lq_activation activation);                                        /* gate = act(gate) up */
    void (*add)(lq_backend *, float *dst, const float *x, float scale, size_t n); /* dst += scale x */
    void (*softcap)(lq_backend *, float *x, float cap, size_t n);                 /* x = cap tanh(x / cap) */
    /* The n_used experts with the largest router logits of each token (equal ones: the lower index), weighted by the
     * softmax over these; fills first, token, weight. */
    void (*route)(lq_backend *, const lq_expert_choice *choice);
    /* dst[i] = x[token[i]], rows of n_cols values, for all choices */
    void (*expert_gather)(lq_backend *, float *dst, const float *x, const lq_expert_choice *choice, uint32_t n_cols);
    /* As matmul, one row of x and y a choice, with the matrix of the choice's expert: those of a layer lie one after
     * the other from weight->data on. No biases. */
    void (*expert_matmul)(lq_backend *, const lq_matmul *group, uint32_t n_group, const float *x,
                          const lq_expert_choice *choice);
    /* x times factors[0], rows of n_cols values, in place; with a choice, row i times the factor of choice i's expert.
     */
    void (*scale)(lq_backend *, float *x, uint32_t n_rows, uint32_t n_cols, const float *factors,
                  const lq_expert_choice *choice);
    /* dst[t] = sum of weight[i] x[i] over the choices i of token t */
    void (*expert_sum)(lq_backend *, float *dst, const float *x, const lq_expert_choice *choice, uint32_t n_cols);
    /* Rotates rows of head_dim values in place (lq_hadamard, its own inverse). */
    void (*hadamard)(lq_backend *, float *x, uint32_t n_rows, uint32_t head_dim);
    /* Stores n_tokens rows of [n_kv_heads][head_dim] in cells cell0.. of dst (wrapping at n_cells). */
    void (*kv_store)(lq_backend *, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                     uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells);
    void (*kv_pack)(lq_backend *, const lq_kv_pack *args);
    void (*kv_gather)(lq_backend *, const lq_kv_gather *args);
    void (*kv_select)(lq_backend *, const lq_kv_selection *args);
    void (*kv_masks)(lq_backend *, const lq_kv_masks *args);
    void (*kv_accumulated)(lq_backend *, const lq_kv_accumulated *args);
    /* n_args attentions, none of which reads what another writes; several must be of one token each. */
    void (*attention)(lq_backend *, const lq_attention *args, uint32_t n_args);
    /* The k (1 to LQ_BEST_MOST) largest of n numbers into host memory, larger ones first, of equal ones the lower index
     * first; NaN and -infinity never count. Returns how many; waits for them. At any time, not only between begin() and
     * end(). NULL: device memory is the host's, which can look for itself. */
    uint32_t (*best)(lq_backend *, const float *x, uint32_t n, uint32_t k, lq_ranked *out);
    void (*short_conv)(lq_backend *, const lq_short_conv *args);
} lq_backend_ops;

/* A backend's struct starts with this. */
struct lq_backend {
    const lq_backend_ops *ops;
};

/* n_threads 0 = physical cores. Errors: LQ_E_UNSUPPORTED (LQ_CPU names a level that cannot run), LQ_E_MEMORY, LQ_E_ARG.
 */
lq_status lq_backend_cpu_create(uint32_t n_threads, lq_backend **out);
uint32_t lq_backend_cpu_n_threads(const lq_backend *backend);

#endif
