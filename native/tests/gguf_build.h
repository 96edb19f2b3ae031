/* gguf_build.h - builds GGUF files in memory, byte by byte, valid or damaged. */
#ifndef LQ_TEST_GGUF_BUILD_H
#define LQ_TEST_GGUF_BUILD_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "logquant_gguf.h"

typedef struct bytes {
    unsigned char data[32768];
    size_t n;
} bytes;

static inline void put(bytes *b, const void *data, size_t n) {
    if (b->n + n > sizeof b->data) {
        fprintf(stderr, "gguf_build.h: the test's file is too large\n");
        exit(2);
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void put_int(bytes *b, unsigned long long value, size_t n_bytes) {
    unsigned char little[8];
    for (size_t i = 0; i < n_bytes; i++) little[i] = (unsigned char)(value >> (8 * i));
    put(b, little, n_bytes);
}

static inline void put_string(bytes *b, const char *text) {
    put_int(b, strlen(text), 8);
    put(b, text, strlen(text));
}

static inline void put_header(bytes *b, unsigned version, unsigned long long n_tensors, unsigned long long n_keys) {
    b->n = 0;
    put(b, "GGUF", 4);
    put_int(b, version, 4);
    put_int(b, n_tensors, 8);
    put_int(b, n_keys, 8);
}

/* Appends a key and the type of its value. */
static inline void put_key(bytes *b, const char *key, unsigned type) {
    put_string(b, key);
    put_int(b, type, 4);
}

static inline void put_array(bytes *b, const char *key, unsigned item_type, unsigned long long n_items) {
    put_key(b, key, LQ_GGUF_ARRAY);
    put_int(b, item_type, 4);
    put_int(b, n_items, 8);
}

static inline void put_tensor(bytes *b, const char *name, unsigned n_dims, const unsigned long long *dims,
                              unsigned type, unsigned long long offset) {
    put_string(b, name);
    put_int(b, n_dims, 4);
    for (unsigned i = 0; i < n_dims; i++) put_int(b, dims[i], 8);
    put_int(b, type, 4);
    put_int(b, offset, 8);
}

/* Appends zeros up to the next multiple of the alignment, then n bytes 0, 1, 2 ... */
static inline void put_data(bytes *b, size_t alignment, size_t n) {
    while (b->n % alignment) put_int(b, 0, 1);
    for (size_t i = 0; i < n; i++) put_int(b, i & 0xff, 1);
}

/* Makes an empty temporary file, in a memory file system if there is one, and writes its name to path. */
static inline void make_temporary(char *path, size_t path_bytes) {
    const char *folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(path, path_bytes, "%s/lq-test-XXXXXX", folder);
    int file = mkstemp(path);
    if (file < 0) {
        perror(path);
        exit(2);
    }
    close(file);
}

static inline void write_file(const char *path, const void *data, size_t n) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n, file) != n || fclose(file) != 0) {
        perror(path);
        exit(2);
    }
}

/* Builds a file with one key of every type, arrays, a plain and a quantized tensor, and one of an unknown type. */
static inline void build_valid(bytes *b, unsigned version) {
    static const unsigned long long plain[] = {4, 3}, quantized[] = {64, 1, 2}, unknown[] = {7};
    float f32 = 1.5f;
    double f64 = -2.25;
    put_header(b, version, 3, 18);
    put_key(b, "k.u8", LQ_GGUF_U8), put_int(b, 200, 1);
    put_key(b, "k.i8", LQ_GGUF_I8), put_int(b, 0x80, 1);
    put_key(b, "k.u16", LQ_GGUF_U16), put_int(b, 60000, 2);
    put_key(b, "k.i16", LQ_GGUF_I16), put_int(b, 1234, 2);
    put_key(b, "k.u32", LQ_GGUF_U32), put_int(b, 4000000000u, 4);
    put_key(b, "k.i32", LQ_GGUF_I32), put_int(b, 77, 4);
    put_key(b, "k.f32", LQ_GGUF_F32), put(b, &f32, 4);
    put_key(b, "k.bool", LQ_GGUF_BOOL), put_int(b, 1, 1);
    put_key(b, "k.string", LQ_GGUF_STRING), put_string(b, "text");
    put_key(b, "k.empty", LQ_GGUF_STRING), put_string(b, "");
    put_key(b, "k.u64", LQ_GGUF_U64), put_int(b, 1ull << 40, 8);
    put_key(b, "k.i64", LQ_GGUF_I64), put_int(b, 9, 8);
    put_key(b, "k.f64", LQ_GGUF_F64), put(b, &f64, 8);
    put_array(b, "a.i32", LQ_GGUF_I32, 3), put_int(b, 1, 4), put_int(b, 2, 4), put_int(b, 0xffffffff, 4);
    put_array(b, "a.bool", LQ_GGUF_BOOL, 2), put_int(b, 0, 1), put_int(b, 1, 1);
    put_array(b, "a.string", LQ_GGUF_STRING, 3), put_string(b, "one"), put_string(b, ""), put_string(b, "three");
    put_array(b, "a.none", LQ_GGUF_F32, 0);
    put_key(b, "general.alignment", LQ_GGUF_U32), put_int(b, 64, 4);
    put_tensor(b, "plain", 2, plain, 0, 0);
    put_tensor(b, "quantized", 3, quantized, 8, 64);
    put_tensor(b, "unknown", 1, unknown, 9999, 256);
    put_data(b, 64, 256 + 8);
}

#endif
