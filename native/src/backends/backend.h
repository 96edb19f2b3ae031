/* backend.h - what model/ and kv/ know of a device: memory, and operations on f32 activations.
 *
 * Activations are row-major [n_tokens][width], f32, in device memory; pointers to device memory are plain pointers that
 * only a backend may follow. Operations are queued in order and cannot fail once their sizes were planned; a device
 * that can break reports it in sync(). One owner at a time uses a backend, between begin() and end(). */
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
    /* Factors that its products are multiplied by, in device memory: [1], or one for each matrix of a stack (experts);
     * NULL: none. matmul() and expert_matmul() do not apply them, scale() does. */
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
    uint64_t head_bytes; /* bytes from one head's first cell to the next one's */
    uint32_t n_cells;
    bool history;  /* every query sees every cell; attention ignores pos0, positions need not be consecutive */
    uint32_t pos0; /* position of the first cell; the others are consecutive */
} lq_attn_run;

/* Packed pages of one layer: pages first_page to end_page - 1; page p has slot p % n_slots in the tables. Bit t of a
 * mask is set if token t of the page is kept in full precision elsewhere: attention skips its code. All pointers but
 * format are to device memory. */
typedef struct lq_kv_pages {
    const lq_page_format *format;
    uint8_t *const *frames; /* [n_slots] memory of each page, for all layers; this layer's block (formats/kv_page.h)
                               begins block_offset bytes from there */
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
 * runs, with one softmax over their union. A query at p sees all pages, all history runs, and the cells of other runs
 * at positions in (p - window, p]; window 0 = no lower limit. */
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
    float softcap;            /* c > 0: scores become c tanh(score / c) after scaling; 0 = no cap */
    const lq_kv_pages *pages; /* NULL: none */
    uint32_t n_runs;
    lq_attn_run runs[LQ_ATTN_MAX_RUNS];
    /* NULL, or [n_kv_heads][cells of all runs, in their order]: overwritten with the probability that each cell got,
     * summed over all queries of the chunk and all query heads of the group. */
    float *accumulated;
} lq_attention;

/* Codes n_pages pages of all KV heads. Their tokens are the cells of the sources, one source after the other. */
typedef struct lq_kv_pack {
    const lq_kv_pages *pages;
    uint32_t first_page;
    uint32_t n_pages;
    bool learn_order; /* first writes pages->order, learnt from the first of these pages */
    uint32_t n_kv_heads;
    uint32_t n_sources;
    lq_attn_run sources[2]; /* f16 */
} lq_kv_pack;

/* Copies cells (keys and values), converting where formats differ. Cell i of head h of dst becomes the cell at index
 * columns[h * head_columns + i] of the sources, counted through one source after the other; without columns, cell first
 * + i. Columns are in device memory and rise. dst may be the first source itself, as long as no cell is read after it
 * was overwritten (columns[i] >= i). */
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

/* Sets the masks of all pages: exactly the bits of the tokens at the listed positions are set; positions in dropped
 * pages are skipped. */
typedef struct lq_kv_masks {
    const lq_kv_pages *pages;
    uint32_t n_kv_heads;
    const uint32_t *positions; /* in device memory: [n_kv_heads] rows of n_tokens, head_positions apart */
    size_t head_positions;
    uint32_t n_tokens;
    uint32_t pos0; /* position of page 0's first token */
} lq_kv_masks;

/* Adds the attention that a chunk's queries gave, now: [n_kv_heads][n_columns], to each head's accumulated attention,
 * so_far: [n_kv_heads] rows head_floats apart. Columns from n_before on are new: they are set, not added to. */
typedef struct lq_kv_accumulated {
    float *so_far;
    uint64_t head_floats;
    float *now;
    uint32_t n_kv_heads;
    uint32_t n_before;
    uint32_t n_columns;
} lq_kv_accumulated;

/* Chooses, for each KV head, which tokens of a layer stay in full precision (kv/policy.h). The candidates are the
 * tokens of the old overlay, whose positions are listed, then those at consecutive positions from pos0 on. The first
 * n_overlay of the tokens that stay become the new overlay. All arrays are in device memory. */
typedef struct lq_kv_selection {
    const lq_kv_policy *policy;
    uint32_t window;
    uint32_t n_kv_heads;
    uint32_t n_tokens; /* candidates */
    uint32_t n_listed; /* candidates in the old overlay */
    uint32_t pos0;
    uint32_t n_full;     /* tokens that stay: lq_kv_n_full(n_tokens, window) */
    uint32_t n_overlay;  /* at most n_full */
    uint32_t *positions; /* [n_kv_heads] rows head_positions apart: the old overlay's, overwritten with the new one's */
    size_t head_positions; /* at least n_listed and n_overlay */
    uint32_t *columns; /* [n_kv_heads][n_full]: written, the indices among the candidates of those that stay, rising */
    /* Accumulated attention, where the policy needs it: added up as kv_accumulated() does, but so_far then holds the
     * sums of the first n_sinks columns, which always stay, and of the n_full tokens. now is overwritten. */
    lq_kv_accumulated accumulated;
    uint32_t n_sinks; /* columns of sinks, before those of the candidates */
} lq_kv_selection;

/* Which experts of a layer process which tokens: n_used choices a token, sorted by expert. Arrays are in device memory.
 */
typedef struct lq_expert_choice {
    uint32_t n_tokens;
    uint32_t n_experts;
    uint32_t n_used;     /* 1..n_experts */
    const float *router; /* [n_tokens][n_experts] logits */
    uint32_t *first;     /* [n_experts + 1] expert e has the choices first[e] .. first[e + 1] - 1 */
    uint32_t *token;     /* [n_tokens * n_used] the token of each choice; rising within an expert */
    float *weight;       /* [n_tokens * n_used] weight of the expert's output in the token's */
    bool apart;          /* the result of a choice must not depend on how many others have the same expert */
} lq_expert_choice;

/* One sequence of a short convolution: its next n_tokens tokens. */
typedef struct lq_conv_sequence {
    const float *bcx;    /* [n_tokens][3 * n_channels]: a token's gates b, then its gates c, then its inputs x */
    const float *before; /* [n_taps - 1][n_channels]: b x of the preceding tokens, oldest first; 0 before the text */
    float *bx;           /* [n_tokens][n_channels], written: b x of each token */
    float *y;            /* [n_tokens][n_channels] */
    uint32_t n_tokens;
} lq_conv_sequence;

#define LQ_CONV_MAX_TAPS 16

/* A causal convolution of each channel by itself, gated before and after: y = c conv(b x), where conv of a token's
 * channel is the sum of weights[i] times b x of the token n_taps - 1 - i places back, added in the order i = 0, 1, ...
 * The sums of a token do not depend on how many tokens come with it. If the caller keeps only the first n of the
 * tokens, its next `before` is the last n_taps - 1 rows of `before` followed by the first n rows of bx. */
typedef struct lq_short_conv {
    const float *weights; /* [n_channels][n_taps] */
    uint32_t n_channels;
    uint32_t n_taps; /* 1 to LQ_CONV_MAX_TAPS */
    uint32_t n_sequences;
    const lq_conv_sequence *sequences; /* in host memory; none reads what another writes */
} lq_short_conv;

/* Largest sizes of the operations to come, from which a backend plans its scratch memory. */
typedef struct lq_scratch_spec {
    uint32_t n_tokens; /* tokens of one chunk */
    uint32_t n_cols;   /* widest matmul input */
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_accumulated; /* most cells of one attention with accumulated attention; 0 = it is never requested */
    uint32_t n_used;        /* experts of a token; 0 = no expert operations */
    uint32_t n_together;    /* attentions in one operation; 0 = 1 */
} lq_scratch_spec;

/* A product of LQ_LEAST_ALIKE to lq_backend_ops.most_alike rows of x gives each row the same bits, however many rows
 * there are. */
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
    /* Announces a whole file in memory, parts of which adopt() will get: a device that can read host memory as its own
     * may then do so instead of copying. LQ_E_UNSUPPORTED: LQ_CUDA_WEIGHTS demands this, and the device cannot. */
    lq_status (*map)(lq_backend *, const void *host, uint64_t n_bytes);
    /* Makes host bytes that outlive the backend usable on the device: the CPU reads them in place. */
    lq_status (*adopt)(lq_backend *, const void *host, uint64_t n_bytes, const void **out);
    void (*upload)(lq_backend *, void *dst, const void *host, size_t n_bytes);
    void (*download)(lq_backend *, void *host, const void *src, size_t n_bytes);
    void (*copy)(lq_backend *, void *dst, const void *src, size_t n_bytes); /* within device memory */
    uint64_t (*available)(lq_backend *); /* bytes that can be allocated; 0 = unknown */
    uint64_t (*scratch_bytes)(lq_backend *, const lq_scratch_spec *);

    /* ---- order */
    void (*begin)(lq_backend *, void *scratch); /* scratch: scratch_bytes() bytes for the operations up to end() */
    lq_status (*sync)(lq_backend *);            /* waits for all queued operations; reports what went wrong */
    void (*end)(lq_backend *);
    /* Operations until end() may stop early once should_stop returns true, and it must then keep returning true: what
     * they wrote is invalid. NULL: the device does not need this, its operations are short. */
    void (*watch)(lq_backend *, bool (*should_stop)(const void *context), const void *context);

    /* ---- operations */
    void (*embed)(lq_backend *, float *dst, const lq_weight *table, const int32_t *tokens, uint32_t n_tokens,
                  float scale);
    void (*rms_norm)(lq_backend *, float *dst, const float *x, const float *weight, uint32_t n_rows, uint32_t n_cols,
                     float eps);
    void (*matmul)(lq_backend *, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x);
    /* Rotates the first n_rot values of each head in place. rotations: [n_tokens][n_rot / 2] pairs (cos, sin). */
    void (*rope)(lq_backend *, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                 const float *rotations, lq_rope_style style);
    void (*glu)(lq_backend *, float *gate, const float *up, size_t n,
                lq_activation activation);                                        /* gate = act(gate) up */
    void (*add)(lq_backend *, float *dst, const float *x, float scale, size_t n); /* dst += scale x */
    void (*softcap)(lq_backend *, float *x, float cap, size_t n);                 /* x = cap tanh(x / cap) */
    /* Chooses the n_used experts with the largest router logits of each token (of equal ones the lower index), weighted
     * by the softmax over these logits; fills first, token, weight. */
    void (*route)(lq_backend *, const lq_expert_choice *choice);
    /* dst[i] = x[token[i]], rows of n_cols values, for all choices */
    void (*expert_gather)(lq_backend *, float *dst, const float *x, const lq_expert_choice *choice, uint32_t n_cols);
    /* Like matmul, with one row of x and y for each choice, and the matrix of the choice's expert: a layer's matrices
     * lie one after the other from weight->data on. No biases. */
    void (*expert_matmul)(lq_backend *, const lq_matmul *group, uint32_t n_group, const float *x,
                          const lq_expert_choice *choice);
    /* Multiplies x, rows of n_cols values, by factors[0] in place; with a choice, row i by the factor of choice i's
     * expert. */
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
    /* Computes n_args attentions, none of which reads what another writes; several must be of one token each. */
    void (*attention)(lq_backend *, const lq_attention *args, uint32_t n_args);
    /* Copies the k (1 to LQ_BEST_MOST) largest of n numbers to host memory, the largest first, of equal ones the lower
     * index first; skips NaN and -infinity. Waits for them, and returns how many there are. May be called outside
     * begin() and end(). NULL: device memory is host memory, which the caller can search itself. */
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
