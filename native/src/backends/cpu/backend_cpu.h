/* backend_cpu.h - the CPU backend's own state, shared by its operations. */
#ifndef LQ_BACKEND_CPU_H
#define LQ_BACKEND_CPU_H

#include "backends/backend.h"
#include "backends/cpu/kernels/kernels.h"
#include "core/pool.h"

typedef struct lq_backend_cpu {
    lq_backend base;
    lq_kernels kernels;
    lq_pool *pool;
    uint32_t n_threads;
    void *scratch; /* of the owner between begin() and end() */
} lq_backend_cpu;

static inline lq_backend_cpu *lq_cpu(lq_backend *backend) { return (lq_backend_cpu *)(void *)backend; }

/* matmul_cpu.c */
uint64_t lq_cpu_matmul_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec);
void lq_cpu_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x, uint32_t n_x);

/* experts_cpu.c */
void lq_cpu_route(lq_backend *backend, const lq_expert_choice *choice);
void lq_cpu_expert_gather(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                          uint32_t n_cols);
void lq_cpu_expert_matmul(lq_backend *backend, const lq_matmul *group, uint32_t n_group, const float *x,
                          const lq_expert_choice *choice);
void lq_cpu_expert_sum(lq_backend *backend, float *dst, const float *x, const lq_expert_choice *choice,
                       uint32_t n_cols);

/* kv_cpu.c */
uint64_t lq_cpu_kv_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec);
void lq_cpu_kv_store(lq_backend *backend, lq_cell_format format, uint8_t *dst, uint64_t head_bytes, const float *x,
                     uint32_t n_tokens, uint32_t n_kv_heads, uint32_t head_dim, uint32_t cell0, uint32_t n_cells);
void lq_cpu_hadamard(lq_backend *backend, float *x, uint32_t n_rows, uint32_t head_dim);
void lq_cpu_kv_pack(lq_backend *backend, const lq_kv_pack *args);
void lq_cpu_kv_gather(lq_backend *backend, const lq_kv_gather *args);
void lq_cpu_kv_select(lq_backend *backend, const lq_kv_selection *args);
void lq_cpu_kv_masks(lq_backend *backend, const lq_kv_masks *args);
void lq_cpu_kv_accumulated(lq_backend *backend, const lq_kv_accumulated *args);

/* attention_cpu.c */
uint64_t lq_cpu_attention_scratch(const lq_backend_cpu *cpu, const lq_scratch_spec *spec);
void lq_cpu_attention(lq_backend *backend, const lq_attention *args, uint32_t n_args);

/* recurrent_cpu.c */
void lq_cpu_short_conv(lq_backend *backend, const lq_short_conv *args);

#endif
