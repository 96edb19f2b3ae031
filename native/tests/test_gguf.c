/* test_gguf.c - tests what the GGUF reader must accept, and everything it must refuse with one line of text. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <sys/stat.h>
#include <time.h>

#include "check.h"
#include "gguf/gguf.h"
#include "gguf_build.h"

static char path[512];

/* Opens the built file: that must fail with the status and a one-line text that contains both parts and the path. */
static void refused(const bytes *b, lq_status expected, const char *part, const char *other_part) {
    lq_gguf *g = (lq_gguf *)path; /* must come back NULL */
    write_file(path, b->data, b->n);
    lq_status status = lq_gguf_open(path, &g);
    const char *text = lq_error_message();
    CHECK_MSG(status == expected, "status %d, expected %d (%s ... %s): %s", (int)status, (int)expected, part,
              other_part, text);
    CHECK_MSG(status == LQ_OK || g == NULL, "a handle came back from a failed open");
    CHECK_MSG(strstr(text, part) && strstr(text, other_part), "'%s' lacks '%s' or '%s'", text, part, other_part);
    CHECK_MSG(strstr(text, path) && !strchr(text, '\n'), "'%s' lacks the path or has more than one line", text);
    if (status == LQ_OK) lq_gguf_close(&g);
}

static lq_gguf *opened(const bytes *b) {
    lq_gguf *g = NULL;
    write_file(path, b->data, b->n);
    CHECK_STATUS(lq_gguf_open(path, &g), LQ_OK);
    if (!g) exit(check_report("test_gguf"));
    return g;
}

static lq_gguf_entry entry_of(const lq_gguf *g, const char *key) {
    lq_gguf_entry entry = {0};
    int64_t index = lq_gguf_find(g, key);
    CHECK_MSG(index >= 0, "no key %s", key);
    CHECK_STATUS(lq_gguf_get_entry(g, (size_t)index, &entry), LQ_OK);
    return entry;
}

/* ---- files that are fine ----------------------------------------------------------------------------------------- */

static void test_entries(const lq_gguf *g) {
    lq_gguf_entry entry;
    int32_t items[3];
    CHECK(lq_gguf_n_entries(g) == 18);
    entry = entry_of(g, "k.string");
    CHECK(entry.type == LQ_GGUF_STRING && entry.item_type == LQ_GGUF_STRING && entry.n_items == 1);
    CHECK(entry.data_bytes == 4 && memcmp(entry.data, "text", 4) == 0);
    entry = entry_of(g, "a.i32");
    CHECK(entry.type == LQ_GGUF_ARRAY && entry.item_type == LQ_GGUF_I32 && entry.n_items == 3);
    CHECK(entry.data_bytes == 12);
    memcpy(items, entry.data, 12);
    CHECK(items[0] == 1 && items[1] == 2 && items[2] == -1);
    entry = entry_of(g, "a.none");
    CHECK(entry.n_items == 0 && entry.data_bytes == 0);
    CHECK(lq_gguf_find(g, "k.strin") == -1);
    CHECK(lq_gguf_find(g, "") == -1);
    CHECK(lq_gguf_find(g, NULL) == -1);
    CHECK_STATUS(lq_gguf_get_entry(g, 18, &entry), LQ_E_ARG);
    CHECK_STATUS(lq_gguf_get_entry(g, 0, NULL), LQ_E_ARG);
}

static void test_strings(const lq_gguf *g) {
    uint64_t offsets[4];
    char chars[8];
    uint64_t n_chars = 0;
    size_t index = (size_t)lq_gguf_find(g, "a.string");
    CHECK_STATUS(lq_gguf_get_strings(g, index, NULL, NULL, &n_chars), LQ_OK);
    CHECK(n_chars == 8);
    CHECK_STATUS(lq_gguf_get_strings(g, index, offsets, chars, &n_chars), LQ_OK);
    CHECK(n_chars == 8 && offsets[0] == 0 && offsets[1] == 3 && offsets[2] == 3 && offsets[3] == 8);
    CHECK(memcmp(chars, "onethree", 8) == 0);
    CHECK_STATUS(lq_gguf_get_strings(g, (size_t)lq_gguf_find(g, "a.i32"), NULL, NULL, &n_chars), LQ_E_FORMAT);
    CHECK_STATUS(lq_gguf_get_strings(g, (size_t)lq_gguf_find(g, "k.string"), NULL, NULL, &n_chars), LQ_E_FORMAT);
    CHECK_STATUS(lq_gguf_get_strings(g, 99, NULL, NULL, &n_chars), LQ_E_ARG);
    CHECK_STATUS(lq_gguf_get_strings(g, index, NULL, NULL, NULL), LQ_E_ARG);
}

static void test_typed_getters(const lq_gguf *g) {
    uint32_t u32 = 5;
    float f32 = 5;
    bool flag = false, found = true;
    const char *chars = NULL;
    const void *data = NULL;
    size_t n_bytes = 0;
    int32_t item_type = -1;
    uint64_t n_items = 0;
    CHECK(lq_gguf_u32(g, "k.u8", &u32, NULL) == LQ_OK && u32 == 200);
    CHECK(lq_gguf_u32(g, "k.u16", &u32, NULL) == LQ_OK && u32 == 60000);
    CHECK(lq_gguf_u32(g, "k.i16", &u32, NULL) == LQ_OK && u32 == 1234);
    CHECK(lq_gguf_u32(g, "k.u32", &u32, NULL) == LQ_OK && u32 == 4000000000u);
    CHECK(lq_gguf_u32(g, "k.i32", &u32, NULL) == LQ_OK && u32 == 77);
    CHECK(lq_gguf_u32(g, "k.i64", &u32, NULL) == LQ_OK && u32 == 9);
    CHECK_STATUS(lq_gguf_u32(g, "k.i8", &u32, NULL), LQ_E_FORMAT); /* negative */
    CHECK(strstr(lq_error_message(), "k.i8"));
    CHECK_STATUS(lq_gguf_u32(g, "k.u64", &u32, NULL), LQ_E_FORMAT); /* too large */
    CHECK(strstr(lq_error_message(), "k.u64"));
    CHECK_STATUS(lq_gguf_u32(g, "k.f32", &u32, &found), LQ_E_FORMAT);
    CHECK(strstr(lq_error_message(), "f32") && strstr(lq_error_message(), path));
    CHECK_STATUS(lq_gguf_u32(g, "k.bool", &u32, NULL), LQ_E_FORMAT);
    CHECK_STATUS(lq_gguf_u32(g, "a.i32", &u32, NULL), LQ_E_FORMAT);
    CHECK(u32 == 9); /* left alone by every failure */
    CHECK_STATUS(lq_gguf_u32(g, "no.such", &u32, NULL), LQ_E_FORMAT);
    CHECK(strstr(lq_error_message(), "no.such"));
    CHECK(lq_gguf_u32(g, "no.such", &u32, &found) == LQ_OK && !found && u32 == 9);
    CHECK(lq_gguf_f32(g, "k.f32", &f32, &found) == LQ_OK && found && f32 == 1.5f);
    CHECK(lq_gguf_f32(g, "k.f64", &f32, NULL) == LQ_OK && f32 == -2.25f);
    CHECK_STATUS(lq_gguf_f32(g, "k.u32", &f32, NULL), LQ_E_FORMAT);
    CHECK(lq_gguf_bool(g, "k.bool", &flag, NULL) == LQ_OK && flag);
    CHECK_STATUS(lq_gguf_bool(g, "k.u8", &flag, NULL), LQ_E_FORMAT);
    CHECK(lq_gguf_string(g, "k.string", &chars, &n_bytes, NULL) == LQ_OK && n_bytes == 4 && chars[3] == 't');
    CHECK(lq_gguf_string(g, "k.empty", &chars, &n_bytes, NULL) == LQ_OK && n_bytes == 0);
    CHECK_STATUS(lq_gguf_string(g, "a.string", &chars, &n_bytes, NULL), LQ_E_FORMAT);
    CHECK(lq_gguf_array(g, "a.bool", &item_type, &n_items, &data, NULL) == LQ_OK);
    CHECK(item_type == LQ_GGUF_BOOL && n_items == 2 && ((const uint8_t *)data)[1] == 1);
    CHECK_STATUS(lq_gguf_array(g, "k.string", &item_type, &n_items, &data, NULL), LQ_E_FORMAT);
}

static void test_tensors(const lq_gguf *g) {
    lq_gguf_tensor tensor;
    const lq_gguf_tensor_info *info = lq_gguf_find_tensor(g, "quantized");
    CHECK(lq_gguf_n_tensors(g) == 3);
    if (!info) exit(check_report("test_gguf"));
    CHECK(info == lq_gguf_tensor_at(g, 1) && info->format && strcmp(info->format->name, "Q8_0") == 0);
    CHECK(info->n_dims == 3 && info->dims[0] == 64 && info->dims[1] == 1 && info->dims[2] == 2 && info->dims[3] == 1);
    CHECK(info->data_bytes == 4 * 34 && info->data[0] == 64 && info->data[135] == 199);
    info = lq_gguf_find_tensor(g, "plain");
    CHECK(info && info->data_bytes == 48 && info->data[0] == 0 && info->data[47] == 47);
    CHECK(lq_gguf_find_tensor(g, "plai") == NULL && lq_gguf_tensor_at(g, 3) == NULL);
    info = lq_gguf_find_tensor(g, "unknown"); /* listed, not refused: a model that needs it says so */
    CHECK(info && !info->format && !info->data && info->data_bytes == 0 && info->type == 9999);
    CHECK_STATUS(lq_gguf_get_tensor(g, 2, &tensor), LQ_OK);
    CHECK(strcmp(tensor.type_name, "?") == 0 && tensor.type == 9999 && tensor.data_bytes == 0);
    CHECK_STATUS(lq_gguf_get_tensor(g, 1, &tensor), LQ_OK);
    CHECK(strcmp(tensor.type_name, "Q8_0") == 0 && tensor.name_bytes == 9 && tensor.n_dims == 3);
    CHECK_STATUS(lq_gguf_get_tensor(g, 3, &tensor), LQ_E_ARG);
}

static void test_valid(void) {
    bytes b;
    for (unsigned version = 2; version <= 3; version++) {
        build_valid(&b, version);
        lq_gguf *g = opened(&b);
        CHECK(lq_gguf_version(g) == version && lq_gguf_file_bytes(g) == b.n && strcmp(lq_gguf_path(g), path) == 0);
        test_entries(g);
        test_strings(g);
        test_typed_getters(g);
        test_tensors(g);
        lq_gguf_close(&g);
        CHECK(g == NULL);
        lq_gguf_close(&g);
    }
    lq_gguf_close(NULL);
    put_header(&b, 3, 0, 0); /* nothing in it, and no data section */
    lq_gguf *g = opened(&b);
    CHECK(lq_gguf_n_entries(g) == 0 && lq_gguf_n_tensors(g) == 0 && lq_gguf_find(g, "x") == -1);
    lq_gguf_close(&g);
}

/* Every proper prefix of a valid file is refused, up to the last tensor's last byte. */
static void test_truncation(void) {
    bytes b;
    lq_gguf *g;
    int accepted = 0;
    build_valid(&b, 3);
    size_t needed = b.n - 264 + 256; /* the unknown tensor has no size; its offset must lie in the file */
    for (size_t n = 1; n < needed; n++) {
        write_file(path, b.data, n);
        if (lq_gguf_open(path, &g) != LQ_E_FORMAT) accepted++;
        lq_gguf_close(&g);
    }
    CHECK_MSG(accepted == 0, "%d of %zu truncated files were not refused", accepted, needed);
    write_file(path, b.data, needed);
    CHECK_STATUS(lq_gguf_open(path, &g), LQ_OK);
    lq_gguf_close(&g);
}

/* ---- files that cannot be opened --------------------------------------------------------------------------------- */

static void test_io(void) {
    lq_gguf *g;
    char other[600];
    CHECK_STATUS(lq_gguf_open(NULL, &g), LQ_E_ARG);
    CHECK_STATUS(lq_gguf_open("", &g), LQ_E_ARG);
    CHECK_STATUS(lq_gguf_open(path, NULL), LQ_E_ARG);
    snprintf(other, sizeof other, "%s.none", path);
    CHECK_STATUS(lq_gguf_open(other, &g), LQ_E_IO);
    CHECK(g == NULL && strstr(lq_error_message(), other) && strstr(lq_error_message(), "No such file"));
    CHECK_STATUS(lq_gguf_open("/", &g), LQ_E_IO);
    CHECK(strstr(lq_error_message(), "directory"));
    CHECK(mkfifo(other, 0600) == 0);
    CHECK_STATUS(lq_gguf_open(other, &g), LQ_E_IO); /* and at once: nobody writes to it */
    CHECK(strstr(lq_error_message(), "regular file"));
    unlink(other);
    if (geteuid() != 0) { /* root may read everything */
        chmod(path, 0);
        CHECK_STATUS(lq_gguf_open(path, &g), LQ_E_IO);
        CHECK(strstr(lq_error_message(), "ermission"));
        chmod(path, 0600);
    }
}

/* ---- damaged files ----------------------------------------------------------------------------------------------- */

static void test_header(void) {
    bytes b = {.n = 0};
    refused(&b, LQ_E_FORMAT, "empty", "");
    put(&b, "GG", 2);
    refused(&b, LQ_E_FORMAT, "not a GGUF file", "");
    b.n = 0, put(&b, "PK\3\4 this is something else altogether", 38);
    refused(&b, LQ_E_FORMAT, "not a GGUF file", "");
    put_header(&b, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "version 1", "2 and 3");
    put_header(&b, 4, 0, 0);
    refused(&b, LQ_E_FORMAT, "version 4", "");
    put_header(&b, 0, 0, 0);
    refused(&b, LQ_E_FORMAT, "version 0", "");
    put_header(&b, 3u << 24, 0, 0);
    refused(&b, LQ_E_FORMAT, "big-endian", "");
    put_header(&b, 3, 0, 0), b.n = 12;
    refused(&b, LQ_E_FORMAT, "header", "truncated");
    static const unsigned long long counts[] = {1, 1ull << 31, 1ull << 32, 1ull << 61, ~0ull};
    for (size_t i = 0; i < 5; i++) {
        put_header(&b, 3, counts[i], 0);
        refused(&b, LQ_E_FORMAT, "header claims", "tensors");
        put_header(&b, 3, 0, counts[i]);
        refused(&b, LQ_E_FORMAT, "header claims", "keys");
    }
}

/* Builds a file with one key, padded so that the count in the header passes. */
static void one_key(bytes *b, const char *key, unsigned type) {
    put_header(b, 3, 0, 1);
    put_key(b, key, type);
}

static void test_keys(void) {
    bytes b;
    one_key(&b, "", LQ_GGUF_U32), put_int(&b, 1, 4);
    refused(&b, LQ_E_FORMAT, "empty key", "offset 24");
    one_key(&b, "a\nb", LQ_GGUF_U32), put_int(&b, 1, 4);
    refused(&b, LQ_E_FORMAT, "0x0a", "offset 33");
    one_key(&b, "\xc3\xa4", LQ_GGUF_U32), put_int(&b, 1, 4);
    refused(&b, LQ_E_FORMAT, "0xc3", "ASCII");
    static char long_key[65538];
    memset(long_key, 'k', 65536);
    static unsigned char file[24 + 8 + 65536 + 8];
    put_header(&b, 3, 0, 1), put_int(&b, 65536, 8);
    memcpy(file, b.data, b.n);
    memcpy(file + b.n, long_key, 65536);
    lq_gguf *g;
    write_file(path, file, sizeof file);
    CHECK_STATUS(lq_gguf_open(path, &g), LQ_E_FORMAT);
    CHECK(strstr(lq_error_message(), "65536"));
    put_header(&b, 3, 0, 1), put_int(&b, ~0ull, 8), put_data(&b, 1, 32);
    refused(&b, LQ_E_FORMAT, "a key needs", "offset 32");
    put_header(&b, 3, 0, 2);
    put_key(&b, "twice", LQ_GGUF_U8), put_int(&b, 1, 1);
    put_key(&b, "twice", LQ_GGUF_U32), put_int(&b, 1, 4);
    refused(&b, LQ_E_FORMAT, "'twice'", "offset 42");
}

static void test_values(void) {
    bytes b;
    static const unsigned unknown[] = {13, 255, 0x80000000u, 0xffffffffu};
    for (size_t i = 0; i < 4; i++) {
        one_key(&b, "k", unknown[i]), put_int(&b, 0, 8);
        refused(&b, LQ_E_FORMAT, "key 'k'", "unknown value type");
        put_header(&b, 3, 0, 1), put_array(&b, "k", unknown[i], 0);
        refused(&b, LQ_E_FORMAT, "key 'k'", "unknown value type");
    }
    one_key(&b, "k", LQ_GGUF_BOOL), put_int(&b, 2, 1);
    refused(&b, LQ_E_FORMAT, "key 'k'", "bool byte 2");
    put_header(&b, 3, 0, 1), put_array(&b, "k", LQ_GGUF_BOOL, 2), put_int(&b, 0xff00, 2);
    refused(&b, LQ_E_FORMAT, "key 'k'", "bool byte 255");
    one_key(&b, "k", LQ_GGUF_U64), put_int(&b, 1, 7);
    refused(&b, LQ_E_FORMAT, "key 'k'", "u64");
    one_key(&b, "k", LQ_GGUF_STRING), put_int(&b, 5, 8), put(&b, "four", 4);
    refused(&b, LQ_E_FORMAT, "key 'k'", "4 are left");
    one_key(&b, "k", LQ_GGUF_STRING), put_int(&b, ~0ull, 8), put(&b, "four", 4);
    refused(&b, LQ_E_FORMAT, "key 'k'", "4 are left");
    put_header(&b, 3, 0, 1), put_array(&b, "k", LQ_GGUF_ARRAY, 1), put_int(&b, LQ_GGUF_U8, 4), put_int(&b, 0, 8);
    refused(&b, LQ_E_FORMAT, "key 'k'", "array of arrays");
    /* The last count is 2^64 / 4: times the item's size it wraps to 0. */
    static const unsigned long long counts[] = {3, 1ull << 32, ~0ull, 1ull << 62};
    for (size_t i = 0; i < 4; i++) {
        put_header(&b, 3, 0, 1), put_array(&b, "k", LQ_GGUF_U32, counts[i]), put_int(&b, 0, 8);
        refused(&b, LQ_E_FORMAT, "key 'k' claims", "8 bytes are left");
        put_header(&b, 3, 0, 1), put_array(&b, "k", LQ_GGUF_STRING, counts[i]), put_int(&b, 0, 8);
        refused(&b, LQ_E_FORMAT, "key 'k' claims", "8 bytes are left");
    }
    put_header(&b, 3, 0, 1), put_array(&b, "k", LQ_GGUF_STRING, 2), put_string(&b, "ok"), put_int(&b, ~0ull - 7, 8);
    refused(&b, LQ_E_FORMAT, "key 'k' needs", "0 are left");
}

static void test_alignment(void) {
    bytes b;
    static const unsigned bad[] = {0, 3, 48, 131072, 0x80000000u};
    for (size_t i = 0; i < 5; i++) {
        one_key(&b, "general.alignment", LQ_GGUF_U32), put_int(&b, bad[i], 4);
        refused(&b, LQ_E_FORMAT, "general.alignment", "power of two");
    }
    one_key(&b, "general.alignment", LQ_GGUF_STRING), put_string(&b, "32");
    refused(&b, LQ_E_FORMAT, "general.alignment", "string");
    static const unsigned good[] = {1, 8, 65536};
    for (size_t i = 0; i < 3; i++) {
        one_key(&b, "general.alignment", LQ_GGUF_U32), put_int(&b, good[i], 4);
        lq_gguf *g = opened(&b);
        lq_gguf_close(&g);
    }
}

/* Builds a file with one tensor and 96 bytes of data. */
static void one_tensor(bytes *b, const char *name, unsigned n_dims, unsigned long long d0, unsigned long long d1,
                       unsigned type, unsigned long long offset) {
    unsigned long long dims[8] = {d0, d1, 1, 1, 1, 1, 1, 1};
    put_header(b, 3, 1, 0);
    put_tensor(b, name, n_dims, dims, type, offset);
    put_data(b, 32, 96);
}

static void test_tensor_errors(void) {
    bytes b;
    char long_name[66];
    memset(long_name, 'n', 65), long_name[65] = 0;
    one_tensor(&b, "", 1, 4, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "empty tensor name", "offset 24");
    one_tensor(&b, long_name, 1, 4, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "tensor name of 65 bytes", "64");
    one_tensor(&b, "t\x1b[2J", 1, 4, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "0x1b", "");
    one_tensor(&b, "t", 0, 4, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "0 dimensions");
    one_tensor(&b, "t", 5, 4, 1, 0, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "5 dimensions");
    one_tensor(&b, "t", 2, 0, 4, 0, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "dimension 0");
    one_tensor(&b, "t", 2, 4, 0, 0, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "dimension 1");
    one_tensor(&b, "t", 2, 1ull << 32, 1ull << 32, 0, 0); /* product wraps to 0 */
    refused(&b, LQ_E_FORMAT, "tensor 't'", "overflow");
    one_tensor(&b, "t", 1, 1ull << 62, 1, 0, 0); /* bytes wrap to 0 */
    refused(&b, LQ_E_FORMAT, "tensor 't'", "overflows");
    one_tensor(&b, "t", 2, 48, 1, 8, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "multiple of the 32");
    one_tensor(&b, "t", 1, 4, 1, 0xffffffffu, 0);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "negative type -1");
    one_tensor(&b, "t", 1, 4, 1, 0, 16);
    refused(&b, LQ_E_FORMAT, "tensor 't'", "alignment 32");
    one_tensor(&b, "t", 1, 24, 1, 0, 32); /* 96 bytes from 32 */
    refused(&b, LQ_E_FORMAT, "tensor 't'", "truncated");
    one_tensor(&b, "t", 1, 4, 1, 0, ~0ull - 31); /* offset + bytes wraps */
    refused(&b, LQ_E_FORMAT, "tensor 't'", "truncated");
    one_tensor(&b, "t", 1, 4, 1, 9999, 128); /* of unknown size, but it starts beyond the file */
    refused(&b, LQ_E_FORMAT, "tensor 't'", "truncated");
    one_tensor(&b, "t", 1, 16, 1, 0, 32); /* to the last byte */
    lq_gguf *g = opened(&b);
    lq_gguf_close(&g);
    put_header(&b, 3, 2, 0);
    unsigned long long four = 4;
    put_tensor(&b, "t", 1, &four, 0, 0), put_tensor(&b, "t", 1, &four, 0, 32), put_data(&b, 32, 96);
    refused(&b, LQ_E_FORMAT, "tensor 't' is there twice", "offset");
}

/* Opening takes time in proportion to the file: a quarter of a million keys in well under a second. */
static void test_many_keys(void) {
    enum { N = 250000 };
    unsigned char *file = malloc(24 + (size_t)N * 21);
    bytes b;
    char key[16];
    if (!file) exit(2);
    put_header(&b, 3, 0, N);
    memcpy(file, b.data, b.n);
    size_t n = b.n;
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof key, "%08d", i);
        b.n = 0;
        put_key(&b, key, LQ_GGUF_U8), put_int(&b, (unsigned)i & 0xff, 1);
        memcpy(file + n, b.data, b.n);
        n += b.n;
    }
    write_file(path, file, n);
    free(file);
    lq_gguf *g = NULL;
    clock_t start = clock();
    CHECK_STATUS(lq_gguf_open(path, &g), LQ_OK);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK_MSG(seconds < 2.0, "opening %d keys took %.2f s of processor time", N, seconds);
    int64_t found = 0;
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof key, "%08d", i);
        found += lq_gguf_find(g, key) == i;
    }
    CHECK(found == N);
    lq_gguf_close(&g);
}

int main(void) {
    make_temporary(path, sizeof path);
    test_valid();
    test_truncation();
    test_io();
    test_header();
    test_keys();
    test_values();
    test_alignment();
    test_tensor_errors();
    test_many_keys();
    unlink(path);
    return check_report("test_gguf");
}
