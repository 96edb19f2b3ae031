/* check_ops.c - every operation of a backend against a plain double-precision form, with sentinels after each output.
 * Written against backend.h alone, so that the same checks serve every backend. */
#include <math.h>
#include <stdlib.h>

#include "backends/backend.h"
#include "check.h"
#include "core/half.h"

#define SENTINEL 1234.5f
#define N_SENTINELS 16

static lq_backend *backend;
static const lq_backend_ops *ops;
static unsigned long long seed = 42;

/* ---- device buffers with sentinels */

typedef struct buffer {
    float *data;
    size_t n;
} buffer;

static float uniform(void) { return (float)((double)(check_random(&seed) >> 11) * 0x1p-53 * 2.0 - 1.0); }

static buffer make(size_t n, float scale) {
    buffer b = {NULL, n};
    void *memory;
    float *host = malloc((n + N_SENTINELS) * sizeof *host);
    for (size_t i = 0; i < n; i++) host[i] = scale * uniform();
    for (size_t i = 0; i < N_SENTINELS; i++) host[n + i] = SENTINEL;
    CHECK_STATUS(ops->alloc(backend, (n + N_SENTINELS) * sizeof *host, "test", &memory), LQ_OK);
    b.data = memory;
    ops->upload(backend, b.data, host, (n + N_SENTINELS) * sizeof *host);
    free(host);
    return b;
}

/* The buffer's values on the host, after a look at the sentinels. */
static float *fetch(const buffer *b, const char *what) {
    float *host = malloc((b->n + N_SENTINELS) * sizeof *host);
    CHECK_STATUS(ops->sync(backend), LQ_OK);
    ops->download(backend, host, b->data, (b->n + N_SENTINELS) * sizeof *host);
    for (size_t i = 0; i < N_SENTINELS; i++)
        CHECK_MSG(host[b->n + i] == SENTINEL, "%s wrote %zu past its end", what, i);
    return host;
}

static void release(buffer *b) { ops->release(backend, b->data, (b->n + N_SENTINELS) * sizeof(float)); }

/* Normalised squared error: sum (got - wanted)^2 / sum wanted^2. */
static void check_close(const char *what, const float *got, const double *wanted, size_t n, double bound) {
    double error = 0.0, norm = 1e-30;
    for (size_t i = 0; i < n; i++) {
        error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
        norm += wanted[i] * wanted[i];
    }
    CHECK_MSG(error / norm <= bound, "%s: normalised error %.3g above %.3g", what, error / norm, bound);
}

static void begin(uint32_t n_tokens, uint32_t n_cols, uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim,
                  buffer *scratch) {
    lq_scratch_spec spec = {n_tokens, n_cols, n_heads, n_kv_heads, head_dim};
    *scratch = make((size_t)(ops->scratch_bytes(backend, &spec) / sizeof(float)) + 1, 0.0f);
    ops->begin(backend, scratch->data);
}

static void end(buffer *scratch) {
    float *host = fetch(scratch, "scratch");
    ops->end(backend);
    free(host);
    release(scratch);
}

/* ---- elementwise */

static void check_elementwise(uint32_t n_rows, uint32_t n_cols) {
    size_t n = (size_t)n_rows * n_cols;
    buffer scratch, x = make(n, 3.0f), y = make(n, 3.0f), weight = make(n_cols, 1.0f), out = make(n, 0.0f);
    double *wanted = malloc(n * sizeof *wanted);
    begin(n_rows, n_cols, 1, 1, 4, &scratch);
    float *hx = fetch(&x, "input"), *hy = fetch(&y, "input"), *hw = fetch(&weight, "input"), *got;

    ops->rms_norm(backend, out.data, x.data, weight.data, n_rows, n_cols, 1e-5f);
    for (uint32_t r = 0; r < n_rows; r++) {
        double square = 0.0;
        for (uint32_t c = 0; c < n_cols; c++) square += (double)hx[r * n_cols + c] * hx[r * n_cols + c];
        for (uint32_t c = 0; c < n_cols; c++)
            wanted[r * n_cols + c] = hx[r * n_cols + c] / sqrt(square / n_cols + 1e-5) * hw[c];
    }
    got = fetch(&out, "rms_norm");
    check_close("rms_norm", got, wanted, n, 1e-12);
    free(got);

    for (int kind = 0; kind < 2; kind++) {
        ops->upload(backend, out.data, hx, n * sizeof(float));
        ops->glu(backend, out.data, y.data, n, kind == 0 ? LQ_ACT_SILU : LQ_ACT_GELU_TANH);
        for (size_t i = 0; i < n; i++) {
            double g = hx[i];
            double act = kind == 0 ? g / (1.0 + exp(-g))
                                   : 0.5 * g * (1.0 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)));
            wanted[i] = act * hy[i];
        }
        got = fetch(&out, "glu");
        check_close(kind == 0 ? "silu" : "gelu", got, wanted, n, 1e-11);
        free(got);
    }

    ops->upload(backend, out.data, hx, n * sizeof(float));
    ops->add(backend, out.data, y.data, n);
    for (size_t i = 0; i < n; i++) wanted[i] = (double)hx[i] + hy[i];
    got = fetch(&out, "add");
    check_close("add", got, wanted, n, 1e-14);
    free(got);

    end(&scratch);
    free(hx), free(hy), free(hw), free(wanted);
    release(&x), release(&y), release(&weight), release(&out);
}

static void check_rope(uint32_t n_tokens, uint32_t n_heads, uint32_t head_dim, uint32_t n_rot, lq_rope_style style) {
    size_t n = (size_t)n_tokens * n_heads * head_dim;
    buffer scratch, x = make(n, 2.0f), rotations = make((size_t)n_tokens * n_rot, 1.0f);
    double *wanted = malloc(n * sizeof *wanted);
    begin(n_tokens, n_heads * head_dim, n_heads, n_heads, head_dim, &scratch);
    float *hx = fetch(&x, "input"), *hr = fetch(&rotations, "input");
    for (size_t i = 0; i < n; i++) wanted[i] = hx[i];
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (uint32_t h = 0; h < n_heads; h++) {
            size_t at = ((size_t)t * n_heads + h) * head_dim;
            for (uint32_t i = 0; i < n_rot / 2; i++) {
                size_t a = at + (style == LQ_ROPE_PAIRS ? 2 * i : i),
                       b = style == LQ_ROPE_PAIRS ? a + 1 : a + n_rot / 2;
                double c = hr[t * n_rot + 2 * i], s = hr[t * n_rot + 2 * i + 1];
                wanted[a] = hx[a] * c - hx[b] * s;
                wanted[b] = hx[a] * s + hx[b] * c;
            }
        }
    }
    ops->rope(backend, x.data, n_tokens, n_heads, head_dim, n_rot, rotations.data, style);
    float *got = fetch(&x, "rope");
    check_close("rope", got, wanted, n, 1e-13);
    end(&scratch);
    free(got), free(hx), free(hr), free(wanted);
    release(&x), release(&rotations);
}

/* ---- products */

/* Random blocks with sane scales: bytes at random, then every fp16 scale replaced where the type keeps one. */
static uint8_t *random_rows(const lq_format *format, uint32_t n_rows, uint32_t n_cols) {
    size_t n_bytes = (size_t)n_rows * lq_format_row_bytes(format, n_cols), n_blocks = n_bytes / format->block_bytes;
    uint8_t *rows = malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) rows[i] = (uint8_t)check_random(&seed);
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t *block = rows + b * format->block_bytes;
        uint16_t scale = lq_float_to_half(0.01f + 0.02f * fabsf(uniform())), low = lq_float_to_half(0.05f * uniform());
        float value = uniform();
        if (format->type == LQ_TYPE_F32) {
            memcpy(block, &value, 4);
        } else if (format->type == LQ_TYPE_F16) {
            scale = lq_float_to_half(value);
            memcpy(block, &scale, 2);
        } else if (format->type == LQ_TYPE_Q6_K) { /* its scale comes last */
            memcpy(block + format->block_bytes - 2, &scale, 2);
        } else {
            memcpy(block, &scale, 2);
            if (format->type == LQ_TYPE_Q4_1 || format->type == LQ_TYPE_Q4_K || format->type == LQ_TYPE_Q5_K)
                memcpy(block + 2, &low, 2);
        }
    }
    return rows;
}

static void check_matmul(const lq_format *format, uint32_t n_rows, uint32_t n_cols, uint32_t n_x) {
    char what[64];
    size_t row_bytes = lq_format_row_bytes(format, n_cols);
    uint8_t *rows = random_rows(format, n_rows, n_cols);
    const void *adopted;
    CHECK_STATUS(ops->adopt(backend, rows, row_bytes * n_rows, &adopted), LQ_OK);
    lq_weight weight = {adopted, format, n_rows, n_cols, row_bytes};
    buffer scratch, x = make((size_t)n_x * n_cols, 1.0f), bias = make(n_rows, 1.0f);
    buffer y = make((size_t)n_x * n_rows, 0.0f), z = make((size_t)n_x * n_rows, 0.0f);
    double *wanted = malloc((size_t)n_x * n_rows * sizeof *wanted),
           *plain = malloc((size_t)n_x * n_rows * sizeof *plain);
    float *decoded = malloc(n_cols * sizeof *decoded);
    begin(n_x, n_cols, 1, 1, 4, &scratch);
    float *hx = fetch(&x, "input"), *hb = fetch(&bias, "input"), *got;
    for (uint32_t r = 0; r < n_rows; r++) {
        format->dequantize(decoded, rows + r * row_bytes, n_cols);
        for (uint32_t t = 0; t < n_x; t++) {
            double sum = 0.0;
            for (uint32_t c = 0; c < n_cols; c++) sum += (double)decoded[c] * hx[(size_t)t * n_cols + c];
            plain[(size_t)t * n_rows + r] = sum;
            wanted[(size_t)t * n_rows + r] = sum + hb[r];
        }
    }
    lq_matmul group[2] = {{&weight, bias.data, y.data}, {&weight, NULL, z.data}};
    ops->matmul(backend, group, 2, x.data, n_x);
    double bound = format->block_len == 1 ? 1e-11 : 1e-4;
    /* F32 and F16 rows meet float activations. The others int8 ones: an error of at most half a step of max/127 a
     * value; squared and normalised about 2e-5. */
    snprintf(what, sizeof what, "matmul %s %ux%ux%u", format->name, (unsigned)n_rows, (unsigned)n_cols, (unsigned)n_x);
    got = fetch(&y, what);
    check_close(what, got, wanted, (size_t)n_x * n_rows, bound);
    free(got);
    got = fetch(&z, what);
    check_close(what, got, plain, (size_t)n_x * n_rows, bound);
    free(got);

    /* embed reads single rows of the same matrix */
    int32_t tokens[3] = {(int32_t)n_rows - 1, 0, (int32_t)(n_rows / 2)};
    buffer embedded = make((size_t)3 * n_cols, 0.0f);
    ops->embed(backend, embedded.data, &weight, tokens, 3, 1.5f);
    got = fetch(&embedded, "embed");
    for (int t = 0; t < 3; t++) {
        format->dequantize(decoded, rows + (size_t)tokens[t] * row_bytes, n_cols);
        for (uint32_t c = 0; c < n_cols; c++)
            CHECK_MSG(fabsf(got[t * n_cols + c] - 1.5f * decoded[c]) <= 1e-6f * fabsf(decoded[c]), "embed %s",
                      format->name);
    }
    free(got);
    end(&scratch);
    free(hx), free(hb), free(wanted), free(plain), free(decoded), free(rows);
    release(&x), release(&bias), release(&y), release(&z), release(&embedded);
}

/* ---- attention over stored keys and values */

typedef struct attention_case {
    uint32_t n_heads, n_kv_heads, head_dim, n_past, n_tokens, window, n_cells;
} attention_case;

/* Stores n_past + n_tokens tokens in a ring (the past in one piece, then the chunk) and attends the chunk. */
static void check_attention(const attention_case *a) {
    uint32_t total = a->n_past + a->n_tokens, group = a->n_heads / a->n_kv_heads, dim = a->head_dim;
    uint32_t first = a->window != 0 && a->n_past >= a->window ? a->n_past - a->window + 1 : 0;
    size_t kv_row = (size_t)a->n_kv_heads * dim, n_out = (size_t)a->n_tokens * a->n_heads * dim;
    buffer scratch, k = make(total * kv_row, 1.0f), v = make(total * kv_row, 1.0f), q = make(n_out, 1.0f);
    buffer out = make(n_out, 0.0f), ck = make((a->n_cells * kv_row + 1) / 2, 0.0f),
           cv = make((a->n_cells * kv_row + 1) / 2, 0.0f);
    double *wanted = calloc(n_out, sizeof *wanted), *p = malloc(total * sizeof *p);
    begin(a->n_tokens, dim, a->n_heads, a->n_kv_heads, dim, &scratch);
    float *hk = fetch(&k, "input"), *hv = fetch(&v, "input"), *hq = fetch(&q, "input");

    size_t head_stride = (size_t)a->n_cells * dim;
    uint16_t *cells_k = (uint16_t *)(void *)ck.data, *cells_v = (uint16_t *)(void *)cv.data;
    for (uint32_t at = 0; at < total;) {
        uint32_t n = at < a->n_past ? a->n_past - at : a->n_tokens;
        if (n > a->n_cells) n = a->n_cells;
        ops->kv_store(backend, cells_k, k.data + at * kv_row, n, a->n_kv_heads, dim, head_stride, at % a->n_cells,
                      a->n_cells);
        ops->kv_store(backend, cells_v, v.data + at * kv_row, n, a->n_kv_heads, dim, head_stride, at % a->n_cells,
                      a->n_cells);
        at += n;
    }
    lq_attention args = {.q = q.data,
                         .out = out.data,
                         .n_tokens = a->n_tokens,
                         .pos0 = a->n_past,
                         .n_heads = a->n_heads,
                         .n_kv_heads = a->n_kv_heads,
                         .head_dim = dim,
                         .window = a->window,
                         .scale = 0.3f};
    for (uint32_t pos = first; pos < total;) {
        uint32_t cell = pos % a->n_cells, n = a->n_cells - cell < total - pos ? a->n_cells - cell : total - pos;
        args.runs[args.n_runs++] =
            (lq_attn_run){cells_k + (size_t)cell * dim, cells_v + (size_t)cell * dim, head_stride, n, pos};
        pos += n;
    }
    ops->attention(backend, &args);

    for (uint32_t t = 0; t < a->n_tokens; t++) {
        uint32_t pos = a->n_past + t, oldest = a->window != 0 && pos >= a->window ? pos - a->window + 1 : 0;
        for (uint32_t h = 0; h < a->n_heads; h++) {
            const float *query = hq + ((size_t)t * a->n_heads + h) * dim;
            double sum = 0.0;
            for (uint32_t j = oldest; j <= pos; j++) {
                double score = 0.0;
                for (uint32_t d = 0; d < dim; d++)
                    score +=
                        (double)query[d] * lq_half_to_float(lq_float_to_half(hk[j * kv_row + h / group * dim + d]));
                sum += p[j] = exp(0.3 * score);
            }
            for (uint32_t j = oldest; j <= pos; j++)
                for (uint32_t d = 0; d < dim; d++)
                    wanted[((size_t)t * a->n_heads + h) * dim + d] +=
                        p[j] / sum * lq_half_to_float(lq_float_to_half(hv[j * kv_row + h / group * dim + d]));
        }
    }
    char what[96];
    snprintf(what, sizeof what, "attention %u/%u heads of %u, %u + %u tokens, window %u, %u cells",
             (unsigned)a->n_heads, (unsigned)a->n_kv_heads, (unsigned)dim, (unsigned)a->n_past, (unsigned)a->n_tokens,
             (unsigned)a->window, (unsigned)a->n_cells);
    float *got = fetch(&out, what);
    check_close(what, got, wanted, n_out, 1e-10);
    free(got);
    free(fetch(&ck, "kv_store")), free(fetch(&cv, "kv_store"));
    end(&scratch);
    free(hk), free(hv), free(hq), free(wanted), free(p);
    release(&k), release(&v), release(&q), release(&out), release(&ck), release(&cv);
}

static void check_backend(void) {
    static const attention_case cases[] = {
        {1, 1, 64, 0, 1, 0, 8},        {9, 3, 64, 700, 1, 0, 1024},   {9, 3, 64, 0, 100, 0, 100},
        {4, 1, 256, 40, 33, 0, 128},   {4, 4, 80, 300, 7, 0, 512},    {8, 1, 96, 130, 20, 0, 150},
        {2, 1, 128, 2000, 1, 0, 2001}, {4, 1, 64, 500, 30, 100, 140}, {4, 2, 64, 90, 1, 64, 96},
        {4, 2, 64, 1000, 1, 600, 700}, {70, 1, 16, 20, 3, 0, 32},     {6, 2, 36, 100, 5, 7, 12},
    };
    static const int32_t types[] = {LQ_TYPE_F32,  LQ_TYPE_F16,  LQ_TYPE_Q4_0, LQ_TYPE_Q4_1, LQ_TYPE_Q5_0,
                                    LQ_TYPE_Q8_0, LQ_TYPE_Q4_K, LQ_TYPE_Q5_K, LQ_TYPE_Q6_K};
    check_elementwise(1, 64);
    check_elementwise(3, 577);
    check_elementwise(70, 640);
    check_rope(1, 2, 64, 64, LQ_ROPE_PAIRS);
    check_rope(40, 9, 64, 64, LQ_ROPE_HALVES);
    check_rope(5, 3, 80, 32, LQ_ROPE_PAIRS);
    check_rope(5, 3, 96, 48, LQ_ROPE_HALVES);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const lq_format *format = lq_format_find(types[i]);
        check_matmul(format, 67, 512, 1);
        check_matmul(format, 300, 256, 5);
        check_matmul(format, 33, 768, 37);
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_attention(&cases[i]);
}

int main(void) {
    static const uint32_t threads[] = {1, 2, 5};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        CHECK_STATUS(lq_backend_cpu_create(threads[i], &backend), LQ_OK);
        if (backend == NULL) return check_report("check_ops");
        ops = backend->ops;
        check_backend();
        ops->free(backend);
        backend = NULL;
    }
    return check_report("check_ops");
}
