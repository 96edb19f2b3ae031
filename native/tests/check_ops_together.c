/* check_ops_together.c - several attentions in one operation, against each by itself. */
#include "ops_buffers.h"

enum { MAX_TOGETHER = 9 };

/* Attentions of one token each give in one operation what each gives alone; lengths differ, so that some are shared by
 * threads and others not, and not all are asked for what cells received. */
static void check_together(uint32_t n_heads, uint32_t n_kv_heads, uint32_t dim, const uint32_t *n_cells, uint32_t n,
                           float softcap) {
    lq_attention args[MAX_TOGETHER];
    uint32_t most = 0, q_len = n_heads * dim;
    for (uint32_t i = 0; i < n; i++) most = n_cells[i] > most ? n_cells[i] : most;
    uint64_t head_bytes = most * lq_cell_bytes(LQ_CELL_F16, dim);
    buffer scratch, x = make((size_t)most * n_kv_heads * dim, 1.0f), q = make((size_t)n * q_len, 2.0f);
    buffer k = make(n_kv_heads * head_bytes / 4, 0.0f), out = make((size_t)n * q_len, 0.0f);
    buffer rec = make((size_t)n * n_kv_heads * most, 0.0f);
    double *wanted = malloc(out.n * sizeof *wanted), *received = malloc(rec.n * sizeof *received);
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
                                 .received = i % 3 != 2 ? rec.data + (size_t)i * n_kv_heads * most : NULL};
        ops->attention(backend, &args[i], 1);
    }
    float *alone = fetch(&out, "attention"), *alone_received = fetch(&rec, "attention");
    for (size_t i = 0; i < out.n; i++) wanted[i] = alone[i];
    for (size_t i = 0; i < rec.n; i++) received[i] = alone_received[i];
    memset(alone, 0, out.n * sizeof(float)), memset(alone_received, 0, rec.n * sizeof(float));
    ops->upload(backend, out.data, alone, out.n * sizeof(float));
    ops->upload(backend, rec.data, alone_received, rec.n * sizeof(float));
    ops->attention(backend, args, n);
    float *got = fetch(&out, "attention together"), *got_received = fetch(&rec, "attention together");
    for (uint32_t i = 0; i < n; i++) /* each by itself, that a short one is not lost among the others */
        check_close("attention together", got + (size_t)i * q_len, wanted + (size_t)i * q_len, q_len, 1e-11);
    check_close("received together", got_received, received, rec.n, 1e-11);
    end(&scratch);
    free(wanted), free(received), free(alone), free(alone_received), free(got), free(got_received);
    release(&x), release(&q), release(&k), release(&out), release(&rec);
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
        close_backend();
    }
    return check_report("check_ops_together");
}
