/* kernels_bench.h - the benchmark of check_kernels.c: products per type, and attention. */
#ifndef LQ_TEST_KERNELS_BENCH_H
#define LQ_TEST_KERNELS_BENCH_H

#include <stdio.h>

#include "backends/cpu/kernels/kernels.h"
#include "kernels_input.h"

/* Measures the seconds of one product, the best of several tries of about 30 ms. */
static double time_product(lq_matmul_q8_fn fn, float *y, const uint8_t *w, size_t row_bytes, size_t n_rows,
                           size_t n_cols, const void *x, size_t n_x) {
    double best = 1e9;
    for (int attempt = 0; attempt < 4; attempt++) {
        size_t n = 0;
        double start = now(), elapsed;
        do {
            fn(y, n_rows, w, row_bytes, n_rows, n_cols, x, n_x);
            n++;
        } while ((elapsed = now() - start) < 0.03);
        best = elapsed / (double)n < best ? elapsed / (double)n : best;
    }
    return best;
}

static void bench_type(const lq_kernels *k, int32_t type) {
    static const struct {
        size_t n_cols, n_rows, n_x;
    } sizes[] = {{576, 1536, 1}, {2048, 640, 1}, {2048, 65536, 1}, {2048, 512, 4},
                 {2048, 512, 8}, {576, 512, 64}, {2048, 512, 64}};
    const lq_format *format = lq_format_find(type);
    printf("%-11s %-5s", k->level, format->name);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t n_cols = sizes[i].n_cols / format->block_len * format->block_len, n_x = sizes[i].n_x;
        size_t n_rows = sizes[i].n_rows, row_bytes = lq_format_row_bytes(format, n_cols);
        uint8_t *w = exact(n_rows * row_bytes), *x_q8 = aligned_alloc(64, n_x * lq_q8_row_bytes(n_cols));
        float *x = exact(n_cols * 4), *y = exact(n_rows * n_x * 4);
        if (x_q8 == NULL) exit(2);
        size_t some = n_rows < 64 ? n_rows : 64;
        fill_blocks(w, type, some * n_cols / format->block_len);
        for (size_t r = some; r < n_rows; r++) memcpy(w + r * row_bytes, w + r % some * row_bytes, row_bytes);
        for (size_t t = 0; t < n_x; t++) {
            fill(x, n_cols, PLAIN);
            k->quantize_q8(lq_q8_row_at(x_q8, n_cols, t), x, n_cols);
            k->sum_up_q8(lq_q8_row_at(x_q8, n_cols, t), n_cols);
        }
        bool many = n_x >= LQ_MANY_X && k->matmul_many[type] != NULL;
        double seconds =
            time_product(many ? k->matmul_many[type] : k->matmul_q8[type], y, w, row_bytes, n_rows, n_cols, x_q8, n_x);
        if (n_x == 1)
            printf("  %5zux%-5zu %5.1f GB/s", n_rows, n_cols, (double)(n_rows * row_bytes) / seconds * 1e-9);
        else
            printf("  n_x=%zu %6.1f GOPS", n_x, 2.0 * (double)(n_rows * n_cols * n_x) / seconds * 1e-9);
        free(y);
        free(x);
        free(x_q8);
        free(w);
    }
    printf("\n");
}

/* Measures attention in gigaproducts per second: queries times keys (or values) times dimensions. */
static void bench_attention(const lq_kernels *k) {
    static const struct {
        size_t head_dim, n_q;
    } sizes[] = {{64, 3}, {256, 4}, {64, 63}, {128, 8}};
    enum { N_K = 64, CELLS = 4096 };
    printf("%-11s attn ", k->level);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t dim = sizes[i].head_dim, n_q = sizes[i].n_q;
        uint16_t *kv = exact(CELLS * dim * 2);
        float *q = exact(n_q * dim * 4), *s = exact(n_q * N_K * 4), *decay = exact(n_q * 4);
        double seconds[2] = {1e9, 1e9};
        memset(kv, 0, CELLS * dim * 2);
        fill(q, n_q * dim, PLAIN);
        fill(s, n_q * N_K, PLAIN);
        for (size_t j = 0; j < n_q; j++) decay[j] = 0.5f;
        for (int attempt = 0; attempt < 20; attempt++)
            for (int values = 0; values < 2; values++) {
                double start = now();
                for (size_t c = 0; c < CELLS; c += N_K)
                    if (values)
                        k->attn_values_f16(q, dim, decay, s, N_K, n_q, kv + c * dim, N_K, dim);
                    else
                        k->attn_scores_f16(s, N_K, q, dim, n_q, kv + c * dim, N_K, dim, 0.0f);
                double elapsed = now() - start;
                if (elapsed < seconds[values]) seconds[values] = elapsed;
            }
        double n_products = (double)(n_q * CELLS * dim) * 1e-9;
        printf("  dim %zu n_q %zu: scores %.1f values %.1f G/s", dim, n_q, n_products / seconds[0],
               n_products / seconds[1]);
        free(decay);
        free(s);
        free(q);
        free(kv);
    }
    printf("\n");
}

/* Measures products in float with 64 rows of activations. */
static void bench_decoded(const lq_kernels *k, int32_t type) {
    enum { COLS = 2048, ROWS = 512, X = 64 };
    const lq_format *format = lq_format_find(type);
    lq_dequantize_fn decode = k->dequantize[type] != NULL ? k->dequantize[type] : format->dequantize;
    size_t row_bytes = lq_format_row_bytes(format, COLS);
    uint8_t *w = exact(ROWS * row_bytes);
    float *x = exact((size_t)X * COLS * 4), *y = exact((size_t)X * ROWS * 4);
    double best = 1e9;
    memset(w, 0, ROWS * row_bytes);
    fill(x, (size_t)X * COLS, PLAIN);
    for (int attempt = 0; attempt < 10; attempt++) {
        double start = now(), elapsed;
        k->matmul_many_f32(y, ROWS, format, decode, w, row_bytes, ROWS, COLS, x, X);
        if ((elapsed = now() - start) < best) best = elapsed;
    }
    printf("%-11s %-5s  %dx%d  n_x=%d %6.1f GOPS\n", k->level, format->name, ROWS, COLS, X,
           2.0 * ROWS * COLS * X / best * 1e-9);
    free(y);
    free(x);
    free(w);
}

static void bench(const lq_kernels *k) {
    if (k->matmul_many_f32 != NULL) {
        bench_decoded(k, LQ_TYPE_F16);
        bench_decoded(k, LQ_TYPE_BF16);
    }

    for (int32_t type = 0; type < LQ_TYPE_COUNT; type++)
        if (k->matmul_q8[type] != NULL) bench_type(k, type);
    bench_attention(k);
}

#endif
