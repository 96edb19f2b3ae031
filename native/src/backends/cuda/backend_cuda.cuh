/* backend_cuda.cuh - the CUDA backend's state, shared by its operations. All work goes to one stream and runs in order.
 * The first error is kept, and reported by every sync() from then on. */
#ifndef LQ_CUDA_BACKEND_CUH
#define LQ_CUDA_BACKEND_CUH

#include <atomic>
#include <mutex>
#include <thread>

#include "backends/cuda/blas.cuh"
#include "backends/cuda/rows.cuh"
#include "backends/cuda/unit.cuh"

typedef struct adopted_block {
    void *memory;
    struct adopted_block *next;
} adopted_block;

/* Host memory that the device reads in place. */
typedef struct mapped_range {
    const uint8_t *host;
    const uint8_t *device; /* the device's address of the first byte */
    uint64_t n_bytes;
    struct mapped_range *next;
} mapped_range;

typedef enum weight_access {
    WEIGHTS_COPIED = 0,
    WEIGHTS_MAPPED = 1,  /* read in place if possible, else copied */
    WEIGHTS_MUST_MAP = 2 /* an error if they cannot be read in place */
} weight_access;

typedef struct lq_backend_cuda {
    lq_backend base;
    int device;
    uint32_t n_multiprocessors;
    bool multiplies_f16; /* the loaded code uses tensor cores for F16 (fmt_plain.cuh) */
    bool multiplies_bf16;
    bool integrated; /* the device shares the system's memory */
    weight_access weights;
    cudaStream_t stream;
    cudaError_t error; /* the first one; failed_at says in which call */
    const char *failed_at;
    uint8_t *scratch;                          /* the owner's, between begin() and end() */
    row_program rows;                          /* the owner's gathered operations, not started yet */
    std::atomic<std::thread::id> owner_thread; /* the default id: no owner */
    /* Page-locked host memory. Small uploads are copied here, so that the caller need not wait for the transfer; when
     * it is full, the stream is synchronized and it is filled from the start again. */
    uint8_t *outbox;
    size_t outbox_used;
    /* device memory for a list from the host (lq_cuda_stage); grows, and is overwritten in stream order */
    uint8_t *stage;
    size_t stage_bytes;
    /* matmul_dense.cu: allocated by the first prompt that is long enough */
    bool dense_tried;
    bool dense_turn; /* which of the two arrays of units is next */
    lq_blas *blas;   /* NULL: cuBLAS was not loaded */
    void *slab;
    void *ranks; /* memory for the keys of rank.cu; grows */
    size_t n_ranks;
    uint16_t *grid_memory;
    unit_grids grids;
    adopted_block *adopted;
    mapped_range *mapped;
    std::mutex owner;   /* held between begin() and end() */
    std::mutex memory;  /* guards adopted, mapped, stage */
    std::mutex sending; /* guards outbox */
    std::mutex ranking; /* guards ranks */
    std::mutex errors;  /* guards error, failed_at */
} lq_backend_cuda;

static inline lq_backend_cuda *lq_cuda(lq_backend *backend) { return (lq_backend_cuda *)(void *)backend; }

static inline bool lq_cuda_is_owner(const lq_backend_cuda *cuda) {
    return cuda->owner_thread.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

/* rows.cu, for the other operations */
/* Starts the gathered operations if the calling thread is the owner; other threads never gather any. */
void lq_cuda_run_rows(lq_backend_cuda *cuda);
void lq_cuda_gather_quantize(lq_backend_cuda *cuda, const float *x, size_t n, int *q, float *d, int *halves);
void lq_cuda_gather_narrow(lq_backend_cuda *cuda, const float *x, uint32_t n_rows, uint32_t n_cols, uint16_t *halves,
                           float *unit);
/* y = y unit[row] + bias[column] */
void lq_cuda_gather_scale(lq_backend_cuda *cuda, float *y, uint32_t n_rows, uint32_t n_cols, const float *unit,
                          const float *bias);

/* For operations outside rows.cu, which may read or write what gathered ones do: starts the gathered ones first. */
static inline lq_backend_cuda *lq_cuda_ready(lq_backend *backend) {
    lq_cuda_run_rows(lq_cuda(backend));
    return lq_cuda(backend);
}

/* backend_cuda.cu */
void lq_cuda_note(lq_backend_cuda *cuda, cudaError_t error, const char *what);
/* Notes an error of starting the last kernels. */
static inline void lq_cuda_check(lq_backend_cuda *cuda, const char *what) {
    lq_cuda_note(cuda, cudaGetLastError(), what);
}
/* Copies a list to the device. It is valid for operations queued before the next call; NULL: out of memory. */
void *lq_cuda_stage(lq_backend_cuda *cuda, const void *host, size_t n_bytes);
extern lq_status (*lq_cuda_fail)(lq_status status, const char *format, ...);

/* elementwise.cu */
void lq_cuda_embed(lq_backend *backend, float *dst, const lq_weight *table, const int32_t *tokens, uint32_t n_tokens,
                   float scale);
void lq_cuda_scale(lq_backend *backend, float *x, uint32_t n_rows, uint32_t n_cols, const float *factors,
                   const lq_expert_choice *choice);
void lq_cuda_softcap(lq_backend *backend, float *x, float cap, size_t n);

/* rows.cu */
void lq_cuda_rms_norm(lq_backend *backend, float *dst, const float *x, const float *weight, uint32_t n_rows,
                      uint32_t n_cols, float eps);
void lq_cuda_rope(lq_backend *backend, float *x, uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot,
                  const float *rotations, lq_rope_style style);
void lq_cuda_glu(lq_backend *backend, float *gate, const float *up, size_t n, lq_activation activation);
void lq_cuda_add(lq_backend *backend, float *dst, const float *x, float scale, size_t n);
void lq_cuda_hadamard(lq_backend *backend, float *x, uint32_t n_rows, uint32_t head_dim);
void lq_cuda_kv_store(lq_backend *backend, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                      uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells);

/* rank.cu */
uint32_t lq_cuda_best(lq_backend *backend, const float *x, uint32_t n, uint32_t k, lq_ranked *out);

/* matmul.cu */
uint64_t lq_cuda_matmul_scratch(const lq_scratch_spec *spec);
void lq_cuda_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x);
void lq_cuda_expert_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x,
                           const lq_expert_choice *choice);

/* experts.cu */
void lq_cuda_route(lq_backend *backend, const lq_expert_choice *choice);
void lq_cuda_expert_gather(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                           uint32_t n_cols);
void lq_cuda_expert_sum(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                        uint32_t n_cols);

/* kv_cells.cu */
void lq_cuda_kv_gather(lq_backend *backend, const lq_kv_gather *args);
void lq_cuda_kv_masks(lq_backend *backend, const lq_kv_masks *args);
void lq_cuda_kv_accumulated(lq_backend *backend, const lq_kv_accumulated *args);

/* kv_select.cu */
void lq_cuda_kv_select(lq_backend *backend, const lq_kv_selection *args);

/* kv_pack.cu */
void lq_cuda_kv_pack(lq_backend *backend, const lq_kv_pack *args);

/* attention.cu */
uint64_t lq_cuda_attention_scratch(const lq_backend_cuda *cuda, const lq_scratch_spec *spec);
void lq_cuda_attention(lq_backend *backend, const lq_attention *args, uint32_t n_args);

/* recurrent.cu */
void lq_cuda_short_conv(lq_backend *backend, const lq_short_conv *args);

#endif
