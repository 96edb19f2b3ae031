/* gguf.c - reads a GGUF file once from front to back, trusting nothing in it; afterwards every size has been checked.
 */
#include <stdlib.h>
#include <string.h>

#include "core/checked.h"
#include "gguf/file.h"

enum {
    HEADER_BYTES = 24,               /* magic, version, two counts */
    MIN_ENTRY_BYTES = 8 + 1 + 4 + 1, /* key of one byte, type, a one-byte value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
    MAX_KEY_BYTES = 65535, /* the format's limit */
    MAX_NAME_BYTES = 64,   /* the format's limit */
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 65536,
    SHOWN_BYTES = 96 /* a message shows this much of a key, so that lines stay readable */
};

static const struct {
    const char *name;
    uint32_t n_bytes;
} value_types[] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                   {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

const char *lq_gguf_type_name(int32_t type) {
    return type >= LQ_GGUF_U8 && type <= LQ_GGUF_F64 ? value_types[type].name : NULL;
}

uint32_t lq_gguf_type_bytes(int32_t type) {
    return type >= LQ_GGUF_U8 && type <= LQ_GGUF_F64 ? value_types[type].n_bytes : 0;
}

/* ---- cursor: every byte of the file is read through these -------------------------------------------------------- */

typedef struct cursor {
    const char *path;
    const uint8_t *bytes;
    uint64_t at;
    uint64_t end;
    char where[SHOWN_BYTES + 32]; /* "key 'general.name'": what is being read, for messages */
} cursor;

static uint64_t left(const cursor *c) { return c->end - c->at; }

static lq_status truncated(const cursor *c, uint64_t n_bytes) {
    return lq_fail(
        LQ_E_FORMAT, "%s: %s needs %llu bytes at offset %llu but %llu are left; the file is truncated or damaged",
        c->path, c->where, (unsigned long long)n_bytes, (unsigned long long)c->at, (unsigned long long)left(c));
}

static lq_status skip(cursor *c, uint64_t n_bytes) {
    if (n_bytes > left(c)) return truncated(c, n_bytes);
    c->at += n_bytes;
    return LQ_OK;
}

static lq_status read_u32(cursor *c, uint32_t *out) {
    const uint8_t *at = c->bytes + c->at;
    LQ_TRY(skip(c, 4));
    *out = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    return LQ_OK;
}

static lq_status read_u64(cursor *c, uint64_t *out) {
    uint32_t low, high;
    if (left(c) < 8) return truncated(c, 8);
    LQ_TRY(read_u32(c, &low));
    LQ_TRY(read_u32(c, &high));
    *out = low | (uint64_t)high << 32;
    return LQ_OK;
}

static lq_status read_i32(cursor *c, int32_t *out) {
    uint32_t bits;
    LQ_TRY(read_u32(c, &bits));
    memcpy(out, &bits, 4);
    return LQ_OK;
}

/* Reads a string: its length, then its characters. */
static lq_status read_string(cursor *c, const char **chars, uint64_t *n_bytes) {
    LQ_TRY(read_u64(c, n_bytes));
    *chars = (const char *)c->bytes + c->at;
    return skip(c, *n_bytes);
}

/* Reads a key or tensor name: printable ASCII, so that it can be shown, compared and decoded anywhere. */
static lq_status read_name(cursor *c, const char *kind, uint64_t max_bytes, const char **chars, uint64_t *n_bytes) {
    uint64_t at = c->at;
    LQ_TRY(read_string(c, chars, n_bytes));
    if (*n_bytes == 0)
        return lq_fail(LQ_E_FORMAT, "%s: empty %s at offset %llu", c->path, kind, (unsigned long long)at);
    if (*n_bytes > max_bytes)
        return lq_fail(LQ_E_FORMAT, "%s: %s of %llu bytes at offset %llu; at most %llu are allowed", c->path, kind,
                       (unsigned long long)*n_bytes, (unsigned long long)at, (unsigned long long)max_bytes);
    for (uint64_t i = 0; i < *n_bytes; i++) {
        uint8_t byte = (uint8_t)(*chars)[i];
        if (byte < 0x20 || byte > 0x7e)
            return lq_fail(LQ_E_FORMAT, "%s: %s with byte 0x%02x at offset %llu; only printable ASCII is allowed",
                           c->path, kind, (unsigned)byte, (unsigned long long)(at + 8 + i));
    }
    return LQ_OK;
}

/* Makes the messages from here on name this key or tensor. */
static void now_reading(cursor *c, const char *kind, const char *name, uint64_t name_bytes) {
    int shown = name_bytes < SHOWN_BYTES ? (int)name_bytes : SHOWN_BYTES;
    size_t at = strlen(kind);
    memcpy(c->where, kind, at);
    c->where[at++] = ' ';
    c->where[at++] = '\'';
    memcpy(c->where + at, name, (size_t)shown);
    at += (size_t)shown;
    c->where[at++] = '\'';
    c->where[at] = '\0';
}

/* ---- metadata ---------------------------------------------------------------------------------------------------- */

static lq_status bad_type(const cursor *c, int32_t type, uint64_t at) {
    return lq_fail(LQ_E_FORMAT, "%s: %s has the unknown value type %d at offset %llu", c->path, c->where, (int)type,
                   (unsigned long long)at);
}

static lq_status check_bools(const cursor *c, uint64_t n_items) {
    for (uint64_t i = 0; i < n_items; i++)
        if (c->bytes[c->at + i] > 1)
            return lq_fail(LQ_E_FORMAT, "%s: %s holds the bool byte %d at offset %llu; 0 or 1 expected", c->path,
                           c->where, c->bytes[c->at + i], (unsigned long long)(c->at + i));
    return LQ_OK;
}

/* Skips n_items values of one fixed-size type, after checking them. */
static lq_status read_values(cursor *c, int32_t type, uint64_t n_items) {
    uint32_t item_bytes = lq_gguf_type_bytes(type);
    if (n_items > left(c) / item_bytes)
        return lq_fail(LQ_E_FORMAT, "%s: %s claims %llu %s values at offset %llu but %llu bytes are left", c->path,
                       c->where, (unsigned long long)n_items, lq_gguf_type_name(type), (unsigned long long)c->at,
                       (unsigned long long)left(c));
    if (type == LQ_GGUF_BOOL) LQ_TRY(check_bools(c, n_items));
    return skip(c, n_items * item_bytes);
}

static lq_status read_array(cursor *c, lq_gguf_entry *entry) {
    uint64_t type_at = c->at;
    LQ_TRY(read_i32(c, &entry->item_type));
    if (!lq_gguf_type_name(entry->item_type)) return bad_type(c, entry->item_type, type_at);
    if (entry->item_type == LQ_GGUF_ARRAY)
        return lq_fail(LQ_E_FORMAT, "%s: %s is an array of arrays (offset %llu), which is not supported", c->path,
                       c->where, (unsigned long long)type_at);
    LQ_TRY(read_u64(c, &entry->n_items));
    entry->data = c->bytes + c->at;
    if (entry->item_type != LQ_GGUF_STRING) {
        LQ_TRY(read_values(c, entry->item_type, entry->n_items));
    } else {
        if (entry->n_items > left(c) / 8)
            return lq_fail(LQ_E_FORMAT, "%s: %s claims %llu strings at offset %llu but %llu bytes are left", c->path,
                           c->where, (unsigned long long)entry->n_items, (unsigned long long)c->at,
                           (unsigned long long)left(c));
        for (uint64_t i = 0; i < entry->n_items; i++) {
            const char *chars;
            uint64_t n_bytes;
            LQ_TRY(read_string(c, &chars, &n_bytes));
        }
    }
    entry->data_bytes = (uint64_t)(c->bytes + c->at - (const uint8_t *)entry->data);
    return LQ_OK;
}

static lq_status read_entry(cursor *c, lq_gguf_entry *entry) {
    uint64_t key_bytes = 0, at;
    strcpy(c->where, "a key");
    LQ_TRY(read_name(c, "key", MAX_KEY_BYTES, &entry->key, &key_bytes));
    now_reading(c, "key", entry->key, key_bytes);
    entry->key_bytes = (size_t)key_bytes;
    at = c->at;
    LQ_TRY(read_i32(c, &entry->type));
    if (!lq_gguf_type_name(entry->type)) return bad_type(c, entry->type, at);
    if (entry->type == LQ_GGUF_ARRAY) return read_array(c, entry);
    entry->item_type = entry->type;
    entry->n_items = 1;
    if (entry->type == LQ_GGUF_STRING) {
        const char *chars;
        LQ_TRY(read_string(c, &chars, &entry->data_bytes));
        entry->data = chars;
        return LQ_OK;
    }
    entry->data = c->bytes + c->at;
    entry->data_bytes = lq_gguf_type_bytes(entry->type);
    return read_values(c, entry->type, 1);
}

static lq_status read_entries(cursor *c, lq_gguf *g) {
    for (size_t i = 0; i < g->n_entries; i++) {
        lq_gguf_entry *entry = &g->entries[i];
        uint64_t at = c->at;
        LQ_TRY(read_entry(c, entry));
        if (!lq_name_table_add(&g->keys, entry->key, (uint32_t)entry->key_bytes, (uint32_t)i))
            return lq_fail(LQ_E_FORMAT, "%s: %s is there twice, again at offset %llu", c->path, c->where,
                           (unsigned long long)at);
    }
    return LQ_OK;
}

static lq_status read_alignment(lq_gguf *g) {
    bool found = false;
    g->alignment = DEFAULT_ALIGNMENT;
    LQ_TRY(lq_gguf_u32(g, "general.alignment", &g->alignment, &found));
    if (g->alignment == 0 || g->alignment > MAX_ALIGNMENT || (g->alignment & (g->alignment - 1)) != 0)
        return lq_fail(LQ_E_FORMAT, "%s: general.alignment is %u; a power of two up to %d expected", g->path,
                       (unsigned)g->alignment, MAX_ALIGNMENT);
    return LQ_OK;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Reads the dimensions and computes the number of values. */
static lq_status read_dims(cursor *c, lq_gguf_tensor_info *tensor, uint64_t *n_values) {
    uint64_t at = c->at;
    LQ_TRY(read_u32(c, &tensor->n_dims));
    if (tensor->n_dims < 1 || tensor->n_dims > 4)
        return lq_fail(LQ_E_FORMAT, "%s: %s has %u dimensions at offset %llu; 1 to 4 expected", c->path, c->where,
                       (unsigned)tensor->n_dims, (unsigned long long)at);
    *n_values = 1;
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
        if (i >= tensor->n_dims) continue;
        at = c->at;
        LQ_TRY(read_u64(c, &tensor->dims[i]));
        if (tensor->dims[i] == 0)
            return lq_fail(LQ_E_FORMAT, "%s: dimension %u of %s is 0 at offset %llu", c->path, (unsigned)i, c->where,
                           (unsigned long long)at);
        if (!lq_mul_u64(*n_values, tensor->dims[i], n_values))
            return lq_fail(LQ_E_FORMAT, "%s: the dimensions of %s overflow at offset %llu", c->path, c->where,
                           (unsigned long long)at);
    }
    return LQ_OK;
}

/* Leaves the offset into the data section in *offset; place_tensors() turns it into a pointer. */
static lq_status read_tensor(cursor *c, lq_gguf_tensor_info *tensor, uint64_t *offset) {
    uint64_t name_bytes = 0, n_values = 0, at;
    strcpy(c->where, "a tensor");
    LQ_TRY(read_name(c, "tensor name", MAX_NAME_BYTES, &tensor->name, &name_bytes));
    now_reading(c, "tensor", tensor->name, name_bytes);
    tensor->name_bytes = (size_t)name_bytes;
    LQ_TRY(read_dims(c, tensor, &n_values));
    at = c->at;
    LQ_TRY(read_i32(c, &tensor->type));
    if (tensor->type < 0)
        return lq_fail(LQ_E_FORMAT, "%s: %s has the negative type %d at offset %llu", c->path, c->where,
                       (int)tensor->type, (unsigned long long)at);
    tensor->format = lq_format_find(tensor->type);
    LQ_TRY(read_u64(c, offset));
    if (!tensor->format) return LQ_OK;
    if (tensor->dims[0] % tensor->format->block_len != 0)
        return lq_fail(LQ_E_FORMAT, "%s: %s has rows of %llu values, no multiple of the %u in a block of %s", c->path,
                       c->where, (unsigned long long)tensor->dims[0], (unsigned)tensor->format->block_len,
                       tensor->format->name);
    if (!lq_mul_u64(n_values / tensor->format->block_len, tensor->format->block_bytes, &tensor->data_bytes))
        return lq_fail(LQ_E_FORMAT, "%s: the size of %s overflows", c->path, c->where);
    return LQ_OK;
}

static lq_status place_tensors(cursor *c, lq_gguf *g, const uint64_t *offsets) {
    uint64_t start, data_bytes;
    if (!lq_align_u64(c->at, g->alignment, &start) || start > c->end) start = c->end;
    data_bytes = c->end - start;
    for (size_t i = 0; i < g->n_tensors; i++) {
        lq_gguf_tensor_info *tensor = &g->tensors[i];
        now_reading(c, "tensor", tensor->name, tensor->name_bytes);
        if (offsets[i] % g->alignment != 0)
            return lq_fail(LQ_E_FORMAT, "%s: %s starts at data offset %llu, no multiple of the alignment %u", c->path,
                           c->where, (unsigned long long)offsets[i], (unsigned)g->alignment);
        if (offsets[i] > data_bytes || tensor->data_bytes > data_bytes - offsets[i])
            return lq_fail(LQ_E_FORMAT,
                           "%s: %s needs %llu bytes at data offset %llu but the file has %llu bytes of data; "
                           "the file is truncated or damaged",
                           c->path, c->where, (unsigned long long)tensor->data_bytes, (unsigned long long)offsets[i],
                           (unsigned long long)data_bytes);
        if (tensor->format) tensor->data = c->bytes + start + offsets[i];
    }
    return LQ_OK;
}

static lq_status read_tensors(cursor *c, lq_gguf *g) {
    uint64_t *offsets = malloc(g->n_tensors ? g->n_tensors * sizeof *offsets : 1);
    lq_status status = LQ_OK;
    if (!offsets) return lq_fail(LQ_E_MEMORY, "%s: no memory for the tensor table", c->path);
    for (size_t i = 0; i < g->n_tensors; i++) {
        lq_gguf_tensor_info *tensor = &g->tensors[i];
        uint64_t at = c->at;
        if ((status = read_tensor(c, tensor, &offsets[i])) != LQ_OK) goto done;
        if (!lq_name_table_add(&g->names, tensor->name, (uint32_t)tensor->name_bytes, (uint32_t)i)) {
            status = lq_fail(LQ_E_FORMAT, "%s: %s is there twice, again at offset %llu", c->path, c->where,
                             (unsigned long long)at);
            goto done;
        }
    }
    status = place_tensors(c, g, offsets);
done:
    free(offsets);
    return status;
}

/* ---- the whole file ---------------------------------------------------------------------------------------------- */

/* A hint for files that people often try instead of a GGUF file, as far as the first bytes tell; else "". */
static const char *what_instead(const cursor *c) {
    static const struct {
        size_t at;
        const char *bytes, *hint;
    } kinds[] = {
        {8, "{\"", "; it looks like safetensors: convert it with convert_hf_to_gguf.py of llama.cpp"},
        {0, "PK\3\4", "; it is a zip archive, as PyTorch writes: convert it with convert_hf_to_gguf.py of llama.cpp"},
        {0, "version https://git-lfs", "; it is a pointer of Git LFS: fetch the file itself with: git lfs pull"},
        {0, "<", "; it looks like a web page: download the file, not its page"},
        {0, "tjgg", "; it is of a format before GGUF: fetch a newer file of the model"},
        {0, "lmgg", "; it is of a format before GGUF: fetch a newer file of the model"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t n = strlen(kinds[i].bytes);
        if (left(c) >= kinds[i].at + n && memcmp(c->bytes + kinds[i].at, kinds[i].bytes, n) == 0) return kinds[i].hint;
    }
    return "";
}

static lq_status read_version(cursor *c, lq_gguf *g) {
    if (left(c) < 4 || memcmp(c->bytes, "GGUF", 4) != 0)
        return lq_fail(LQ_E_FORMAT, "%s: not a GGUF file (it does not start with \"GGUF\")%s", c->path,
                       what_instead(c));
    LQ_TRY(skip(c, 4));
    LQ_TRY(read_u32(c, &g->version));
    if (g->version != 0 && (g->version & 0xffff) == 0)
        return lq_fail(LQ_E_FORMAT, "%s: a big-endian GGUF file; convert it to little-endian", c->path);
    if (g->version < 2 || g->version > 3)
        return lq_fail(LQ_E_FORMAT, "%s: GGUF version %u is not supported (2 and 3 are)", c->path,
                       (unsigned)g->version);
    return LQ_OK;
}

/* Reads a count from the header, and refuses it if so many of the smallest items cannot fit the bytes that are left. */
static lq_status read_count(cursor *c, const char *what, uint64_t item_bytes, size_t *out) {
    uint64_t count, at = c->at;
    LQ_TRY(read_u64(c, &count));
    if (count > left(c) / item_bytes || count > UINT32_MAX / 4)
        return lq_fail(LQ_E_FORMAT, "%s: the header claims %llu %s at offset %llu but %llu bytes are left", c->path,
                       (unsigned long long)count, what, (unsigned long long)at, (unsigned long long)left(c));
    *out = (size_t)count;
    return LQ_OK;
}

static lq_status parse(lq_gguf *g) {
    cursor c = {.path = g->path, .bytes = g->file.bytes, .end = g->file.n_bytes, .where = "the header"};
    LQ_TRY(read_version(&c, g));
    if (left(&c) < HEADER_BYTES - 8) return truncated(&c, HEADER_BYTES - 8);
    LQ_TRY(read_count(&c, "tensors", MIN_TENSOR_BYTES, &g->n_tensors));
    LQ_TRY(read_count(&c, "keys", MIN_ENTRY_BYTES, &g->n_entries));
    g->entries = calloc(g->n_entries ? g->n_entries : 1, sizeof *g->entries);
    g->tensors = calloc(g->n_tensors ? g->n_tensors : 1, sizeof *g->tensors);
    if (!g->entries || !g->tensors || !lq_name_table_init(&g->keys, g->n_entries) ||
        !lq_name_table_init(&g->names, g->n_tensors))
        return lq_fail(LQ_E_MEMORY, "%s: no memory for %zu keys and %zu tensors", g->path, g->n_entries, g->n_tensors);
    LQ_TRY(read_entries(&c, g));
    LQ_TRY(read_alignment(g));
    return read_tensors(&c, g);
}

lq_status lq_gguf_open_file(const char *path, lq_gguf **out) {
    lq_status status;
    size_t path_bytes;
    lq_gguf *g;
    if (!out) return lq_fail(LQ_E_ARG, "lq_gguf_open: out is NULL");
    *out = NULL;
    if (!path || !*path) return lq_fail(LQ_E_ARG, "lq_gguf_open: the path is empty; name a GGUF file");
    if (!(g = calloc(1, sizeof *g))) return lq_fail(LQ_E_MEMORY, "%s: no memory to open it", path);
    path_bytes = strlen(path) + 1;
    if (!(g->path = malloc(path_bytes))) {
        status = lq_fail(LQ_E_MEMORY, "%s: no memory to open it", path);
        goto fail;
    }
    memcpy(g->path, path, path_bytes);
    if ((status = lq_mapping_open(path, &g->file)) != LQ_OK) goto fail;
    g->total_bytes = g->file.n_bytes;
    if ((status = parse(g)) != LQ_OK) goto fail;
    *out = g;
    return LQ_OK;
fail:
    lq_gguf_close(&g);
    return status;
}

lq_status lq_gguf_open(const char *path, lq_gguf **out) {
    LQ_TRY(lq_gguf_open_file(path, out));
    lq_status status = lq_gguf_join(*out);
    if (status != LQ_OK) lq_gguf_close(out);
    return status;
}

void lq_gguf_close(lq_gguf **gguf) {
    if (!gguf || !*gguf) return;
    lq_gguf *g = *gguf;
    for (uint32_t i = 0; i < g->n_parts; i++) lq_gguf_close(&g->parts[i]);
    free(g->parts);
    lq_name_table_free(&g->keys);
    lq_name_table_free(&g->names);
    free(g->entries);
    free(g->tensors);
    lq_mapping_close(&g->file);
    free(g->path);
    free(g);
    *gguf = NULL;
}
