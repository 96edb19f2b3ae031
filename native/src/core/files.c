/* files.c - writes files with a checksum at their end, and replaces files as a whole. */
#include "core/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/hash.h"
#include "core/replace.h"
#include "core/system.h"

#define BUFFER_BYTES 65536 /* a multiple of 8, since the checksum takes 8 bytes at a time */
#define SEED 0x70796c6f67717561u

struct lq_file_writer {
    lq_replacement place;
    uint64_t checksum;
    size_t n_buffered;
    uint8_t buffer[BUFFER_BYTES];
};

lq_status lq_file_create(const char *path, lq_file_writer **out) {
    void *memory;
    *out = NULL;
    LQ_TRY(lq_alloc(sizeof(lq_file_writer), "file", &memory));
    lq_file_writer *writer = memory;
    writer->checksum = SEED;
    lq_status status = lq_replacement_begin(path, &writer->place);
    if (status != LQ_OK) {
        lq_free(writer);
        return status;
    }
    *out = writer;
    return LQ_OK;
}

static uint64_t add_words(uint64_t checksum, const uint8_t *bytes, uint64_t n_bytes) {
    for (; n_bytes >= 8; bytes += 8, n_bytes -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        checksum = lq_hash_mix(checksum ^ word);
    }
    if (n_bytes == 0) return checksum;
    uint64_t word = (uint64_t)n_bytes << 56; /* so that zeros at the end change the checksum */
    for (uint64_t i = 0; i < n_bytes; i++) word |= (uint64_t)bytes[i] << (8 * i);
    return lq_hash_mix(checksum ^ word);
}

uint64_t lq_checksum(const void *bytes, uint64_t n_bytes) { return add_words(SEED, bytes, n_bytes); }

static lq_status flush(lq_file_writer *writer) {
    size_t n = writer->n_buffered;
    writer->checksum = add_words(writer->checksum, writer->buffer, n);
    writer->n_buffered = 0;
    errno = 0;
    if (n != 0 && fwrite(writer->buffer, 1, n, writer->place.file) != n)
        return lq_replacement_error(&writer->place, "write");
    return LQ_OK;
}

lq_status lq_file_write(lq_file_writer *writer, const void *bytes, uint64_t n_bytes) {
    const uint8_t *at = bytes;
    while (n_bytes != 0) {
        size_t room = BUFFER_BYTES - writer->n_buffered, n = n_bytes < room ? (size_t)n_bytes : room;
        memcpy(writer->buffer + writer->n_buffered, at, n);
        writer->n_buffered += n;
        at += n;
        n_bytes -= n;
        if (writer->n_buffered == BUFFER_BYTES) LQ_TRY(flush(writer));
    }
    return LQ_OK;
}

static lq_status finish(lq_file_writer *writer) {
    LQ_TRY(flush(writer));
    errno = 0;
    if (fwrite(&writer->checksum, 1, sizeof writer->checksum, writer->place.file) != sizeof writer->checksum)
        return lq_replacement_error(&writer->place, "write");
    return lq_replacement_finish(&writer->place);
}

lq_status lq_file_commit(lq_file_writer **writer) {
    lq_status status = finish(*writer);
    lq_file_abandon(writer);
    return status;
}

void lq_file_abandon(lq_file_writer **writer) {
    if (writer == NULL || *writer == NULL) return;
    lq_file_writer *held = *writer;
    *writer = NULL;
    lq_replacement_undo(&held->place);
    lq_free(held);
}

lq_status lq_file_replace(const char *path, const void *bytes, size_t n_bytes) {
    lq_replacement place;
    if (path == NULL || (bytes == NULL && n_bytes != 0)) return lq_fail(LQ_E_ARG, "path and bytes must be given");
    LQ_TRY(lq_replacement_begin(path, &place));
    errno = 0;
    if (n_bytes != 0 && fwrite(bytes, 1, n_bytes, place.file) != n_bytes) {
        lq_status status = lq_replacement_error(&place, "write");
        lq_replacement_undo(&place);
        return status;
    }
    return lq_replacement_finish(&place);
}
