/* check_ops_together.c - checks several attentions in one operation, and products of several formats, against each by
 * itself. */
#include "core/half.h"
#include "ops_buffers.h"

enum { MAX_TOGETHER = 9 };

/* Attentions of one token each must give the same in one operation as alone. Lengths differ, so that threads share some
 * of them, and only some accumulate attention. */
static void check_together(uint32_t n_heads, uint32_t n_kv_heads, uint32_t dim, const uint32_t *n_cells, uint32_t n,
                           float softcap) {
    lq_attention args[MAX_TOGETHER];
    uint32_t most = 0, q_len = n_heads * dim;
    for (uint32_t i = 0; i < n; i++) most = n_cells[i] > most ? n_cells[i] : most;
    uint64_t head_bytes = most * lq_cell_bytes(LQ_CELL_F16, dim);
    buffer scratch, x = make((size_t)most * n_kv_heads * dim, 1.0f), q = make((size_t)n * q_len, 2.0f);
    buffer k = make(n_kv_heads * head_bytes / 4, 0.0f), out = make((size_t)n * q_len, 0.0f);
    buffer rec = make((size_t)n * n_kv_heads * most, 0.0f);
    double *wanted = malloc(out.n * sizeof *wanted), *accumulated = malloc(rec.n * sizeof *accumulated);
    begin(1, dim, n_heads, n_kv_heads, dim, &scratch);
    uint8_t *cells = (uint8_t *)k.data;
    ops->kv_store(backend, LQ_CELL_F16, cells, head_bytes, x.data, most, n_kv_heads, dim, 0, most);
    for (uint32_t i = 0; i < n; i++) {
        args[i] = (lq_attention){.q = q.data + (size_t)i * q_len,
                                 .out = out.data + (size_t)i * q_len,
                                 .n_tokens = 1,
                                 .pos0 = n_cells[i] - 1,
                                 .n_heads = n_heads,
                                 .n_kv_heads = n_kv_heads,
                                 .head_dim = dim,
                                 .window = i % 4 == 3 ? 70 : 0,
                                 .scale = 0.3f,
                                 .softcap = softcap,
                                 .n_runs = 1,
                                 .runs = {{LQ_CELL_F16, cells, cells, head_bytes, n_cells[i], false, 0}},
                                 .accumulated = i % 3 != 2 ? rec.data + (size_t)i * n_kv_heads * most : NULL};
        ops->attention(backend, &args[i], 1);
    }
    float *alone = fetch(&out, "attention"), *alone_accumulated = fetch(&rec, "attention");
    for (size_t i = 0; i < out.n; i++) wanted[i] = alone[i];
    for (size_t i = 0; i < rec.n; i++) accumulated[i] = alone_accumulated[i];
    memset(alone, 0, out.n * sizeof(float)), memset(alone_accumulated, 0, rec.n * sizeof(float));
    ops->upload(backend, out.data, alone, out.n * sizeof(float));
    ops->upload(backend, rec.data, alone_accumulated, rec.n * sizeof(float));
    ops->attention(backend, args, n);
    float *got = fetch(&out, "attention together"), *got_accumulated = fetch(&rec, "attention together");
    for (uint32_t i = 0; i < n; i++) /* each by itself, that a short one is not lost among the others */
        check_close("attention together", got + (size_t)i * q_len, wanted + (size_t)i * q_len, q_len, 1e-11);
    check_close("accumulated together", got_accumulated, accumulated, rec.n, 1e-11);
    end(&scratch);
    free(wanted), free(accumulated), free(alone), free(alone_accumulated), free(got), free(got_accumulated);
    release(&x), release(&q), release(&k), release(&out), release(&rec);
}

/* A group of products whose weights have different formats must give the bits of each alone. */
static void check_group(uint32_t n_x) {
    static const int32_t types[LQ_MATMUL_MAX_GROUP] = {LQ_TYPE_F16, LQ_TYPE_Q8_0, LQ_TYPE_BF16};
    enum { N_ROWS = 20, N_COLS = 96 };
    uint8_t *rows[LQ_MATMUL_MAX_GROUP];
    lq_weight weights[LQ_MATMUL_MAX_GROUP];
    lq_matmul group[LQ_MATMUL_MAX_GROUP];
    buffer scratch, x = make((size_t)n_x * N_COLS, 1.0f), y[LQ_MATMUL_MAX_GROUP];
    float *alone[LQ_MATMUL_MAX_GROUP];
    begin(n_x, N_COLS, 1, 1, 4, &scratch);
    for (uint32_t i = 0; i < LQ_MATMUL_MAX_GROUP; i++) {
        const lq_format *format = lq_format_find(types[i]);
        size_t row_bytes = lq_format_row_bytes(format, N_COLS), n = N_ROWS * row_bytes;
        const void *adopted;
        rows[i] = malloc(n);
        for (size_t k = 0; k < n; k += 2) { /* small numbers as scales, as halves and as the upper half of a float */
            uint16_t bits = lq_float_to_half(0.3f * uniform());
            memcpy(rows[i] + k, &bits, 2);
        }
        CHECK_STATUS(ops->adopt(backend, rows[i], n, &adopted), LQ_OK);
        weights[i] = (lq_weight){adopted, format, N_ROWS, N_COLS, row_bytes, NULL};
        y[i] = make((size_t)n_x * N_ROWS, 0.0f);
        group[i] = (lq_matmul){&weights[i], NULL, y[i].data};
        ops->matmul(backend, &group[i], 1, x.data, n_x);
        alone[i] = fetch(&y[i], "matmul");
    }
    ops->matmul(backend, group, LQ_MATMUL_MAX_GROUP, x.data, n_x);
    for (uint32_t i = 0; i < LQ_MATMUL_MAX_GROUP; i++) {
        float *got = fetch(&y[i], "matmul of a group");
        CHECK_MSG(memcmp(got, alone[i], y[i].n * sizeof *got) == 0, "%s with others: other bits for %u rows",
                  weights[i].format->name, (unsigned)n_x);
        free(got), free(alone[i]);
        release(&y[i]);
    }
    end(&scratch);
    for (uint32_t i = 0; i < LQ_MATMUL_MAX_GROUP; i++) free(rows[i]);
    release(&x);
}

int main(int argc, char **argv) {
    static const uint32_t lengths[] = {1, 2000, 64, 65, 700, 3, 1, 130, 1999};
    n_together = MAX_TOGETHER;
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        for (int capped = 0; capped < 2; capped++) {
            float softcap = capped ? 0.8f : 0.0f;
            check_together(9, 3, 64, lengths, MAX_TOGETHER, softcap);
            check_together(4, 1, 256, lengths, 2, softcap);
            check_together(4, 4, 36, lengths + 2, 7, softcap);
            check_together(8, 1, 64, lengths + 4, 3, softcap);
        }
        check_group(1);
        check_group(20);
        check_group(300);
        close_backend();
    }
    return check_report("check_ops_together");
}
