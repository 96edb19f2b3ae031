/* logquant.h - the public C interface of pylogquant, an embedded LLM runtime for GGUF models.
 *
 * SPDX-License-Identifier: MIT
 *
 * Three handles, read top to bottom:
 *   lq_gguf     a model file: read-only, memory-mapped metadata and tensor table (logquant_gguf.h).
 *   lq_model    loaded weights and a thread pool; immutable, shared by any number of sessions.
 *   lq_session  one mutable timeline: token history, position, KV cache, last logits.
 * and lq_sampler, which turns a session's logits into a token.
 *
 * Conventions
 *   - Every fallible call returns lq_status: LQ_OK (0) or a negative error. The text of the calling thread's last
 *     error is lq_error_message(), valid until the next failing call on that thread. Free functions never touch it.
 *   - On failure out-parameters are set to NULL or left untouched, and nothing has to be freed by the caller.
 *   - Free functions take a pointer to the handle, accept NULL and a pointer to NULL, and clear the handle.
 *   - Strings going in are NUL-terminated UTF-8. Every size is in the unit its name says (bytes, tokens, floats).
 *   - Option structs start with struct_size, filled by their lq_*_options_init(); a mismatch is refused (LQ_E_ARG).
 *   - The library never aborts, exits, prints, or installs signal handlers.
 *   - Threads: a model may be used from any thread; everything else by one thread at a time, a second one gets
 *     LQ_E_BUSY. Any thread may at any time call lq_session_cancel(), lq_session_end(), and what reads numbers
 *     (lq_session_get_info, _get_tokens, _get_checkpoints): it then reports some moment of the evaluation.
 *   - Closing waits until the thread that is inside has left. A thread that evaluates a session leaves soon, with
 *     LQ_E_CANCELLED. Calls that begin later, with the closed handle, are the caller's fault; a caller that cannot rule
 *     them out uses lq_session_end().
 *   - Forks: a child inherits handles, but not the threads behind them. It can close everything and read numbers; all
 *     other calls return LQ_E_FORKED. Both hold whatever threads were inside when the process was forked. Model files
 *     (lq_gguf) and samplers work as before.
 *
 * This file is also the source of the Python declarations (tools/codegen/gen_ffi.py): keep to plain C declarations, and
 * put nothing but include guards, LQ_API and constants into the preprocessor.
 */
#ifndef LOGQUANT_H
#define LOGQUANT_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#ifdef LQ_BUILD
#define LQ_API __declspec(dllexport)
#else
#define LQ_API __declspec(dllimport)
#endif
#else
#define LQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows whenever a declaration of the public headers changes; callers compare it with lq_abi_version(). */
#define LQ_ABI_VERSION 10

/* ---- status ---------------------------------------------------------------------------------------------------- */

typedef enum lq_status {
    LQ_OK = 0,
    LQ_E_ARG = -1,         /* an argument is out of range; the call had no effect */
    LQ_E_MEMORY = -2,      /* not enough memory, or over the stated budget */
    LQ_E_IO = -3,          /* a file cannot be opened or read */
    LQ_E_FORMAT = -4,      /* a file is damaged, truncated, or not what it should be */
    LQ_E_UNSUPPORTED = -5, /* well-formed, but this build cannot run it */
    LQ_E_FULL = -6,        /* the session's context has no room for the tokens; nothing was lost */
    LQ_E_CANCELLED = -7,   /* lq_session_cancel() was called; chunks that were completed stay */
    LQ_E_BUSY = -8,        /* another thread is inside this session or other handle */
    LQ_E_INTERNAL = -9,    /* our own invariant failed: a defect, please report */
    LQ_E_CLOSED = -10,     /* lq_session_end() was called */
    LQ_E_FORKED = -11      /* made before this process was forked from another: it can only be closed here */
} lq_status;

/* Text of this thread's last error: one line, what, where, what to do. Never NULL. */
LQ_API const char *lq_error_message(void);

/* The library's version: "0.1.0". */
LQ_API const char *lq_version(void);
LQ_API uint32_t lq_abi_version(void);

/* The SIMD level in use ("scalar", "avx2", "avx512", "avx512vnni"), chosen once per process from CPU and OS support,
 * or forced by the environment variable LQ_CPU. A level that is unknown or that this CPU lacks is an error:
 * the call returns LQ_E_UNSUPPORTED, and so does every call that would compute. */
LQ_API lq_status lq_cpu_level(const char **level);
/* Comma-separated names of the levels this build has and this CPU runs, worst first. */
LQ_API const char *lq_cpu_levels(void);
/* Physical cores this process may run on, at most as many as a container's quota of processor time pays for (rounded
 * up), at least 1: the default number of threads. */
LQ_API uint32_t lq_cpu_cores(void);
/* Writes bytes to a file, whole or not at all: an existing file stays until the new one is complete. A symbolic link
 * stays, and the file it leads to is replaced; what is no regular file is refused. An existing file keeps its
 * permissions, and its owner where that is allowed; only its owner can read a new one. Removes temporary files that
 * killed writers of the same path left. Errors: LQ_E_ARG, LQ_E_IO. */
LQ_API lq_status lq_file_replace(const char *path, const void *bytes, size_t n_bytes);

/* Bytes of memory that can be allocated now without swapping, within a container's limit; the file cache, which the
 * system gives up on demand, counts as free. 0 if the system does not tell. */
LQ_API uint64_t lq_memory_available(void);

/* The next two measure the most that this machine can do with n_threads (0 = physical cores): the bounds of what a
 * model can reach. Each takes about half a second and reports its fastest pass. Errors: LQ_E_ARG, LQ_E_MEMORY,
 * LQ_E_UNSUPPORTED.
 *
 * Reads a buffer of n_bytes again and again. If it fits in a cache, the result is the cache's speed, not memory's. */
LQ_API lq_status lq_measure_read(uint32_t n_threads, uint64_t n_bytes, double *bytes_per_s);
/* Multiplies and adds 8-bit integers, from registers alone, with the best instruction of the SIMD level in use. */
LQ_API lq_status lq_measure_int8(uint32_t n_threads, double *products_per_s);

/* A model file; logquant_gguf.h looks into it. */
typedef struct lq_gguf lq_gguf;

/* ---- models ---------------------------------------------------------------------------------------------------- */

typedef struct lq_model lq_model;

typedef struct lq_model_options {
    uint32_t struct_size;
    uint32_t n_threads; /* threads of the CPU's pool, the caller's included; 0 = physical cores */
    /* The device that computes: "cpu"; "cuda", "cuda:0" and so on, an error if it cannot; "auto" or NULL = cuda:0 if it
     * exists and has room for enough of the weights to be worth it, else the CPU (lq_model_info.device_note then says
     * why). */
    const char *device;
    const char *cuda_library; /* path of the CUDA backend's library; NULL: as logquant_device.h says */
    /* How many of the last layers are on the GPU; the CPU has the others. -1 = as many as fit beside a session of up to
     * 4096 tokens; 0 = none, as with "cpu"; more than the model has = all. If a number above 0 cannot be met, "auto"
     * fails, too. lq_model_info.plan tells what is on which device. */
    int32_t gpu_layers;
} lq_model_options;

typedef struct lq_model_info {
    uint32_t struct_size;
    uint32_t n_layers;
    uint32_t n_global_layers;    /* layers whose attention sees the whole context */
    uint32_t n_recurrent_layers; /* layers without keys, which have a state of a fixed size instead */
    uint32_t n_vocab;
    uint32_t n_embd;
    uint32_t n_heads; /* this and the next two are those of the first layer with attention */
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint64_t kv_values;         /* numbers that a token's keys and values have in all global layers together */
    uint64_t kv_values_sliding; /* the same, in all sliding layers */
    uint32_t window;            /* sliding layers see this many tokens; 0 = none within the trained context */
    uint32_t n_ctx_train;       /* context the model was trained for */
    uint32_t n_threads;         /* 0 if everything is on a GPU */
    uint32_t n_gpu_layers;
    uint64_t n_params;
    uint64_t weight_bytes;
    const char *arch;        /* "llama"; borrowed from the model, like the next four */
    const char *device;      /* "cpu"; "cuda:0" if it has some or all layers */
    const char *device_name; /* as the driver calls it; "" for the CPU */
    const char *device_note; /* why "auto" took the CPU; "" otherwise */
    const char *plan;        /* what is on the GPU and what on the CPU; "" if everything is on the CPU */
} lq_model_info;

LQ_API void lq_model_options_init(lq_model_options *options);
/* Errors: LQ_E_IO, LQ_E_FORMAT, LQ_E_UNSUPPORTED (architecture, tensor type, CPU level, device), LQ_E_MEMORY, LQ_E_ARG.
 */
LQ_API lq_status lq_model_open(const char *path, const lq_model_options *options, lq_model **out);
/* Releases the caller's reference; the model is freed once its last session is closed, too. */
LQ_API void lq_model_close(lq_model **model);
LQ_API lq_status lq_model_get_info(const lq_model *model, lq_model_info *info);
/* The model's file; borrowed, valid as long as the model. */
LQ_API const lq_gguf *lq_model_gguf(const lq_model *model);

/* ---- sessions -------------------------------------------------------------------------------------------------- */

typedef struct lq_session lq_session;

/* A KV cache type, and settings in place of the type's own. A field that has no effect on the type is refused, never
 * ignored. The names are those of the command line and of docs/format.md. */
typedef struct lq_kv_options {
    const char *name;    /* one of lq_kv_names(); NULL = the first of them */
    const char *keys;    /* key widths: "2", or tiers "4:3/8,2:3/8,1:1/4" (bits:share of channels); NULL = the type's */
    uint32_t value_bits; /* 2, 3 or 4; 0 = the type's */
    uint32_t window;     /* W, tokens, a multiple of 64; up to 3W tokens stay in full precision; 0 = the type's */
    int32_t sinks;       /* first tokens that stay in full precision for ever, 0 to 64; -1 = the type's */
    const char *overlay; /* how full-precision tokens are stored: "f16", "q8_0"; NULL = the type's */
    const char *select;  /* which tokens stay: "even", "newest", "heaviest"; NULL = the type's */
} lq_kv_options;

typedef enum lq_on_full {
    LQ_ON_FULL_STOP = 0, /* evaluating more fails with LQ_E_FULL */
    LQ_ON_FULL_DROP = 1 /* the oldest pages of 64 tokens are dropped, sinks and overlay stay, and the tokens that remain
                           keep their positions, which end with the model's training context unless allow_long is set */
} lq_on_full;

typedef struct lq_session_options {
    uint32_t struct_size;
    uint32_t n_ctx;                /* tokens the session can hold; 0 = what the model was trained for */
    uint32_t n_chunk;              /* prompt tokens evaluated at once; 0 = 512 */
    uint32_t allow_long;           /* nonzero: n_ctx may exceed the model's training context */
    uint32_t on_full;              /* lq_on_full: what happens when n_ctx tokens are held */
    uint32_t max_checkpoints;      /* the most checkpoints that are kept; default 8, may be 0 */
    uint64_t max_checkpoint_bytes; /* bytes of all checkpoints, in addition to memory_budget, and as many again while a
                                      prompt is read, so that a cancelled chunk can be undone; default 256 MiB */
    uint32_t max_tentative;        /* tokens that a step may leave tentative (lq_session_commit), 0 to 64 */
    uint32_t watch_attention;      /* nonzero: record what lq_kv_get_attention() reads; with f16 KV only */
    uint64_t memory_budget;        /* bytes this session may allocate; 0 = what is available now */
    lq_kv_options kv;
} lq_session_options;

/* Memory of a session, before (plan) or after (info) it exists. */
typedef struct lq_memory {
    uint64_t kv_global_bytes;  /* reserved for KV of the layers that see the whole context */
    uint64_t kv_sliding_bytes; /* rings of sliding-window layers */
    uint64_t recurrent_bytes;  /* states of recurrent layers */
    uint64_t scratch_bytes;    /* logits, token history, tables */
    uint64_t
        workspace_bytes; /* activations and scratch, which all sessions of a model share. In a plan: what must be
                            allocated anew for this session, 0 if others need as much already; in info: all of it */
    uint64_t total_bytes;
} lq_memory;

/* What a KV cache holds now. Tokens are counted once (every layer and head holds as many), bytes over all layers. */
typedef struct lq_kv_usage {
    uint32_t n_tokens;  /* sinks + full + packed + dropped */
    uint32_t n_sinks;   /* full precision for ever */
    uint32_t n_full;    /* the other tokens that attention reads in full precision, open page included */
    uint32_t n_packed;  /* tokens that attention reads from their codes */
    uint32_t n_dropped; /* tokens that attention no longer sees */
    uint32_t n_pages;   /* packed pages; their tokens that are also held in full precision count as full */
    uint64_t code_bytes;
    uint64_t scale_bytes; /* scales, and the padding of pages */
    uint64_t mask_bytes;
    uint64_t full_bytes;      /* overlay, open page and sinks, as allocated; all cells of the types without pages */
    uint64_t index_bytes;     /* positions, accumulated attention, channel orders */
    uint64_t ring_bytes;      /* ring buffers of sliding layers */
    uint64_t recurrent_bytes; /* states of recurrent layers */
} lq_kv_usage;

typedef struct lq_session_info {
    uint32_t struct_size;
    uint32_t n_ctx;
    uint32_t n_limit; /* tokens that may be appended in all: n_ctx, or more if the oldest are dropped */
    uint32_t n_chunk;
    uint32_t max_tentative;
    uint32_t n_tokens;   /* tokens appended so far, with the dropped ones, without tentative ones */
    uint32_t has_logits; /* nonzero: the last evaluated token's logits can be read and sampled */
    float kv_bits;       /* bits per K/V element of the global layers, all overheads counted; at n_ctx tokens */
    lq_kv_options kv;    /* resolved: every field that the type has is set; borrowed strings */
    lq_kv_usage kv_usage;
    lq_memory memory;
    uint32_t n_checkpoints;
    uint64_t checkpoint_bytes; /* bytes of those that are kept now; forks share them */
    const char *backend;       /* "cpu", "cuda", "cpu+cuda" */
    const char *cpu_level;     /* "avx2" */
} lq_session_info;

typedef enum lq_logits_mode {
    LQ_LOGITS_NONE = 0, /* evaluate only; the session has no logits afterwards */
    LQ_LOGITS_LAST = 1, /* (n_vocab,) of the last token */
    LQ_LOGITS_ALL = 2   /* (n_tokens, n_vocab) */
} lq_logits_mode;

/* Comma-separated names of the KV cache types this build has, the default first. */
LQ_API const char *lq_kv_names(void);
LQ_API void lq_kv_options_init(lq_kv_options *options); /* the default type, nothing changed */
LQ_API void lq_session_options_init(lq_session_options *options);
/* Computes what a session with these options would allocate, with the checks of lq_session_create but for the budget:
 * whether that much memory is there is for the caller to compare. Allocates nothing. */
LQ_API lq_status lq_session_plan(const lq_model *model, const lq_session_options *options, lq_memory *out);
/* Errors: LQ_E_ARG, LQ_E_UNSUPPORTED (KV type), LQ_E_MEMORY (plan above budget; nothing was allocated). */
LQ_API lq_status lq_session_create(lq_model *model, const lq_session_options *options, lq_session **out);
LQ_API void lq_session_close(lq_session **session);
/* Ends a session for good: an evaluation in another thread returns LQ_E_CANCELLED within one layer, and this call waits
 * until that thread has left. From then on all calls return LQ_E_CLOSED, except those that read numbers. The memory
 * stays until lq_session_close(), because others may still have the handle. */
LQ_API void lq_session_end(lq_session *session);
LQ_API lq_status lq_session_get_info(const lq_session *session, lq_session_info *info);

/* Appends tokens and evaluates them in chunks of n_chunk. logits: NULL, or room for n_logits floats as the mode says
 * (with LQ_LOGITS_LAST, NULL leaves them in the session only). Logits are not checked: if weights are not finite, or
 * keys or values exceed what cells hold (f16: 65504, which is also the precision of recent tokens in types with pages;
 * q8_0: 127 times as much), they may be NaN, and lq_session_sample reports it. Errors: LQ_E_ARG (a token id outside
 * 0..n_vocab-1), LQ_E_FULL (checked before anything is evaluated), LQ_E_CANCELLED (chunks completed so far are kept),
 * LQ_E_BUSY. */
LQ_API lq_status lq_session_eval(lq_session *session, const int32_t *tokens, size_t n_tokens, lq_logits_mode mode,
                                 float *logits, size_t n_logits);
/* Commits the first n_tokens of a tentative chunk (logquant_batch.h), 0 to all, and discards the others. The session is
 * then bit for bit what it would be if the chunk had held these tokens alone and all had been committed (a full context
 * that drops its oldest tokens has made room for the whole chunk); its logits are those of the last of them, if they
 * were asked for (after 0 tokens: those from before the chunk). Until the commit the session cannot be evaluated, saved
 * or forked; going back and lq_session_reset discard the whole chunk. Errors: LQ_E_ARG (more than there are),
 * LQ_E_BUSY. */
LQ_API lq_status lq_session_commit(lq_session *session, size_t n_tokens);
/* Prepares the session for a whole history: keeps the longest prefix that tokens shares with the session's history and
 * that can be kept without evaluating, and drops the rest. The prefix ends at a checkpoint, or where tokens begin that
 * were evaluated at once, if no token was given up since, or anywhere, in types that store every token as a cell.
 * *n_kept tokens remain (at most n_tokens - 1, so that evaluating tokens[*n_kept..] always yields the last token's
 * logits). */
LQ_API lq_status lq_session_keep_prefix(lq_session *session, const int32_t *tokens, size_t n_tokens, size_t *n_kept);
enum { LQ_NOTE_BYTES = 64 };
/* Makes a checkpoint, by which the session can return at once to the tokens and logits it holds now. It keeps a note of
 * the caller's, n_note bytes, 0 to LQ_NOTE_BYTES, in place of one at the same tokens. Beyond the session's limits older
 * checkpoints are removed, first those that save least. LQ_E_MEMORY: not even one fits. */
LQ_API lq_status lq_session_checkpoint(lq_session *session, const void *note, size_t n_note);
/* Reads the note of the checkpoint at n_tokens: copies its first min(n_bytes, length) bytes and returns the length, 0
 * without a note. */
LQ_API size_t lq_session_get_note(const lq_session *session, uint32_t n_tokens, void *bytes, size_t n_bytes);
/* Reads how many tokens each checkpoint holds, rising: the first min(n, count) numbers; returns the count. */
LQ_API size_t lq_session_get_checkpoints(const lq_session *session, uint32_t *positions, size_t n);
/* Goes back to the first n_tokens of those held, exactly: the session is then bit for bit what a new one would be after
 * the same tokens in the same pieces (a piece was evaluated at once, in chunks; the last one is cut short), and has its
 * logits. If lq_batch_step (logquant_batch.h) evaluated some tokens, this holds up to rounding. *n_evaluated tokens had
 * to be evaluated again, 0 from a checkpoint. Errors: LQ_E_ARG (more than are held), LQ_E_MEMORY, LQ_E_CANCELLED (fewer
 * tokens are then held, in whole pieces), LQ_E_BUSY. */
LQ_API lq_status lq_session_rewind(lq_session *session, size_t n_tokens, size_t *n_evaluated);
/* Creates a second session with the same contents. The two share whole pages, checkpoints and memory for chunks, and
 * each may be used and closed without regard to the other (they are evaluated one after the other, or in one
 * lq_batch_step). Types that store every token as a cell copy their cells. Errors: LQ_E_MEMORY, LQ_E_BUSY. */
LQ_API lq_status lq_session_fork(lq_session *session, lq_session **out);

/* Writes the session to a file (docs/format.md, Session files), together with n_extra bytes of the caller's, as
 * lq_file_replace does. Checkpoints are not written. Errors: LQ_E_IO, LQ_E_MEMORY, LQ_E_BUSY. */
LQ_API lq_status lq_session_save(lq_session *session, const char *path, const void *extra, size_t n_extra);
/* Restores a saved session, with its options. It goes on bit for bit as if it had never been away, on the same CPU
 * level and number of threads. memory_budget as in lq_session_options. Errors: LQ_E_IO; LQ_E_FORMAT (damaged, cut
 * short, not a session); LQ_E_UNSUPPORTED (version); LQ_E_ARG (saved with another model); LQ_E_MEMORY. */
LQ_API lq_status lq_session_load(lq_model *model, const char *path, uint64_t memory_budget, lq_session **out);
/* Reads the extra bytes saved with a loaded session: copies the first min(n_bytes, length), returns the length. */
LQ_API size_t lq_session_get_extra(const lq_session *session, void *bytes, size_t n_bytes);
/* Empties the session; memory stays. */
LQ_API lq_status lq_session_reset(lq_session *session);
/* Makes an lq_session_eval, lq_session_rewind, lq_session_save (or lq_batch_step) that is running in another thread
 * return LQ_E_CANCELLED. A chunk that was begun is then undone, except that the oldest pages stay dropped if they made
 * room for it. The chunk is completed instead if that takes less than about 0.1 s, or if the cache gives tokens up
 * (after its first chunk) and there is no memory to remember its state before the chunk, at most max_checkpoint_bytes.
 */
LQ_API void lq_session_cancel(lq_session *session);
/* Copies the history's first min(n_tokens, length) ids; returns the length. */
LQ_API size_t lq_session_get_tokens(const lq_session *session, int32_t *tokens, size_t n_tokens);

/* ---- sampling -------------------------------------------------------------------------------------------------- */

typedef struct lq_sampler lq_sampler;

/* Applied in this order: logit bias, penalties, then (temperature 0: the largest logit, ties to the lower id; else)
 * top-k, top-p, min-p on the distribution at temperature 1, temperature, draw. */
typedef struct lq_sampler_options {
    uint32_t struct_size;
    uint32_t top_k;       /* 0 = off */
    uint64_t seed;        /* same seed, same logits: same tokens */
    float temperature;    /* >= 0; 0 = greedy */
    float top_p;          /* (0, 1]; 1 = off */
    float min_p;          /* [0, 1); 0 = off; keeps tokens with at least min_p times the best one's probability */
    float repeat_penalty; /* > 0; 1 = off; divides positive, multiplies negative logits of recent tokens */
    /* The next two count generated tokens alone: those that were sampled one after the other, each appended before the
     * next, since other text was last evaluated (or the session was loaded or went back). */
    float frequency_penalty; /* subtracted per occurrence */
    float presence_penalty;  /* subtracted once */
    uint32_t penalty_last_n; /* how many of the newest tokens all three look at; 0 = all */
    uint32_t logprobs;       /* nonzero: fill chosen->logprob also when no top tokens are asked for */
    uint32_t n_bias;         /* logit biases: bias_tokens[n_bias], bias_values[n_bias]; copied */
    const int32_t *bias_tokens;
    const float *bias_values; /* finite, or -INFINITY to forbid */
} lq_sampler_options;

typedef struct lq_token_prob {
    int32_t token;
    float logprob; /* natural log, of the model's own distribution (temperature 1, no bias, no penalty); NaN if not
                      asked for */
} lq_token_prob;

LQ_API void lq_sampler_options_init(lq_sampler_options *options);
LQ_API lq_status lq_sampler_create(const lq_sampler_options *options, lq_sampler **out);
LQ_API void lq_sampler_free(lq_sampler **sampler);
/* Get and set the state of the random numbers, which is all that a sampler remembers: with the same state the same
 * logits give the same tokens. */
LQ_API uint64_t lq_sampler_get_state(const lq_sampler *sampler);
LQ_API void lq_sampler_set_state(lq_sampler *sampler, uint64_t state);
/* Picks the next token from the session's logits; the session is not changed (evaluate the token to append it).
 * top: NULL, or room for the n_top most probable tokens, best first. Errors: LQ_E_ARG (no logits: evaluate first;
 * a biased token outside the vocabulary; biases that forbid every token), LQ_E_FORMAT (no logit is a number, for the
 * reasons given at lq_session_eval), LQ_E_MEMORY, LQ_E_BUSY.
 */
LQ_API lq_status lq_session_sample(lq_session *session, lq_sampler *sampler, lq_token_prob *chosen, lq_token_prob *top,
                                   size_t n_top);

/* ---- handshake: sizes of the structs above, for callers that were compiled apart from the library ---------------- */

LQ_API size_t lq_sizeof_model_options(void);
LQ_API size_t lq_sizeof_model_info(void);
LQ_API size_t lq_sizeof_session_options(void);
LQ_API size_t lq_sizeof_session_info(void);
LQ_API size_t lq_sizeof_sampler_options(void);

#ifdef __cplusplus
}
#endif

#endif
