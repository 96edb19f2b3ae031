/* check_ops.c - checks every operation of a backend against a plain double-precision form, with sentinels after each
 * output. It uses backend.h alone, so that the same checks serve every backend. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "check.h"
#include "core/half.h"
#include "logquant_device.h"
#include "ops_buffers.h"

static float softcap; /* of attention, while its cases run */

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

    for (int i = 0; i < 2; i++) {
        float scale = i == 0 ? 1.0f : 0.22f;
        ops->upload(backend, out.data, hx, n * sizeof(float));
        ops->add(backend, out.data, y.data, scale, n);
        for (size_t j = 0; j < n; j++) wanted[j] = hx[j] + (double)scale * hy[j];
        got = fetch(&out, "add");
        check_close("add", got, wanted, n, 1e-14);
        free(got);
    }

    ops->upload(backend, out.data, hx, n * sizeof(float));
    ops->softcap(backend, out.data, 1.7f, n);
    for (size_t i = 0; i < n; i++) wanted[i] = 1.7f * tanh(hx[i] / 1.7f);
    got = fetch(&out, "softcap");
    check_close("softcap", got, wanted, n, 1e-12);
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

static void put_half(uint8_t *at, float value) {
    uint16_t half = lq_float_to_half(value);
    memcpy(at, &half, 2);
}

/* Gives a random block sane scales: half floats at the end of the block, at its start, and minima behind those. */
static void set_scales(int32_t type, uint32_t block_bytes, uint8_t *block) {
    float scale = 0.01f + 0.02f * fabsf(uniform()), low = 0.05f * uniform(), value = uniform();
    switch (type) {
    case LQ_TYPE_F32:
        memcpy(block, &value, 4);
        break;
    case LQ_TYPE_BF16:
        memcpy(block, (uint8_t *)&value + 2, 2);
        break;
    case LQ_TYPE_F16:
        put_half(block, value);
        break;
    case LQ_TYPE_Q2_K:
        put_half(block + block_bytes - 4, scale);
        put_half(block + block_bytes - 2, low);
        break;
    case LQ_TYPE_Q3_K:
    case LQ_TYPE_Q6_K:
    case LQ_TYPE_TQ1_0:
    case LQ_TYPE_TQ2_0:
        put_half(block + block_bytes - 2, scale);
        break;
    case LQ_TYPE_MXFP4:
        block[0] = (uint8_t)(120 + block[0] % 4);
        break;
    case LQ_TYPE_NVFP4:
        for (int i = 0; i < 4; i++) block[i] &= 63;
        break;
    case LQ_TYPE_IQ1_M: /* 0x2400 in the top nibbles of four words, the lowest first */
        for (int i = 0; i < 4; i++)
            block[48 + 2 * i + 1] = (uint8_t)((block[48 + 2 * i + 1] & 15) | "\0\0\4\2"[i] << 4);
        break;
    default:
        put_half(block, scale);
        if (type == LQ_TYPE_Q4_1 || type == LQ_TYPE_Q5_1 || type == LQ_TYPE_Q4_K || type == LQ_TYPE_Q5_K)
            put_half(block + 2, low);
    }
}

static uint8_t *random_rows(const lq_format *format, uint32_t n_rows, uint32_t n_cols) {
    size_t n_bytes = (size_t)n_rows * lq_format_row_bytes(format, n_cols), n_blocks = n_bytes / format->block_bytes;
    uint8_t *rows = malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) rows[i] = (uint8_t)check_random(&seed);
    for (size_t b = 0; b < n_blocks; b++) set_scales(format->type, format->block_bytes, rows + b * format->block_bytes);
    return rows;
}

static void check_matmul(const lq_format *format, uint32_t n_rows, uint32_t n_cols, uint32_t n_x) {
    char what[64];
    size_t row_bytes = lq_format_row_bytes(format, n_cols);
    uint8_t *rows = random_rows(format, n_rows, n_cols);
    const void *adopted;
    CHECK_STATUS(ops->adopt(backend, rows, row_bytes * n_rows, &adopted), LQ_OK);
    lq_weight weight = {adopted, format, n_rows, n_cols, row_bytes, NULL};
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
    /* int8 activations: 1.5e-5 on average; with one row of x the chance sum of its rounding errors weighs in */
    double bound = format->block_len == 1 ? 1e-11 : 5e-4;
    if (format->block_bytes == 2 && n_x > 8) bound = 1e-10; /* tensor cores cut sums off where others round */
    /* F32, F16 and BF16 rows meet float activations. The others int8 ones: an error of at most half a step of max/127 a
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

/* Checks rows of x of every magnitude that floats have: each must be as exact as the others. */
static void check_matmul_range(const lq_format *format, uint32_t n_x) {
    static const float sizes[] = {1.0f, 1e5f, 1e-30f, 0.0f, 1e30f, 3e-39f, 1e-3f};
    enum { N_ROWS = 20, N_COLS = 96 };
    bool rounded = format->block_len != 1; /* activations are */
    size_t row_bytes = lq_format_row_bytes(format, N_COLS);
    uint8_t *rows = random_rows(format, N_ROWS, N_COLS);
    const void *adopted;
    CHECK_STATUS(ops->adopt(backend, rows, row_bytes * N_ROWS, &adopted), LQ_OK);
    lq_weight weight = {adopted, format, N_ROWS, N_COLS, row_bytes, NULL};
    buffer scratch, x = make((size_t)n_x * N_COLS, 1.0f), y = make((size_t)n_x * N_ROWS, 0.0f);
    lq_matmul product = {&weight, NULL, y.data};
    begin(n_x, N_COLS, 1, 1, 4, &scratch);
    float *hx = fetch(&x, "input"), decoded[N_COLS];
    double *wanted = malloc((size_t)n_x * N_ROWS * sizeof *wanted);
    for (size_t i = 0; i < (size_t)n_x * N_COLS; i++) hx[i] *= sizes[i / N_COLS % (sizeof sizes / sizeof sizes[0])];
    ops->upload(backend, x.data, hx, (size_t)n_x * N_COLS * sizeof *hx);
    ops->matmul(backend, &product, 1, x.data, n_x);
    float *got = fetch(&y, "matmul");
    for (uint32_t i = 0; i < n_x * N_ROWS; i++) {
        format->dequantize(decoded, rows + i % N_ROWS * row_bytes, N_COLS);
        wanted[i] = 0.0;
        for (uint32_t c = 0; c < N_COLS; c++) wanted[i] += (double)decoded[c] * hx[i / N_ROWS * N_COLS + c];
    }
    for (uint32_t t = 0; t < n_x; t++) {
        double error = 0.0, norm = 0.0;
        for (uint32_t i = t * N_ROWS; i < (t + 1) * N_ROWS; i++) {
            error += (got[i] - wanted[i]) * (got[i] - wanted[i]);
            norm += wanted[i] * wanted[i];
        }
        /* denormal numbers have fewer bits, and none that are left after rounding */
        double bound = rounded ? 1e-3 : sizes[t % 7] < 1e-37f ? 1e-3 : 1e-10;
        if (rounded && sizes[t % 7] < 1e-37f) continue;
        CHECK_MSG(error <= bound * norm, "matmul %s of a row of %g: normalised error %.3g", format->name,
                  (double)sizes[t % 7], error / norm);
    }
    end(&scratch);
    free(hx), free(got), free(rows), free(wanted);
    release(&x), release(&y);
}

/* ---- attention over stored keys and values */

/* Value i of a stored cell as a float, which is what the double-precision form computes with. */
static float stored(lq_cell_format format, const uint8_t *cell, uint32_t i) {
    if (format == LQ_CELL_F16) return lq_half_to_float(((const uint16_t *)(const void *)cell)[i]);
    const uint8_t *block = cell + i / LQ_CELL_BLOCK * (LQ_CELL_BLOCK + 2);
    return lq_half_to_float((uint16_t)(block[0] | block[1] << 8)) * (float)(int8_t)block[2 + i % LQ_CELL_BLOCK];
}

/* Attends one query head over n keys and values [n][dim]: adds to out [dim], and its probabilities to accumulated. */
static void attend_exactly(const float *q, const float *k, const float *v, const unsigned char *seen, uint32_t n,
                           uint32_t dim, double *out, double *accumulated) {
    double *p = malloc((n + 1) * sizeof *p), sum = 0.0;
    for (uint32_t j = 0; j < n; j++) {
        double score = 0.0;
        if (!seen[j]) continue;
        for (uint32_t d = 0; d < dim; d++) score += (double)q[d] * k[(size_t)j * dim + d];
        score *= 0.3;
        if (softcap > 0.0f) score = softcap * tanh(score / softcap);
        sum += p[j] = exp(score);
    }
    for (uint32_t j = 0; j < n; j++) {
        if (!seen[j]) continue;
        double weight = p[j] / sum;
        accumulated[j] += weight;
        for (uint32_t d = 0; d < dim; d++) out[d] += weight * v[(size_t)j * dim + d];
    }
    free(p);
}

/* Whether attention of so many queries uses 16-bit numbers, as some CPU levels and the tensor cores of GPUs do. */
static bool takes_words(uint32_t n_tokens, uint32_t n_rows, uint32_t dim) {
    const char *level = "";
    lq_cuda_device device = {.struct_size = (uint32_t)sizeof device};
    if (n_rows <= 16) return false;
    if (strcmp(ops->name, "cpu") == 0) {
        CHECK(lq_cpu_level(&level) == LQ_OK);
        return strstr(level, "vnni") != NULL;
    }
    CHECK(lq_cuda_get_device(NULL, 0, &device) == LQ_OK);
    return n_tokens > 1 && dim % 16 == 0 && dim <= 256 && 10 * device.major + device.minor >= 75;
}

typedef struct attention_case {
    uint32_t n_heads, n_kv_heads, head_dim, n_past, n_tokens, window, n_cells;
    lq_cell_format format;
} attention_case;

/* Stores n_past + n_tokens tokens in a ring buffer (the past in one piece, then the chunk) and attends the chunk. */
static void check_attention(const attention_case *a) {
    uint32_t total = a->n_past + a->n_tokens, group = a->n_heads / a->n_kv_heads, dim = a->head_dim;
    uint32_t first = a->window != 0 && a->n_past >= a->window ? a->n_past - a->window + 1 : 0,
             n_columns = total - first;
    size_t kv_row = (size_t)a->n_kv_heads * dim, n_out = (size_t)a->n_tokens * a->n_heads * dim;
    size_t cell_bytes = lq_cell_bytes(a->format, dim), head_bytes = a->n_cells * cell_bytes;
    size_t cells = (a->n_kv_heads * head_bytes + 3) / 4, n_accumulated = (size_t)a->n_kv_heads * n_columns;
    buffer scratch, k = make(total * kv_row, 1.0f), v = make(total * kv_row, 1.0f), q = make(n_out, 1.0f);
    buffer out = make(n_out, 0.0f), ck = make(cells, 0.0f), cv = make(cells, 0.0f), rec = make(n_accumulated, 1.0f);
    double *wanted = calloc(n_out, sizeof *wanted), *accumulated = calloc(n_accumulated, sizeof *accumulated);
    float *hq = fetch(&q, "input"), *dk = malloc(total * (size_t)dim * 4), *dv = malloc(total * (size_t)dim * 4);
    unsigned char *seen = malloc(total);
    uint8_t *cells_k = (uint8_t *)ck.data, *cells_v = (uint8_t *)cv.data;
    begin(a->n_tokens + a->n_past % 2, /* a chunk may be shorter than the longest */
          dim, a->n_heads, a->n_kv_heads, dim, &scratch);

    for (uint32_t at = 0; at < total;) {
        uint32_t n = at < a->n_past ? a->n_past - at : a->n_tokens;
        if (n > a->n_cells) n = a->n_cells;
        ops->kv_store(backend, a->format, cells_k, head_bytes, k.data + at * kv_row, n, a->n_kv_heads, dim,
                      at % a->n_cells, a->n_cells);
        ops->kv_store(backend, a->format, cells_v, head_bytes, v.data + at * kv_row, n, a->n_kv_heads, dim,
                      at % a->n_cells, a->n_cells);
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
                         .scale = 0.3f,
                         .softcap = softcap,
                         .accumulated = n_columns <= MAX_COLUMNS ? rec.data : NULL};
    for (uint32_t pos = first; pos < total;) {
        uint32_t cell = pos % a->n_cells, n = a->n_cells - cell < total - pos ? a->n_cells - cell : total - pos;
        args.runs[args.n_runs++] = (lq_attn_run){.format = a->format,
                                                 .k = cells_k + cell * cell_bytes,
                                                 .v = cells_v + cell * cell_bytes,
                                                 .head_bytes = head_bytes,
                                                 .n_cells = n,
                                                 .pos0 = pos};
        pos += n;
    }
    ops->attention(backend, &args, 1);

    uint8_t *hck = (uint8_t *)fetch(&ck, "kv_store"), *hcv = (uint8_t *)fetch(&cv, "kv_store");
    for (uint32_t h = 0; h < a->n_heads; h++) {
        for (uint32_t i = 0; i < n_columns * dim; i++) { /* keys and values of the head, by column */
            size_t at = h / group * head_bytes + (first + i / dim) % a->n_cells * cell_bytes;
            dk[i] = stored(a->format, hck + at, i % dim), dv[i] = stored(a->format, hcv + at, i % dim);
        }
        for (uint32_t t = 0; t < a->n_tokens; t++) {
            uint32_t pos = a->n_past + t, oldest = a->window != 0 && pos >= a->window ? pos - a->window + 1 : 0;
            size_t row = ((size_t)t * a->n_heads + h) * dim;
            for (uint32_t j = 0; j < n_columns; j++) seen[j] = first + j >= oldest && first + j <= pos;
            attend_exactly(hq + row, dk, dv, seen, n_columns, dim, wanted + row,
                           accumulated + h / group * (size_t)n_columns);
        }
    }
    char what[112];
    snprintf(what, sizeof what, "attention %u/%u heads of %u, %u + %u tokens, window %u, %u cells, format %d",
             (unsigned)a->n_heads, (unsigned)a->n_kv_heads, (unsigned)dim, (unsigned)a->n_past, (unsigned)a->n_tokens,
             (unsigned)a->window, (unsigned)a->n_cells, (int)a->format);
    float *got = fetch(&out, what), *got_accumulated = fetch(&rec, what);
    bool words = takes_words(a->n_tokens, a->n_tokens * group, dim); /* check_attention checks each sum of the CPU's */
    check_close(what, got, wanted, n_out, words ? 3e-7 : 1e-10);
    if (args.accumulated != NULL) check_close(what, got_accumulated, accumulated, n_accumulated, words ? 3e-8 : 1e-10);
    end(&scratch);
    free(got), free(got_accumulated), free(hck), free(hcv);
    free(hq), free(wanted), free(accumulated), free(dk), free(dv), free(seen);
    release(&k), release(&v), release(&q), release(&out), release(&ck), release(&cv), release(&rec);
}

/* ---- packed pages */

typedef struct page_case {
    uint32_t n_heads, n_kv_heads, head_dim, n_pages, n_overlay, n_tokens;
    lq_cell_format overlay;
    bool f16_scales;
} page_case;

static buffer make_bytes(size_t n_bytes) { return make((n_bytes + 3) / 4, 0.0f); }

/* Encodes n_pages pages whose tokens come from two runs, moves every second token of the first n_overlay pairs to an
 * overlay, masks it in its page, and attends pages, overlay and a chunk. */
static void check_pages(const page_case *c) {
    uint32_t dim = c->head_dim, heads = c->n_kv_heads, group = c->n_heads / heads, n_past = 64 * c->n_pages;
    lq_page_split split = {3, {{4, 3, 8}, {2, 3, 8}, {1, 1, 4}}};
    lq_page_format format;
    lq_page_format_init(&format, dim, &split, 2, !c->f16_scales, c->f16_scales);
    uint64_t block_bytes = lq_page_block_bytes(&format, heads);
    size_t f16 = 2 * (size_t)dim, n_out = (size_t)c->n_tokens * c->n_heads * dim, cell = lq_cell_bytes(c->overlay, dim);
    buffer x = make((size_t)(n_past + c->n_tokens) * heads * dim, 1.5f), q = make(n_out, 1.0f), out = make(n_out, 0.0f);
    buffer near_k = make_bytes(heads * 40 * f16), near_v = make_bytes(heads * 40 * f16);
    buffer far_k = make_bytes(heads * (n_past + c->n_tokens) * f16),
           far_v = make_bytes(heads * (n_past + c->n_tokens) * f16);
    buffer over_k = make_bytes(heads * c->n_overlay * cell), over_v = make_bytes(heads * c->n_overlay * cell);
    buffer blocks = make_bytes((c->n_pages + 1) * block_bytes), masks = make_bytes((size_t)heads * c->n_pages * 8);
    buffer order = make_bytes((size_t)heads * dim * 2), scratch;
    uint32_t n_columns = c->n_overlay + c->n_tokens, far_cells = n_past - 40 + c->n_tokens;
    buffer rec = make((size_t)heads * n_columns, 1.0f);
    buffer frames = make_bytes(c->n_pages * sizeof(uint8_t *));
    for (uint32_t page = 0; page < c->n_pages; page++) { /* the second block of each frame, frames from last to first */
        uint8_t *frame = (uint8_t *)blocks.data + (c->n_pages - 1 - page) * block_bytes;
        ops->upload(backend, (uint8_t **)(void *)frames.data + page, &frame, sizeof frame);
    }
    lq_kv_pages pages = {.format = &format,
                         .frames = (uint8_t *const *)(void *)frames.data,
                         .block_offset = block_bytes,
                         .masks = (uint64_t *)(void *)masks.data,
                         .n_slots = c->n_pages,
                         .end_page = c->n_pages,
                         .order = (uint16_t *)(void *)order.data};
    begin(c->n_tokens, dim, c->n_heads, heads, dim, &scratch);

    /* 40 tokens in one run, the others and the chunk in the next; values are the keys rotated */
    uint64_t far_bytes = (n_past + c->n_tokens) * f16;
    lq_attn_run near_run = {LQ_CELL_F16, (uint8_t *)near_k.data, (uint8_t *)near_v.data, 40 * f16, 40, true, 0};
    lq_attn_run far = {LQ_CELL_F16, (uint8_t *)far_k.data, (uint8_t *)far_v.data, far_bytes, n_past - 40, true, 0};
    ops->kv_store(backend, LQ_CELL_F16, near_run.k, near_run.head_bytes, x.data, 40, heads, dim, 0, 40);
    ops->kv_store(backend, LQ_CELL_F16, far.k, far_bytes, x.data + 40 * heads * dim, far_cells, heads, dim, 0,
                  far_cells);
    float *keys = fetch(&x, "keys");
    ops->hadamard(backend, x.data, (n_past + c->n_tokens) * heads, dim);
    float *values = fetch(&x, "hadamard");
    for (uint32_t i = 0; i < (n_past + c->n_tokens) * heads; i++) {
        double before = 0.0, after = 0.0;
        for (uint32_t d = 0; d < dim; d++) {
            before += (double)keys[i * dim + d] * keys[i * dim + d];
            after += (double)values[i * dim + d] * values[i * dim + d];
        }
        CHECK(fabs(after - before) < 1e-5 * before);
    }
    ops->kv_store(backend, LQ_CELL_F16, near_run.v, near_run.head_bytes, x.data, 40, heads, dim, 0, 40);
    ops->kv_store(backend, LQ_CELL_F16, far.v, far_bytes, x.data + 40 * heads * dim, far_cells, heads, dim, 0,
                  far_cells);
    for (size_t i = 0; i < (size_t)(n_past + c->n_tokens) * heads * dim; i++) {
        keys[i] = lq_half_to_float(lq_float_to_half(keys[i]));
        values[i] = lq_half_to_float(lq_float_to_half(values[i]));
    }
    /* two calls, so that a later page is coded with the order of the first */
    lq_kv_pack pack = {&pages, 0, 1, true, heads, 2, {near_run, far}};
    ops->kv_pack(backend, &pack);
    lq_attn_run rest = far;
    rest.k += 24 * f16, rest.v += 24 * f16, rest.n_cells -= 24;
    pack = (lq_kv_pack){&pages, 1, c->n_pages - 1, false, heads, 1, {rest}};
    if (c->n_pages > 1) ops->kv_pack(backend, &pack);

    uint32_t *columns = malloc(((size_t)heads * c->n_overlay + 1) * sizeof *columns);
    for (uint32_t h = 0; h < heads; h++) /* another token of each pair per head */
        for (uint32_t i = 0; i < c->n_overlay; i++) columns[h * c->n_overlay + i] = 2 * i + (h + i / 3) % 2;
    lq_attn_run over = {
        c->overlay, (uint8_t *)over_k.data, (uint8_t *)over_v.data, c->n_overlay * cell, c->n_overlay, true, 0};
    buffer listed = make_bytes(((size_t)heads * c->n_overlay + 1) * sizeof *columns);
    const uint32_t *device_columns = (const uint32_t *)(const void *)listed.data;
    ops->upload(backend, listed.data, columns, (size_t)heads * c->n_overlay * sizeof *columns);
    lq_kv_gather gather = {over, heads, dim, c->n_overlay, device_columns, c->n_overlay, 0, 2, {near_run, far}};
    ops->kv_gather(backend, &gather);
    lq_kv_masks set = {&pages, heads, device_columns, c->n_overlay, c->n_overlay, 0};
    ops->kv_masks(backend, &set);
    lq_attn_run chunk = far;
    chunk.k += (n_past - 40) * f16, chunk.v += (n_past - 40) * f16;
    chunk.n_cells = c->n_tokens, chunk.history = false, chunk.pos0 = n_past + 7;
    lq_attention args = {.q = q.data,
                         .out = out.data,
                         .n_tokens = c->n_tokens,
                         .pos0 = n_past + 7,
                         .n_heads = c->n_heads,
                         .n_kv_heads = heads,
                         .head_dim = dim,
                         .scale = 0.3f,
                         .softcap = softcap,
                         .pages = &pages,
                         .n_runs = 2,
                         .runs = {over, chunk},
                         .accumulated = rec.data};
    ops->attention(backend, &args, 1);

    /* what must have come out, from the host copies and the scalar page code */
    uint8_t *hb = (uint8_t *)fetch(&blocks, "kv_pack"), *ho = (uint8_t *)fetch(&order, "kv_pack");
    uint8_t *hm = (uint8_t *)fetch(&masks, "kv_masks"), *hok = (uint8_t *)fetch(&over_k, "kv_gather"),
            *hov = (uint8_t *)fetch(&over_v, "kv_gather");
    float *hq = fetch(&q, "input"), *got = fetch(&out, "attention"), *got_accumulated = fetch(&rec, "attention");
    uint32_t n_all = n_past + n_columns;
    float *tile = malloc(64 * (size_t)dim * 4), *k = malloc((size_t)n_all * dim * 4),
          *v = malloc((size_t)n_all * dim * 4);
    uint8_t *codes = malloc(64 * (size_t)dim), *record = malloc(format.k_bytes + format.v_bytes + format.scale_bytes);
    unsigned char *seen = malloc(n_all);
    double *wanted = calloc(n_out, sizeof *wanted), *p = calloc(n_all, sizeof *p);
    double *accumulated = calloc((size_t)heads * n_columns, sizeof *accumulated);
    float base[LQ_PAGE_MAX_HEAD_DIM], step[LQ_PAGE_MAX_HEAD_DIM];
    for (uint32_t h = 0; h < heads; h++) {
        const uint16_t *places = (const uint16_t *)(const void *)ho + (size_t)h * dim;
        const uint64_t *mask = (const uint64_t *)(const void *)hm + (size_t)h * c->n_pages;
        for (uint32_t page = 0; page < c->n_pages; page++) {
            lq_page_record is = lq_page_record_at(&format, hb + (c->n_pages - page) * block_bytes, heads, h);
            lq_page_record should = {record, record + format.k_bytes, record + format.k_bytes + format.v_bytes};
            for (uint32_t kind = 0; kind < 2; kind++) {
                for (uint32_t i = 0; i < 64 * dim; i++)
                    tile[i] = (kind ? values : keys)[((size_t)(64 * page + i / dim) * heads + h) * dim + i % dim];
                if (kind == 0) {
                    uint16_t learnt[LQ_PAGE_MAX_HEAD_DIM];
                    lq_page_learn_order(&format, tile, learnt);
                    if (page == 0) CHECK(memcmp(learnt, places, dim * 2) == 0);
                    lq_page_encode_keys(&format, tile, places, should);
                } else {
                    lq_page_encode_values(&format, tile, should);
                }
            }
            CHECK(memcmp(is.k, should.k, format.k_bytes) == 0 && memcmp(is.v, should.v, format.v_bytes) == 0);
            CHECK(memcmp(is.scales, should.scales, format.scale_bytes) == 0);
            lq_page_unpack_keys(&format, is.k, codes);
            lq_page_key_scales(&format, is.scales, base, step);
            for (uint32_t i = 0; i < dim; i++)
                for (uint32_t t = 0; t < 64; t++)
                    k[(size_t)(64 * page + t) * dim + places[i]] = base[i] + step[i] * (float)codes[i * 64 + t];
            lq_page_unpack_values(&format, is.v, codes);
            for (uint32_t g = 0; g < format.n_groups; g++) {
                lq_page_value_scales(&format, is.scales, g, base, step);
                for (uint32_t t = 0; t < 64; t++)
                    for (uint32_t d = g * 64; d < g * 64 + lq_page_group_len(&format, g); d++)
                        v[(size_t)(64 * page + t) * dim + d] = base[t] + step[t] * (float)codes[t * dim + d];
            }
        }
        memset(seen, 1, n_all);
        for (uint32_t i = 0; i < c->n_overlay; i++) {
            uint32_t token = columns[h * c->n_overlay + i];
            CHECK(mask[token / 64] >> token % 64 & 1);
            seen[token] = 0;
            for (uint32_t d = 0; d < dim; d++) {
                k[(size_t)(n_past + i) * dim + d] = stored(c->overlay, hok + (h * c->n_overlay + i) * cell, d);
                v[(size_t)(n_past + i) * dim + d] = stored(c->overlay, hov + (h * c->n_overlay + i) * cell, d);
                CHECK(fabsf(k[(size_t)(n_past + i) * dim + d] - keys[((size_t)token * heads + h) * dim + d]) < 0.01f);
            }
        }
        uint32_t n_bits = 0;
        for (uint32_t page = 0; page < c->n_pages; page++)
            for (uint32_t t = 0; t < 64; t++) n_bits += mask[page] >> t & 1;
        CHECK(n_bits == c->n_overlay);
        for (uint32_t t = 0; t < c->n_tokens; t++) {
            size_t to = (size_t)(n_past + c->n_overlay + t) * dim, from = ((size_t)(n_past + t) * heads + h) * dim;
            memcpy(k + to, keys + from, dim * 4), memcpy(v + to, values + from, dim * 4);
        }
        for (uint32_t t = 0; t < c->n_tokens; t++) {
            for (uint32_t j = 0; j < c->n_tokens; j++) seen[n_past + c->n_overlay + j] = j <= t;
            for (uint32_t g = 0; g < group; g++) {
                size_t row = ((size_t)t * c->n_heads + h * group + g) * dim;
                attend_exactly(hq + row, k, v, seen, n_all, dim, wanted + row, p);
            }
        }
        for (uint32_t j = 0; j < n_columns; j++) accumulated[h * n_columns + j] = p[n_past + j];
        memset(p, 0, n_all * sizeof *p);
    }
    char what[96];
    snprintf(what, sizeof what, "pages, %u/%u heads of %u, %u pages, overlay %u, chunk %u", (unsigned)c->n_heads,
             (unsigned)heads, (unsigned)dim, (unsigned)c->n_pages, (unsigned)c->n_overlay, (unsigned)c->n_tokens);
    /* All but the CPU's scalar level round weights to int8; what a single page may be off there is check_attention's to
     * check. */
    const char *level = "";
    CHECK(lq_cpu_level(&level) == LQ_OK);
    bool exact = strcmp(ops->name, "cpu") == 0 && strcmp(level, "scalar") == 0;
    /* Tensor cores meet what the codes stand for, others the codes, with weights of 8 bits. */
    bool halves = !exact && strcmp(ops->name, "cpu") != 0 && takes_words(c->n_tokens, c->n_tokens * group, dim);
    check_close(what, got, wanted, n_out, exact ? 1e-10 : halves ? 1e-6 : 1e-2);
    check_close(what, got_accumulated, accumulated, (size_t)heads * n_columns, exact ? 1e-10 : halves ? 1e-7 : 1e-5);
    end(&scratch);
    free(columns), free(keys), free(values), free(hb), free(ho), free(hm), free(hok), free(hov), free(hq), free(got);
    free(got_accumulated), free(tile), free(k), free(v), free(codes), free(record), free(seen), free(wanted), free(p);
    free(accumulated);
    release(&x), release(&q), release(&out), release(&near_k), release(&near_v), release(&far_k), release(&far_v);
    release(&listed), release(&over_k), release(&over_v), release(&blocks), release(&frames), release(&masks),
        release(&order), release(&rec);
}

/* Checks how new columns join the sums so far; heads are further apart than their columns need. */
static void check_accumulated(uint32_t heads, uint32_t n_before, uint32_t n_columns) {
    uint32_t stride = n_columns + 5;
    buffer scratch, so_far = make((size_t)heads * stride, 1.0f), now = make((size_t)heads * n_columns, 1.0f);
    begin(1, 4, heads, heads, 4, &scratch);
    float *before = fetch(&so_far, "input"), *given = fetch(&now, "input");
    lq_kv_accumulated args = {so_far.data, stride, now.data, heads, n_before, n_columns};
    ops->kv_accumulated(backend, &args);
    float *got = fetch(&so_far, "kv_accumulated");
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t i = 0; i < stride; i++) {
            float wanted = before[h * stride + i];
            if (i < n_before) wanted += given[h * n_columns + i];
            if (i >= n_before && i < n_columns) wanted = given[h * n_columns + i];
            CHECK_MSG(got[h * stride + i] == wanted, "kv_accumulated: head %u column %u", (unsigned)h, (unsigned)i);
        }
    }
    end(&scratch);
    free(before), free(given), free(got);
    release(&so_far), release(&now);
}

/* Returns one of 4001 values, so that many are equal, or now and then a special one: NaN and -infinity never count. */
static float some_number(void) {
    static const float special[] = {NAN, -INFINITY, INFINITY, 0.0f, -0.0f, -NAN};
    uint64_t random = check_random(&seed);
    if (random % 8 == 0) return special[random / 8 % 6];
    return (float)((int)(random / 64 % 4001) - 2000) * 0.125f;
}

static void check_best(uint32_t n, uint32_t k) {
    buffer x = make(n, 1.0f);
    float *host = malloc(n * sizeof *host);
    bool *taken = calloc(n, sizeof *taken);
    lq_ranked found[LQ_BEST_MOST];
    for (uint32_t i = 0; i < n; i++) host[i] = some_number();
    if (k == 3)
        for (uint32_t i = 0; i < n; i++) host[i] = i == n / 2 ? -5.0f : NAN; /* fewer count than are asked for */
    ops->upload(backend, x.data, host, n * sizeof *host);
    uint32_t n_found = ops->best(backend, x.data, n, k, found);
    for (uint32_t rank = 0; rank <= n_found && rank < k; rank++) { /* one more than were found: there is none */
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (!taken[i] && host[i] > -INFINITY && (best == n || host[i] > host[best])) best = i;
        if (rank == n_found) {
            CHECK_MSG(best == n, "best %u of %u: only %u were found", k, n, n_found);
            break;
        }
        CHECK_MSG(best < n && found[rank].index == best && found[rank].value == host[best],
                  "best %u of %u: number %u is %g at %u, not %g at %u", k, n, rank, (double)found[rank].value,
                  found[rank].index, (double)host[best % n], best);
        if (best == n) break;
        taken[best] = true;
    }
    CHECK(n_found <= k && n_found <= n);
    free(fetch(&x, "best"));
    free(host), free(taken);
    release(&x);
}

static void check_backend(void) {
    static const attention_case cases[] = {
        {1, 1, 64, 0, 1, 0, 8, 0},        {9, 3, 64, 700, 1, 0, 1024, 0},   {9, 3, 64, 0, 100, 0, 100, 0},
        {4, 1, 256, 40, 33, 0, 128, 0},   {4, 4, 80, 300, 7, 0, 512, 1},    {8, 1, 96, 130, 20, 0, 150, 1},
        {2, 1, 128, 2000, 1, 0, 2001, 1}, {4, 1, 64, 500, 30, 100, 140, 0}, {4, 2, 64, 90, 1, 64, 96, 1},
        {4, 2, 64, 1000, 1, 600, 700, 0}, {70, 1, 16, 20, 3, 0, 32, 1},     {6, 2, 36, 100, 5, 7, 12, 0},
        {4, 2, 640, 70, 3, 0, 128, 0},    {3, 3, 1024, 9, 1, 0, 16, 0},     {4, 2, 640, 70, 30, 0, 128, 0},
        {4, 1, 64, 10, 60, 20, 80, 0},    {8, 1, 64, 1500, 8, 0, 1600, 0},  {6, 2, 36, 100, 9, 7, 16, 0},
        {6, 1, 30, 100, 50, 60, 160, 0},  {2, 2, 64, 190, 64, 3, 70, 1},    {20, 1, 64, 300, 2, 0, 310, 1},
        {9, 3, 64, 701, 5, 0, 1024, 0},   {8, 2, 160, 90, 40, 0, 200, 1},   {4, 1, 256, 130, 70, 60, 256, 1},
    };
    static const page_case page_cases[] = {
        {9, 3, 64, 5, 90, 1, LQ_CELL_F16, false},     {4, 1, 256, 2, 50, 33, LQ_CELL_F16, false},
        {8, 8, 80, 3, 10, 7, LQ_CELL_Q8_0, false},    {8, 1, 96, 1, 0, 70, LQ_CELL_F16, true},
        {2, 2, 128, 40, 300, 1, LQ_CELL_Q8_0, false}, {6, 2, 40, 4, 128, 130, LQ_CELL_F16, false},
        {9, 3, 64, 12, 90, 50, LQ_CELL_F16, false},   {4, 2, 128, 5, 70, 100, LQ_CELL_Q8_0, false},
        {5, 1, 16, 30, 10, 9, LQ_CELL_F16, true},     {8, 2, 80, 3, 33, 65, LQ_CELL_F16, false},
        {4, 2, 192, 3, 33, 50, LQ_CELL_Q8_0, false},  {8, 1, 256, 6, 90, 40, LQ_CELL_F16, true},
    };
    check_elementwise(1, 64);
    check_elementwise(3, 577);
    check_elementwise(70, 640);
    check_rope(1, 2, 64, 64, LQ_ROPE_PAIRS);
    check_rope(40, 9, 64, 64, LQ_ROPE_HALVES);
    check_rope(5, 3, 80, 32, LQ_ROPE_PAIRS);
    check_rope(5, 3, 96, 48, LQ_ROPE_HALVES);
    if (ops->best != NULL) {
        static const uint32_t sizes[] = {1, 7, 300, 2048, 2049, 5000, 70000};
        static const uint32_t counts[] = {1, 3, 40, LQ_BEST_MOST};
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            for (size_t j = 0; j < sizeof counts / sizeof counts[0]; j++) check_best(sizes[i], counts[j]);
    }
    check_accumulated(1, 0, 1);
    check_accumulated(3, 200, 201);
    check_accumulated(2, 70, 150);
    for (int32_t type = 0; type < LQ_TYPE_COUNT; type++) {
        const lq_format *format = lq_format_find(type);
        if (format == NULL) continue;
        check_matmul(format, 67, 512, 1);
        check_matmul(format, 300, 256, 5);
        check_matmul(format, 33, 768, 37);
        if (format->block_len != 1) check_matmul(format, 150, 256, 70); /* of a prompt */
        if (format->block_len == 1) check_matmul(format, 130, 96, 140); /* several tiles */
        if (format->block_len == 1) check_matmul(format, 40, 84, 20);   /* rows that tensor cores do not take */
    }
    check_matmul_range(lq_format_find(LQ_TYPE_F16), 14);
    check_matmul_range(lq_format_find(LQ_TYPE_BF16), 14);
    check_matmul_range(lq_format_find(LQ_TYPE_Q8_0), 14);
    check_matmul_range(lq_format_find(LQ_TYPE_Q4_1), 260);
    check_matmul(lq_format_find(LQ_TYPE_Q4_K), 150, 256, 260); /* by cuBLAS on a GPU, too */
    for (int capped = 0; capped < 2; capped++) {
        softcap = capped ? 0.8f : 0.0f;
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_attention(&cases[i]);
        for (size_t i = 0; i < sizeof page_cases / sizeof page_cases[0]; i++) check_pages(&page_cases[i]);
    }
}

int main(int argc, char **argv) {
    for (uint32_t round = 0; next_backend(argc, argv, round); round++) {
        check_backend();
        close_backend();
    }
    return check_report("check_ops");
}
