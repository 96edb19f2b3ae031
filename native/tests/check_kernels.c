/* check_kernels.c - checks every kernel of every level that this CPU runs against the scalar form, with sentinels
 * around outputs.
 *
 *   check_kernels                    checks
 *   check_kernels --bench [level]    speed: GB/s of packed weights for one activation row, in cache and from memory;
 *                                    GOPS for 64 rows; attention
 */
#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/cpu/kernels/kernels.h"
#include "check.h"
#include "core/half.h"
#include "kernels_bench.h"
#include "kernels_input.h"

static lq_kernels scalar;

static bool same_bits(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], 4) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

/* ---- integer products */

typedef struct product_case {
    const lq_kernels *k;
    int32_t type;
    size_t n_rows, n_cols, n_x;
    const uint8_t *w;
    size_t row_bytes;
    const float *x;
    const uint8_t *x_q8;
    const float *y;
    size_t y_stride;
} product_case;

/* Checks one output against its value in double, from the scalar decoding, within the stated bounds. */
static void check_output(const product_case *c, const float *w, size_t t, size_t r) {
    lq_q8_row q = lq_q8_row_at((void *)(uintptr_t)c->x_q8, c->n_cols, t);
    double exact_q8 = 0.0, exact_f32 = 0.0, rounding = 0.0, quantization = 0.0;
    for (size_t b = 0; b < c->n_cols / 32; b++) {
        double w_sum = 0.0, w_max = 0.0, x_sum = 0.0;
        for (size_t i = 32 * b; i < 32 * b + 32; i++) {
            double x_q8 = (double)q.d[b] * q.q[i];
            exact_q8 += w[i] * x_q8;
            exact_f32 += (double)w[i] * c->x[t * c->n_cols + i];
            w_sum += fabs(w[i]);
            w_max = fmax(w_max, fabs(w[i]));
            x_sum += fabs(x_q8);
        }
        quantization += w_sum * q.d[b] / 2;
        rounding += 2 * w_max * x_sum; /* 2: weights are offset plus scale times code, which partly cancel */
    }
    double y = c->y[t * c->y_stride + r], tight = 3e-6 * rounding + 1e-35;
    const char *name = lq_format_find(c->type)->name;
    CHECK_MSG(fabs(y - exact_q8) <= tight, "%s %s: rows %zu cols %zu n_x %zu: y[%zu][%zu] = %g, exact %g, bound %g",
              c->k->level, name, c->n_rows, c->n_cols, c->n_x, t, r, y, exact_q8, tight);
    CHECK_MSG(fabs(y - exact_f32) <= quantization * 1.0001 + tight, "%s %s: y[%zu][%zu] = %g, of floats %g, bound %g",
              c->k->level, name, t, r, y, exact_f32, quantization + tight);
}

/* The kernel for n_x activation rows; more rows than LQ_MANY_X may have a kernel of their own. */
static lq_matmul_q8_fn product_for(const lq_kernels *k, int32_t type, bool many) {
    return many ? k->matmul_many[type] : k->matmul_q8[type];
}

static void check_product(const lq_kernels *k, int32_t type, bool many, size_t n_rows, size_t n_cols, size_t n_x,
                          shape s) {
    lq_matmul_q8_fn fn = product_for(k, type, many);
    const lq_format *format = lq_format_find(type);
    size_t row_bytes = lq_format_row_bytes(format, n_cols), gap = n_rows % 2 ? 6 : 0, shift = n_rows % 4;
    size_t y_stride = n_rows + 3, stride = row_bytes + gap;
    /* the last row ends the allocation */
    uint8_t *w_memory = exact(shift + (n_rows - 1) * stride + row_bytes), *w = w_memory + shift;
    for (size_t r = 0; r < n_rows; r++) fill_blocks(w + r * stride, type, n_cols / format->block_len);
    float *x = exact(n_x * n_cols * 4), *row = exact(n_cols * 4);
    fill(x, n_x * n_cols, s);
    uint8_t *x_q8 = aligned_alloc(64, n_x * lq_q8_row_bytes(n_cols));
    if (x_q8 == NULL) exit(2);
    memset(x_q8, 0xff, n_x * lq_q8_row_bytes(n_cols)); /* padding that must not matter: NaN as a scale */
    for (size_t t = 0; t < n_x; t++) {
        scalar.quantize_q8(lq_q8_row_at(x_q8, n_cols, t), x + t * n_cols, n_cols);
        if (many) scalar.sum_up_q8(lq_q8_row_at(x_q8, n_cols, t), n_cols);
    }

    guarded y = guarded_new(((n_x - 1) * y_stride + n_rows) * 4, 4);
    fn((float *)(void *)y.data, y_stride, w, stride, n_rows, n_cols, x_q8, n_x);
    CHECK_MSG(guarded_intact(&y), "%s %s: wrote outside of y", k->level, format->name);
    product_case c = {k, type, n_rows, n_cols, n_x, w, stride, x, x_q8, (const float *)(void *)y.data, y_stride};
    for (size_t r = 0; r < n_rows; r++) {
        format->dequantize(row, w + r * stride, n_cols);
        for (size_t t = 0; t < n_x; t++) check_output(&c, row, t, r);
    }
    for (size_t t = 0; t + 1 < n_x; t++)
        for (size_t i = n_rows * 4; i < y_stride * 4; i++) CHECK(y.data[t * y_stride * 4 + i] == SENTINEL);
    /* any single row and activation gives the same bits */
    for (size_t t = 0; t < n_x; t++) {
        float one = -1.0f;
        size_t r = (size_t)(check_random(&seed) % n_rows);
        fn(&one, 1, w + r * stride, stride, 1, n_cols, x_q8 + t * lq_q8_row_bytes(n_cols), 1);
        CHECK_MSG(memcmp(&one, &c.y[t * y_stride + r], 4) == 0, "%s %s: n_x %zu changes y[%zu][%zu]: %g, alone %g",
                  k->level, format->name, n_x, t, r, c.y[t * y_stride + r], one);
    }
    guarded_free(&y);
    free(x_q8);
    free(row);
    free(x);
    free(w_memory);
}

/* Scales that are not finite may give any value, but no kernel may write elsewhere or do anything undefined. */
static void check_product_garbage(const lq_kernels *k, int32_t type, bool many) {
    const lq_format *format = lq_format_find(type);
    size_t n_cols = 512, row_bytes = lq_format_row_bytes(format, n_cols);
    uint8_t *w = exact(3 * row_bytes), *x_q8 = aligned_alloc(64, 2 * lq_q8_row_bytes(n_cols));
    float *x = exact(2 * n_cols * 4);
    if (x_q8 == NULL) exit(2);
    memset(w, 0xff, 3 * row_bytes);
    fill(x, 2 * n_cols, PLAIN);
    x[7] = NAN;
    x[100] = INFINITY;
    x[200] = -INFINITY;
    x[300] = FLT_MAX;
    for (size_t t = 0; t < 2; t++) {
        k->quantize_q8(lq_q8_row_at(x_q8, n_cols, t), x + t * n_cols, n_cols);
        k->sum_up_q8(lq_q8_row_at(x_q8, n_cols, t), n_cols);
    }
    guarded y = guarded_new(2 * 3 * 4, 0);
    product_for(k, type, many)((float *)(void *)y.data, 3, w, row_bytes, 3, n_cols, x_q8, 2);
    CHECK(guarded_intact(&y));
    guarded_free(&y);
    free(x);
    free(x_q8);
    free(w);
}

static void check_products(const lq_kernels *k) {
    static const size_t rows[] = {1, 2, 3, 4, 5, 7, 8, 11}, strips[] = {1, 7, 16, 17, 31, 32, 33, 70};
    for (int32_t type = 0; type < LQ_TYPE_COUNT; type++) {
        if (k->matmul_q8[type] == NULL) continue;
        size_t unit = lq_format_find(type)->block_len;
        for (int many = 0; many < 2; many++) {
            const size_t *n_rows = many ? strips : rows;
            if (product_for(k, type, many) == NULL) continue;
            for (size_t blocks = 1; blocks <= 9; blocks++)
                for (size_t i = 0; i < 8; i++)
                    check_product(k, type, many, n_rows[i], blocks * unit, 1 + (blocks + i) % 9,
                                  (shape)((blocks + i) % N_SHAPES));
            for (size_t n_x = 1; n_x <= 15; n_x++) check_product(k, type, many, 6, 576 / unit * unit, n_x, PLAIN);
            check_product(k, type, many, 3, 4096, 61, PLAIN); /* more than one panel of activations */
            check_product(k, type, many, 40, 1536, 13, SPIKE);
            for (size_t n_x = 1; n_x <= 3 && !many; n_x++) /* several streams of weights, and rows that are left over */
                check_product(k, type, many, 33, (4000 / lq_format_find(type)->block_bytes + n_x) * unit, n_x, PLAIN);
            check_product_garbage(k, type, many);
        }
    }
}

/* Fills a row with plain numbers, or with any blocks of quantized types. */
static void fill_numbers(uint8_t *w, int32_t type, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = uniform();
        uint16_t half = lq_float_to_half(value);
        if (type == LQ_TYPE_F32) memcpy(w + 4 * i, &value, 4);
        if (type == LQ_TYPE_F16) memcpy(w + 2 * i, &half, 2);
        if (type == LQ_TYPE_BF16) memcpy(w + 2 * i, (uint8_t *)&value + 2, 2);
    }
    if (type != LQ_TYPE_F32 && type != LQ_TYPE_F16 && type != LQ_TYPE_BF16)
        fill_blocks(w, type, n / lq_format_find(type)->block_len);
}

/* Checks products in float, of types that are decoded first. */
static void check_many_f32(const lq_kernels *k, int32_t type, size_t n_rows, size_t n_cols, size_t n_x, shape s) {
    const lq_format *format = lq_format_find(type);
    size_t row_bytes = lq_format_row_bytes(format, n_cols), stride = row_bytes + (n_rows % 2 ? 6 : 0);
    size_t y_stride = n_rows + 3;
    uint8_t *w = exact((n_rows - 1) * stride + row_bytes);
    float *x = exact(n_x * n_cols * 4), *row = exact(n_cols * 4);
    fill(x, n_x * n_cols, s);
    for (size_t r = 0; r < n_rows; r++) fill_numbers(w + r * stride, type, n_cols);
    guarded y = guarded_new(((n_x - 1) * y_stride + n_rows) * 4, 4);
    lq_dequantize_fn decode = k->dequantize[type] != NULL ? k->dequantize[type] : format->dequantize;
    k->matmul_many_f32((float *)(void *)y.data, y_stride, format, decode, w, stride, n_rows, n_cols, x, n_x);
    CHECK_MSG(guarded_intact(&y), "%s %s: wrote outside of y", k->level, format->name);
    for (size_t r = 0; r < n_rows; r++) {
        format->dequantize(row, w + r * stride, n_cols);
        for (size_t t = 0; t < n_x; t++) {
            double sum = 0.0, size = 0.0, got = ((const float *)(void *)y.data)[t * y_stride + r];
            for (size_t c = 0; c < n_cols; c++) {
                sum += (double)row[c] * x[t * n_cols + c];
                size += fabs((double)row[c] * x[t * n_cols + c]);
            }
            if (!(size < 1e35)) continue; /* a scale that is no number, or too large for floats */
            CHECK_MSG(fabs(got - sum) <= 4e-6 * size + 1e-37, "%s %s: rows %zu cols %zu: y[%zu][%zu] = %g, exact %g",
                      k->level, format->name, n_rows, n_cols, t, r, got, sum);
        }
    }
    for (size_t t = 0; t + 1 < n_x; t++)
        for (size_t i = n_rows * 4; i < y_stride * 4; i++) CHECK(y.data[t * y_stride * 4 + i] == SENTINEL);
    guarded_free(&y);
    free(row);
    free(x);
    free(w);
}

static void check_decoded_products(const lq_kernels *k) {
    static const int32_t types[] = {LQ_TYPE_F32, LQ_TYPE_F16, LQ_TYPE_BF16, LQ_TYPE_TQ1_0, LQ_TYPE_NVFP4};
    static const size_t rows[] = {1, 8, 17, 32, 33}, units[] = {1, 2, 3, 7, 64, 257};
    if (k->matmul_many_f32 == NULL) return;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        size_t unit = lq_format_find(types[i])->block_len;
        for (size_t j = 0; j < 5; j++)
            for (size_t u = 0; u < 6 && units[u] * unit <= 1024; u++)
                check_many_f32(k, types[i], rows[j], units[u] * unit, 1 + (i + j + u) % 13, (shape)(j % N_SHAPES));
    }
}

static void check_quantize(const lq_kernels *k) {
    for (size_t n = 32; n <= 32 * 9; n += 32)
        for (int s = 0; s < N_SHAPES + 1; s++) {
            float *x = exact(n * 4);
            fill(x, n, s < N_SHAPES ? (shape)s : PLAIN);
            if (s == N_SHAPES) { /* not finite, and the subnormal edge */
                x[3] = NAN;
                if (n > 32) x[40] = INFINITY;
                for (size_t i = 64; i < n; i++) x[i] *= i < 128 ? 1e-43f : 2e-36f; /* below LQ_Q8_LEAST, and about it */
                if (n > 64) x[70] = NAN;
            }
            for (size_t i = 0; s == PLAIN && i < 16; i++) /* ties: d = 1 */
                x[i] = i ? (float)i + 0.5f : 127.0f;
            guarded a = guarded_new(lq_q8_row_bytes(n), 0), b = guarded_new(lq_q8_row_bytes(n), 0);
            scalar.quantize_q8(lq_q8_row_at(a.data, n, 0), x, n);
            scalar.sum_up_q8(lq_q8_row_at(a.data, n, 0), n);
            k->quantize_q8(lq_q8_row_at(b.data, n, 0), x, n);
            k->sum_up_q8(lq_q8_row_at(b.data, n, 0), n);
            CHECK_MSG(memcmp(a.memory, b.memory, a.total) == 0, "%s: quantize_q8, sum_up_q8 n %zu shape %d", k->level,
                      n, s);
            guarded_free(&a);
            guarded_free(&b);
            free(x);
        }
}

/* ---- plain products, decoding, conversions */

static void check_dots(const lq_kernels *k) {
    for (size_t n = 0; n <= 300; n = n < 70 ? n + 1 : n + 23)
        for (int s = 0; s < N_SHAPES; s++) {
            float *a = exact(n * 4), *b = exact(n * 4);
            uint16_t *h = exact(n * 2);
            fill(a, n, s == HUGE_ONES ? PLAIN : (shape)s);
            fill(b, n, (shape)s);
            double sum = 0.0, size = 0.0, sum_h = 0.0, size_h = 0.0;
            for (size_t i = 0; i < n; i++) {
                h[i] = lq_float_to_half(fminf(fmaxf(a[i], -60000.0f), 60000.0f));
                sum += (double)a[i] * b[i];
                size += fabs((double)a[i] * b[i]);
                sum_h += (double)lq_half_to_float(h[i]) * b[i];
                size_h += fabs((double)lq_half_to_float(h[i]) * b[i]);
            }
            double y = k->dot_f32(a, b, n), z = k->dot_f16_f32(h, b, n);
            CHECK_MSG(fabs(y - sum) <= 4e-6 * size + 1e-37, "%s: dot_f32 n %zu: %g, exact %g", k->level, n, y, sum);
            CHECK_MSG(fabs(z - sum_h) <= 4e-6 * size_h + 1e-37, "%s: dot_f16_f32 n %zu: %g, exact %g", k->level, n, z,
                      sum_h);
            for (size_t i = 0; i < n; i++) h[i] = (uint16_t)(h[i] & 0xbfff); /* as a bfloat of at most 2 */
            sum_h = size_h = 0.0;
            for (size_t i = 0; i < n; i++) {
                uint32_t bits = (uint32_t)h[i] << 16;
                float value;
                memcpy(&value, &bits, sizeof value);
                sum_h += (double)value * b[i];
                size_h += fabs((double)value * b[i]);
            }
            z = k->dot_bf16_f32(h, b, n);
            CHECK_MSG(fabs(z - sum_h) <= 4e-6 * size_h + 1e-37, "%s: dot_bf16_f32 n %zu: %g, exact %g", k->level, n, z,
                      sum_h);
            free(h);
            free(b);
            free(a);
        }
}

static void check_dequantize(const lq_kernels *k) {
    for (int32_t type = 0; type < LQ_TYPE_COUNT; type++) {
        if (k->dequantize[type] == NULL) continue;
        const lq_format *format = lq_format_find(type);
        for (size_t blocks = 0; blocks < 70; blocks++) {
            size_t n = blocks * format->block_len, n_bytes = blocks * format->block_bytes;
            uint8_t *memory = exact(n_bytes + 1);
            guarded a = guarded_new(n * 4, 4), b = guarded_new(n * 4, 4);
            for (size_t i = 0; i < n_bytes; i++) memory[i + 1] = (uint8_t)check_random(&seed);
            format->dequantize((float *)(void *)a.data, memory + 1, n);
            k->dequantize[type]((float *)(void *)b.data, memory + 1, n);
            CHECK_MSG(same_bits((float *)(void *)a.data, (float *)(void *)b.data, n) && guarded_intact(&b),
                      "%s: dequantize %s", k->level, format->name);
            guarded_free(&a);
            guarded_free(&b);
            free(memory);
        }
    }
}

static void check_halves(const lq_kernels *k) {
    enum { N = 65536 };
    uint16_t *h = exact(N * 2), *back = exact(N * 2);
    float *f = exact(N * 4), *g = exact(N * 4);
    for (size_t i = 0; i < N; i++) h[i] = (uint16_t)i;
    scalar.f16_to_f32(f, h, N);
    k->f16_to_f32(g, h, N);
    CHECK_MSG(memcmp(f, g, N * 4) == 0, "%s: f16_to_f32 differs", k->level);
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < N; i++) { /* any bits, and bits next to the halves' own and to their midpoints */
            uint32_t bits;
            memcpy(&bits, &f[i], 4);
            if (round == 0) bits = (uint32_t)check_random(&seed);
            if (round > 1) bits += (uint32_t)(round == 2 ? 0x1000 : 0x0fff);
            memcpy(&g[i], &bits, 4);
        }
        scalar.f32_to_f16(h, g, N);
        k->f32_to_f16(back, g, N);
        CHECK_MSG(memcmp(h, back, N * 2) == 0, "%s: f32_to_f16 differs, round %d", k->level, round);
    }
    for (size_t n = 0; n < 40; n++) {
        guarded a = guarded_new(n * 2, 2), b = guarded_new(n * 4, 4);
        float *src = exact(n * 4);
        memcpy(src, g, n * 4);
        k->f32_to_f16((uint16_t *)(void *)a.data, src, n);
        uint16_t *src_h = exact(n * 2);
        memcpy(src_h, h, n * 2);
        k->f16_to_f32((float *)(void *)b.data, src_h, n);
        CHECK(guarded_intact(&a) && guarded_intact(&b));
        CHECK(memcmp(a.data, h, n * 2) == 0);
        guarded_free(&a);
        guarded_free(&b);
        free(src);
        free(src_h);
    }
    free(g);
    free(f);
    free(back);
    free(h);
}

/* ---- elementwise */

typedef struct triple {
    guarded out; /* starts as a copy of x */
    float *x, *y;
} triple;

static triple triple_new(size_t n, shape s) {
    triple t = {guarded_new(n * 4, 4), exact(n * 4), exact(n * 4)};
    fill(t.x, n, s);
    fill(t.y, n, s == HUGE_ONES ? PLAIN : s);
    memcpy(t.out.data, t.x, n * 4);
    return t;
}

static void triple_free(triple *t) {
    guarded_free(&t->out);
    free(t->x);
    free(t->y);
}

static void check_elementwise(const lq_kernels *k, size_t n, shape s) {
    triple t = triple_new(n, s);
    float *out = (float *)(void *)t.out.data;
    k->add(out, t.y, n);
    for (size_t i = 0; i < n; i++) CHECK(out[i] == t.x[i] + t.y[i]);
    memcpy(out, t.x, n * 4);
    k->mul_scalar(out, 0.37f, n);
    for (size_t i = 0; i < n; i++) CHECK(out[i] == t.x[i] * 0.37f);

    memcpy(out, t.x, n * 4);
    k->silu_mul(out, t.y, n);
    for (size_t i = 0; i < n; i++) {
        double x = t.x[i], want = x / (1.0 + exp(-x)) * t.y[i];
        double bound = 1e-6 * fabs(want) + 2e-36 * (1.0 + fabs(t.y[i])); /* e^-x overflows below about -88 */
        CHECK_MSG(fabs(out[i] - want) <= bound, "%s: silu_mul(%g, %g) = %g, exact %g", k->level, x, t.y[i], out[i],
                  want);
    }
    memcpy(out, t.x, n * 4);
    k->gelu_tanh_mul(out, t.y, n);
    for (size_t i = 0; i < n; i++) {
        double x = t.x[i], u = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
        double want = 0.5 * x * (1.0 + tanh(u)) * t.y[i];
        double bound = 4e-7 * fabs(x * t.y[i]) + 1e-36; /* the scalar form's 1 + tanh cancels for x far below 0 */
        CHECK_MSG(fabs(out[i] - want) <= bound, "%s: gelu_tanh_mul(%g, %g) = %g, exact %g", k->level, x, t.y[i], out[i],
                  want);
    }
    memcpy(out, t.x, n * 4);
    k->softcap(out, 30.0f, n);
    for (size_t i = 0; i < n; i++) {
        double want = 30.0 * tanh(t.x[i] / 30.0);
        CHECK_MSG(fabs(out[i] - want) <= 30.0 * 0x1p-21, "%s: softcap(%g) = %g, exact %g", k->level, (double)t.x[i],
                  (double)out[i], want);
    }
    CHECK_MSG(guarded_intact(&t.out), "%s: an elementwise kernel wrote outside, n %zu", k->level, n);
    triple_free(&t);
}

static void check_norm(const lq_kernels *k, size_t n, shape s) {
    triple t = triple_new(n, s);
    float *out = (float *)(void *)t.out.data, *want = exact(n * 4);
    for (int in_place = 0; in_place < 2; in_place++) {
        scalar.rms_norm(want, t.x, t.y, n, 1e-6f);
        k->rms_norm(out, in_place ? out : t.x, t.y, n, 1e-6f); /* out holds a copy of x again the second time */
        for (size_t i = 0; i < n; i++)
            CHECK_MSG(fabsf(out[i] - want[i]) <= 4e-7f * fabsf(want[i]) + 1e-37f, "%s: rms_norm n %zu: %g, scalar %g",
                      k->level, n, out[i], want[i]);
        memcpy(out, t.x, n * 4);
    }
    CHECK_MSG(guarded_intact(&t.out), "%s: rms_norm wrote outside, n %zu", k->level, n);
    free(want);
    triple_free(&t);
}

static void check_not_finite(const lq_kernels *k) {
    float x[19], up[19];
    for (size_t i = 0; i < 19; i++) {
        x[i] = i % 4 == 0 ? NAN : i % 4 == 1 ? INFINITY : i % 4 == 2 ? -FLT_MAX : FLT_MAX;
        up[i] = 1.0f;
    }
    float silu[19], gelu[19];
    memcpy(silu, x, sizeof x);
    memcpy(gelu, x, sizeof x);
    k->silu_mul(silu, up, 19);
    k->gelu_tanh_mul(gelu, up, 19);
    for (size_t i = 0; i < 19; i++) {
        if (i % 4 == 0) CHECK(isnan(silu[i]) && isnan(gelu[i]));
        if (i % 4 == 1) CHECK(silu[i] == INFINITY && gelu[i] == INFINITY);
        if (i % 4 == 2) CHECK(silu[i] == 0.0f && gelu[i] == 0.0f);
        if (i % 4 == 3) CHECK(silu[i] == FLT_MAX && gelu[i] == FLT_MAX);
    }
}

static void check_ops(const lq_kernels *k) {
    for (size_t n = 1; n <= 600; n = n < 40 ? n + 1 : n + 67)
        for (int s = 0; s < N_SHAPES; s++) {
            check_elementwise(k, n, (shape)s);
            check_norm(k, n, (shape)s);
        }
    check_not_finite(k);
}

/* ---- attention */

static void check_attention(const lq_kernels *k, size_t head_dim, size_t n_q, size_t n_k, shape s) {
    size_t q_stride = head_dim + 4, s_stride = n_k + 3, acc_stride = head_dim + 5;
    float *q = exact(((n_q - 1) * q_stride + head_dim) * 4), *decay = exact(n_q * 4);
    uint16_t *kv = exact(n_k * head_dim * 2);
    float *wide = exact(n_k * head_dim * 4);
    fill(q, (n_q - 1) * q_stride + head_dim, s);
    fill(wide, n_k * head_dim, s == HUGE_ONES ? MIXED : s);
    for (size_t i = 0; i < n_k * head_dim; i++) kv[i] = lq_float_to_half(fminf(fmaxf(wide[i], -60000.0f), 60000.0f));
    scalar.f16_to_f32(wide, kv, n_k * head_dim);

    guarded g = guarded_new(((n_q - 1) * s_stride + n_k) * 4, 4);
    float *scores = (float *)(void *)g.data;
    k->attn_scores_f16(scores, s_stride, q, q_stride, n_q, kv, n_k, head_dim, 0.125f);
    CHECK_MSG(guarded_intact(&g), "%s: attn_scores wrote outside", k->level);
    for (size_t i = 0; i < n_q; i++) {
        for (size_t j = 0; j < n_k; j++) {
            double sum = 0.0, size = 0.0;
            for (size_t d = 0; d < head_dim; d++) {
                double product = 0.125 * q[i * q_stride + d] * wide[j * head_dim + d];
                sum += product;
                size += fabs(product);
            }
            CHECK_MSG(fabs(scores[i * s_stride + j] - sum) <= 4e-6 * size + 1e-36,
                      "%s: attn_scores dim %zu n_q %zu n_k %zu [%zu][%zu]: %g, exact %g", k->level, head_dim, n_q, n_k,
                      i, j, scores[i * s_stride + j], sum);
        }
        for (size_t j = n_k; i + 1 < n_q && j < s_stride; j++) CHECK(g.data[(i * s_stride + j) * 4] == SENTINEL);
        decay[i] = 0.5f + 0.5f * uniform();
    }

    guarded a = guarded_new(((n_q - 1) * acc_stride + head_dim) * 4, 4);
    float *acc = (float *)(void *)a.data, *before = exact(a.n_bytes);
    for (size_t i = 0; i < n_q; i++) fill(acc + i * acc_stride, head_dim, PLAIN);
    memcpy(before, acc, a.n_bytes);
    float *p = exact(((n_q - 1) * s_stride + n_k) * 4);
    fill(p, (n_q - 1) * s_stride + n_k, PLAIN);
    k->attn_values_f16(acc, acc_stride, decay, p, s_stride, n_q, kv, n_k, head_dim);
    CHECK_MSG(guarded_intact(&a), "%s: attn_values wrote outside", k->level);
    for (size_t i = 0; i < n_q; i++) {
        for (size_t d = 0; d < head_dim; d++) {
            double sum = (double)before[i * acc_stride + d] * decay[i], size = fabs(sum);
            for (size_t j = 0; j < n_k; j++) {
                sum += (double)p[i * s_stride + j] * wide[j * head_dim + d];
                size += fabs((double)p[i * s_stride + j] * wide[j * head_dim + d]);
            }
            CHECK_MSG(fabs(acc[i * acc_stride + d] - sum) <= 4e-6 * size + 1e-36,
                      "%s: attn_values dim %zu n_q %zu n_k %zu [%zu][%zu]: %g, exact %g", k->level, head_dim, n_q, n_k,
                      i, d, acc[i * acc_stride + d], sum);
        }
        if (i + 1 < n_q) CHECK(memcmp(acc + i * acc_stride + head_dim, before + i * acc_stride + head_dim, 20) == 0);
    }
    free(p);
    free(before);
    guarded_free(&a);
    guarded_free(&g);
    free(wide);
    free(kv);
    free(decay);
    free(q);
}

static void check_attentions(const lq_kernels *k) {
    static const size_t dims[] = {4, 36, 64, 80, 96, 100, 128, 256};
    for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
        for (size_t n_q = 1; n_q <= 17; n_q++)
            check_attention(k, dims[i], n_q, 1 + (n_q * 7 + i) % 19, (shape)((n_q + i) % N_SHAPES));
        check_attention(k, dims[i], 3, 64, PLAIN);
        check_attention(k, dims[i], 63, 64, PLAIN);
    }
}

/* ---- levels */

/* Runs `child` in a child process with LQ_CPU set (NULL: unset) and returns its exit status, because the level is
 * chosen once per process. */
static int in_child(const char *lq_cpu, int (*child)(void)) {
    int status = -1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (lq_cpu != NULL)
            setenv("LQ_CPU", lq_cpu, 1);
        else
            unsetenv("LQ_CPU");
        _exit(child());
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Returns 0 if the level in use is the one that LQ_CPU names or, if it is unset, the best one. */
static int level_as_wanted(void) {
    const char *level = NULL, *wanted = getenv("LQ_CPU"), *last = strrchr(lq_cpu_levels(), ',');
    lq_kernels kernels;
    if (wanted == NULL || wanted[0] == '\0') wanted = last ? last + 1 : lq_cpu_levels();
    if (lq_cpu_level(&level) != LQ_OK || strcmp(level, wanted) != 0) return 1;
    if (lq_kernels_select(&kernels, NULL) != LQ_OK || strcmp(kernels.level, wanted) != 0) return 2;
    return 0;
}

/* Returns 0 if every call refuses LQ_CPU, with a text that lists the levels. */
static int level_refused(void) {
    const char *level = "untouched";
    lq_kernels kernels;
    if (lq_cpu_level(&level) != LQ_E_UNSUPPORTED || strcmp(level, "untouched") != 0) return 1;
    if (lq_kernels_select(&kernels, NULL) != LQ_E_UNSUPPORTED) return 2;
    if (strstr(lq_error_message(), getenv("LQ_CPU")) == NULL) return 3;
    return strstr(lq_error_message(), lq_cpu_levels()) == NULL ? 4 : 0;
}

static void check_levels(void) {
    size_t n_levels;
    const lq_cpu_level_desc *levels = lq_cpu_level_table(&n_levels);
    CHECK(strcmp(levels[0].name, "scalar") == 0 && levels[0].supported());
    for (size_t i = 0; i < n_levels; i++) {
        bool has_base = levels[i].base == NULL;
        for (size_t j = 0; j < i; j++)
            has_base = has_base || (strcmp(levels[j].name, levels[i].base) == 0 && levels[j].supported());
        CHECK(has_base || !levels[i].supported());
        CHECK(in_child(levels[i].name, levels[i].supported() ? level_as_wanted : level_refused) == 0);
    }
    CHECK(in_child(NULL, level_as_wanted) == 0);
    CHECK(in_child("", level_as_wanted) == 0);
    CHECK(in_child("sse9", level_refused) == 0);
    CHECK(in_child("AVX2", level_refused) == 0);
    lq_kernels kernels;
    CHECK_STATUS(lq_kernels_select(&kernels, "none"), LQ_E_UNSUPPORTED);
    CHECK_STATUS(lq_cpu_level(NULL), LQ_E_ARG);
}

static void check_table_complete(const lq_kernels *k) {
    CHECK(k->quantize_q8 && k->dot_f32 && k->dot_f16_f32 && k->dot_bf16_f32 && k->f32_to_f16 && k->f16_to_f32 &&
          k->rms_norm && k->add);
    CHECK(k->mul_scalar && k->silu_mul && k->gelu_tanh_mul && k->softcap && k->attn_scores_f16);
    CHECK(k->attn_values_f16 != NULL);
    static const int32_t decoded[] = {LQ_TYPE_F32, LQ_TYPE_F16, LQ_TYPE_BF16, LQ_TYPE_TQ1_0, LQ_TYPE_NVFP4};
    bool is_scalar = strcmp(k->level, "scalar") == 0;
    for (int32_t type = 0; type < LQ_TYPE_COUNT; type++) {
        bool is_decoded = is_scalar || lq_format_find(type) == NULL;
        for (size_t i = 0; i < sizeof decoded / sizeof decoded[0]; i++) is_decoded = is_decoded || decoded[i] == type;
        CHECK((k->matmul_q8[type] == NULL) == is_decoded);
    }
}

int main(int argc, char **argv) {
    bool benchmark = argc > 1 && strcmp(argv[1], "--bench") == 0;
    size_t n_levels;
    const lq_cpu_level_desc *levels = lq_cpu_level_table(&n_levels);
    if (!benchmark) check_levels();
    if (lq_kernels_select(&scalar, "scalar") != LQ_OK) return 2;
    for (size_t i = 0; i < n_levels; i++) {
        lq_kernels k;
        if (!levels[i].supported()) continue;
        if (benchmark && argc > 2 && strcmp(argv[2], levels[i].name) != 0) continue;
        if (lq_kernels_select(&k, levels[i].name) != LQ_OK) return 2;
        if (benchmark) {
            bench(&k);
            continue;
        }
        check_table_complete(&k);
        check_quantize(&k);
        check_products(&k);
        check_decoded_products(&k);
        check_dots(&k);
        check_dequantize(&k);
        check_halves(&k);
        check_ops(&k);
        check_attentions(&k);
    }
    return benchmark ? 0 : check_report("check_kernels");
}
