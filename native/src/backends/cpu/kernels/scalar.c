/* scalar.c - every kernel in plain C: the specification of the faster forms. */
#include <math.h>
#include <string.h>

#include "backends/cpu/kernels/kernels.h"
#include "core/half.h"

static void quantize_q8(lq_q8_row row, const float *x, size_t n) {
    for (size_t b = 0; b < n / LQ_Q8_BLOCK; b++) {
        const float *in = x + b * LQ_Q8_BLOCK;
        float largest = 0.0f;
        for (int i = 0; i < LQ_Q8_BLOCK; i++)
            largest = fabsf(in[i]) > largest ? fabsf(in[i]) : largest; /* a NaN is passed over */
        bool any = largest >= LQ_Q8_LEAST;
        float inverse = any ? 127.0f / largest : 0.0f;
        row.d[b] = any ? largest * (1.0f / 127.0f) : 0.0f;
        row.sums[2 * b] = row.sums[2 * b + 1] = 0;
        for (int i = 0; i < LQ_Q8_BLOCK; i++) {
            float q = any ? rintf(in[i] * inverse) : 0.0f; /* clamped: a NaN or an infinity must not leave int8 */
            q = q >= -127.0f ? q : -127.0f;
            q = q <= 127.0f ? q : 127.0f;
            row.q[b * LQ_Q8_BLOCK + i] = (int8_t)q;
            row.sums[2 * b + i / 16] = (int16_t)(row.sums[2 * b + i / 16] + (int16_t)q);
        }
    }
}

static void sum_up_q8(lq_q8_row row, size_t n) {
    float *of_32 = row.d_sums, *of_16 = of_32 + n / 32;
    for (size_t b = 0; b < n / 32; b++) of_32[b] = row.d[b] * (float)(row.sums[2 * b] + row.sums[2 * b + 1]);
    for (size_t j = 0; j < n / 16; j++) of_16[j] = row.d[j / 2] * (float)row.sums[j];
}

static float dot_f32(const float *a, const float *b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static float dot_f16_f32(const uint16_t *a, const float *b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += lq_half_to_float(a[i]) * b[i];
    return sum;
}

static float dot_bf16_f32(const uint16_t *a, const float *b, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)a[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        sum += value * b[i];
    }
    return sum;
}

static void f32_to_f16(uint16_t *dst, const float *src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = lq_float_to_half(src[i]);
}

static void f16_to_f32(float *dst, const uint16_t *src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = lq_half_to_float(src[i]);
}

static void rms_norm(float *dst, const float *x, const float *weight, size_t n, float eps) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1.0 / sqrt(sum / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++) dst[i] = x[i] * scale * weight[i];
}

static void add(float *dst, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] += x[i];
}

static void mul_scalar(float *dst, float a, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] *= a;
}

static void axpy(float *dst, const float *x, float a, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] += a * x[i];
}

static void silu_mul(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void gelu_tanh_mul(float *gate, const float *up, size_t n) {
    const float root_2_over_pi = 0.797884560802865f;
    for (size_t i = 0; i < n; i++) {
        float x = gate[i];
        gate[i] = 0.5f * x * (1.0f + tanhf(root_2_over_pi * (x + 0.044715f * x * x * x))) * up[i];
    }
}

static void softcap(float *x, float cap, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = cap * tanhf(x[i] / cap);
}

static void attn_scores_f16(float *scores, size_t s_stride, const float *q, size_t q_stride, size_t n_q,
                            const uint16_t *k, size_t n_k, size_t head_dim, float scale) {
    for (size_t i = 0; i < n_q; i++)
        for (size_t j = 0; j < n_k; j++)
            scores[i * s_stride + j] = scale * dot_f16_f32(k + j * head_dim, q + i * q_stride, head_dim);
}

static void attn_values_f16(float *acc, size_t acc_stride, const float *decay, const float *p, size_t p_stride,
                            size_t n_q, const uint16_t *v, size_t n_k, size_t head_dim) {
    for (size_t i = 0; i < n_q; i++)
        for (size_t d = 0; d < head_dim; d++) {
            float sum = acc[i * acc_stride + d] * decay[i];
            for (size_t j = 0; j < n_k; j++) sum += p[i * p_stride + j] * lq_half_to_float(v[j * head_dim + d]);
            acc[i * acc_stride + d] = sum;
        }
}

static uint32_t int8_peak(const uint8_t *u, const int8_t *s, size_t n_rounds) {
    uint32_t sum = 0;
    for (size_t i = 0; i < LQ_PEAK_DOTS * n_rounds; i++) {
        __asm__ volatile("" ::
                             : "memory"); /* as if u and s might have changed, so that each product is computed again */
        int dot = 0;
        for (int j = 0; j < 64; j++) dot += u[j] * s[j];
        sum += (uint32_t)dot;
    }
    return sum;
}

void lq_kernels_init_scalar(lq_kernels *kernels) {
    memset(kernels, 0, sizeof(*kernels)); /* no integer products: callers decode rows to float */
    kernels->quantize_q8 = quantize_q8;
    kernels->sum_up_q8 = sum_up_q8;
    kernels->dot_f32 = dot_f32;
    kernels->dot_f16_f32 = dot_f16_f32;
    kernels->dot_bf16_f32 = dot_bf16_f32;
    kernels->f32_to_f16 = f32_to_f16;
    kernels->f16_to_f32 = f16_to_f32;
    kernels->rms_norm = rms_norm;
    kernels->add = add;
    kernels->mul_scalar = mul_scalar;
    kernels->axpy = axpy;
    kernels->hadamard = lq_hadamard;
    kernels->silu_mul = silu_mul;
    kernels->gelu_tanh_mul = gelu_tanh_mul;
    kernels->softcap = softcap;
    kernels->attn_scores_f16 = attn_scores_f16;
    kernels->attn_values_f16 = attn_values_f16;
    kernels->int8_peak = int8_peak;
    lq_kernels_init_scalar_attn(kernels);
}
