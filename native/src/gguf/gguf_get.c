/* gguf_get.c - typed getters over an open GGUF file. */
#include <inttypes.h>
#include <string.h>

#include "gguf/file.h"

uint32_t lq_gguf_version(const lq_gguf *gguf) { return gguf ? gguf->version : 0; }

uint64_t lq_gguf_file_bytes(const lq_gguf *gguf) { return gguf ? gguf->total_bytes : 0; }

size_t lq_gguf_n_entries(const lq_gguf *gguf) { return gguf ? gguf->n_entries : 0; }

size_t lq_gguf_n_tensors(const lq_gguf *gguf) { return gguf ? gguf->n_tensors : 0; }

const char *lq_gguf_path(const lq_gguf *gguf) { return gguf->path; }

lq_status lq_gguf_get_entry(const lq_gguf *gguf, size_t index, lq_gguf_entry *out) {
    if (!gguf || !out) return lq_fail(LQ_E_ARG, "lq_gguf_get_entry: gguf or out is NULL");
    if (index >= gguf->n_entries)
        return lq_fail(LQ_E_ARG, "%s: key %zu asked for, the file has %zu", gguf->path, index, gguf->n_entries);
    *out = gguf->entries[index];
    return LQ_OK;
}

lq_status lq_gguf_get_tensor(const lq_gguf *gguf, size_t index, lq_gguf_tensor *out) {
    if (!gguf || !out) return lq_fail(LQ_E_ARG, "lq_gguf_get_tensor: gguf or out is NULL");
    if (index >= gguf->n_tensors)
        return lq_fail(LQ_E_ARG, "%s: tensor %zu asked for, the file has %zu", gguf->path, index, gguf->n_tensors);
    const lq_gguf_tensor_info *tensor = &gguf->tensors[index];
    out->name = tensor->name;
    out->name_bytes = tensor->name_bytes;
    out->type_name = tensor->format ? tensor->format->name : "?";
    out->type = tensor->type;
    out->n_dims = tensor->n_dims;
    memcpy(out->dims, tensor->dims, sizeof out->dims);
    out->data_bytes = tensor->data_bytes;
    return LQ_OK;
}

int64_t lq_gguf_find(const lq_gguf *gguf, const char *key) {
    return gguf && key ? lq_name_table_find(&gguf->keys, key, strlen(key)) : -1;
}

lq_status lq_gguf_get_strings(const lq_gguf *gguf, size_t index, uint64_t *offsets, char *chars, uint64_t *n_chars) {
    lq_gguf_entry entry = {0};
    LQ_TRY(lq_gguf_get_entry(gguf, index, &entry));
    if (!n_chars) return lq_fail(LQ_E_ARG, "lq_gguf_get_strings: n_chars is NULL");
    if (entry.type != LQ_GGUF_ARRAY || entry.item_type != LQ_GGUF_STRING)
        return lq_fail(LQ_E_FORMAT, "%s: key '%.*s' is no array of strings", gguf->path, (int)entry.key_bytes,
                       entry.key);
    const uint8_t *at = entry.data;
    uint64_t offset = 0;
    if (offsets) offsets[0] = 0;
    for (uint64_t i = 0; (offsets || chars) && i < entry.n_items; i++) {
        uint64_t n_bytes = 0;
        for (int byte = 7; byte >= 0; byte--) n_bytes = n_bytes << 8 | at[byte];
        if (chars && n_bytes) memcpy(chars + offset, at + 8, (size_t)n_bytes);
        offset += n_bytes;
        if (offsets) offsets[i + 1] = offset;
        at += 8 + n_bytes;
    }
    *n_chars = entry.data_bytes - 8 * entry.n_items; /* each string is preceded by its length */
    return LQ_OK;
}

const lq_gguf_tensor_info *lq_gguf_find_tensor(const lq_gguf *gguf, const char *name) {
    int64_t index = lq_name_table_find(&gguf->names, name, strlen(name));
    return index < 0 ? NULL : &gguf->tensors[index];
}

size_t lq_gguf_n_files(const lq_gguf *g) { return (size_t)1 + g->n_parts; }

const uint8_t *lq_gguf_file_at(const lq_gguf *g, size_t index, uint64_t *n_bytes) {
    const lq_mapping *file = index == 0 ? &g->file : &g->parts[index - 1]->file;
    *n_bytes = file->n_bytes;
    return file->bytes;
}

lq_status lq_gguf_check_whole(const lq_gguf *g) {
    for (uint32_t i = 0; i <= g->n_parts; i++) {
        const lq_gguf *part = i == 0 ? g : g->parts[i - 1];
        if (!lq_mapping_is_whole(&part->file))
            return lq_fail(LQ_E_IO,
                           "%.300s: the file was cut short while it was open; put the whole file there under a name of "
                           "its own, and load the model again",
                           part->path);
    }
    return LQ_OK;
}

const lq_gguf_tensor_info *lq_gguf_tensor_at(const lq_gguf *gguf, size_t index) {
    return index < gguf->n_tensors ? &gguf->tensors[index] : NULL;
}

/* ---- one value by key -------------------------------------------------------------------------------------------- */

/* Finds an entry; an absent key is an error if found is NULL, else *entry is NULL. */
static lq_status find_entry(const lq_gguf *gguf, const char *key, bool *found, const lq_gguf_entry **entry) {
    int64_t index = lq_gguf_find(gguf, key);
    *entry = index < 0 ? NULL : &gguf->entries[index];
    if (found) *found = *entry != NULL;
    if (!*entry && !found) return lq_fail(LQ_E_FORMAT, "%s: the key '%s' is missing", gguf->path, key);
    return LQ_OK;
}

static lq_status wrong_type(const lq_gguf *gguf, const lq_gguf_entry *entry, const char *expected) {
    return lq_fail(LQ_E_FORMAT, "%s: key '%.*s' is of type %s; %s expected", gguf->path, (int)entry->key_bytes,
                   entry->key, lq_gguf_type_name(entry->type), expected);
}

/* The little-endian bits of a fixed-size value, widened with zeros. */
static uint64_t value_bits(const lq_gguf_entry *entry) {
    const uint8_t *bytes = entry->data;
    uint64_t bits = 0;
    for (uint64_t i = entry->data_bytes; i-- > 0;) bits = bits << 8 | bytes[i];
    return bits;
}

/* Describes one item of an array as an entry of its own. */
static lq_gguf_entry item_of(const lq_gguf_entry *array, uint64_t index) {
    lq_gguf_entry item = *array;
    uint32_t n_bytes = lq_gguf_type_bytes(array->item_type);
    item.type = array->item_type;
    item.n_items = 1;
    item.data = (const uint8_t *)array->data + index * n_bytes;
    item.data_bytes = n_bytes;
    return item;
}

static lq_status read_u32(const lq_gguf *gguf, const lq_gguf_entry *entry, uint32_t *out) {
    uint64_t bits;
    bool negative = false;
    switch (entry->type) {
    case LQ_GGUF_I8:
    case LQ_GGUF_I16:
    case LQ_GGUF_I32:
    case LQ_GGUF_I64:
        bits = value_bits(entry);
        negative = bits >> (8 * entry->data_bytes - 1) != 0;
        break;
    case LQ_GGUF_U8:
    case LQ_GGUF_U16:
    case LQ_GGUF_U32:
    case LQ_GGUF_U64:
        bits = value_bits(entry);
        break;
    default:
        return wrong_type(gguf, entry, "an integer");
    }
    if (negative)
        return lq_fail(LQ_E_FORMAT, "%s: key '%.*s' is negative", gguf->path, (int)entry->key_bytes, entry->key);
    if (bits > UINT32_MAX)
        return lq_fail(LQ_E_FORMAT, "%s: key '%.*s' is %" PRIu64 ", more than 32 bits", gguf->path,
                       (int)entry->key_bytes, entry->key, bits);
    *out = (uint32_t)bits;
    return LQ_OK;
}

lq_status lq_gguf_u32(const lq_gguf *gguf, const char *key, uint32_t *out, bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    return entry ? read_u32(gguf, entry, out) : LQ_OK;
}

lq_status lq_gguf_u32_at(const lq_gguf *gguf, const char *key, uint64_t index, uint64_t n_items, uint32_t *out,
                         bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    if (!entry) return LQ_OK;
    if (entry->type != LQ_GGUF_ARRAY || n_items == 0) return read_u32(gguf, entry, out);
    if (entry->n_items != n_items)
        return lq_fail(LQ_E_FORMAT, "%s: key '%s' holds %" PRIu64 " numbers; one, or %" PRIu64 " expected", gguf->path,
                       key, entry->n_items, n_items);
    lq_gguf_entry item = item_of(entry, index);
    return read_u32(gguf, &item, out);
}

bool lq_gguf_number_at(const lq_gguf_entry *entry, uint64_t index, double *out) {
    lq_gguf_entry item = item_of(entry, index);
    uint64_t bits;
    if (lq_gguf_type_bytes(item.type) == 0) return false;
    bits = value_bits(&item);
    if (item.type == LQ_GGUF_F32) {
        uint32_t low = (uint32_t)bits;
        float value;
        memcpy(&value, &low, 4);
        *out = (double)value;
    } else if (item.type == LQ_GGUF_F64) {
        memcpy(out, &bits, 8);
    } else if (item.type == LQ_GGUF_I8 || item.type == LQ_GGUF_I16 || item.type == LQ_GGUF_I32 ||
               item.type == LQ_GGUF_I64) {
        uint64_t sign = (uint64_t)1 << (8 * item.data_bytes - 1);
        *out = (double)(int64_t)((bits ^ sign) - sign);
    } else {
        *out = (double)bits;
    }
    return true;
}

lq_status lq_gguf_f32(const lq_gguf *gguf, const char *key, float *out, bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    if (!entry) return LQ_OK;
    uint64_t bits = entry->type == LQ_GGUF_F32 || entry->type == LQ_GGUF_F64 ? value_bits(entry) : 0;
    if (entry->type == LQ_GGUF_F32) {
        uint32_t low = (uint32_t)bits;
        memcpy(out, &low, 4);
    } else if (entry->type == LQ_GGUF_F64) {
        double value;
        memcpy(&value, &bits, 8);
        if (value > 3.4028234663852886e38 || value < -3.4028234663852886e38)
            return lq_fail(LQ_E_FORMAT, "%s: key '%s' is %g, too large for a 32-bit float", gguf->path, key, value);
        *out = (float)value;
    } else {
        return wrong_type(gguf, entry, "a float");
    }
    return LQ_OK;
}

lq_status lq_gguf_bool(const lq_gguf *gguf, const char *key, bool *out, bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    if (!entry) return LQ_OK;
    if (entry->type != LQ_GGUF_BOOL) return wrong_type(gguf, entry, "a bool");
    *out = value_bits(entry) != 0;
    return LQ_OK;
}

lq_status lq_gguf_string(const lq_gguf *gguf, const char *key, const char **chars, size_t *n_bytes, bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    if (!entry) return LQ_OK;
    if (entry->type != LQ_GGUF_STRING) return wrong_type(gguf, entry, "a string");
    *chars = entry->data;
    *n_bytes = (size_t)entry->data_bytes;
    return LQ_OK;
}

lq_status lq_gguf_array(const lq_gguf *gguf, const char *key, int32_t *item_type, uint64_t *n_items, const void **data,
                        bool *found) {
    const lq_gguf_entry *entry;
    LQ_TRY(find_entry(gguf, key, found, &entry));
    if (!entry) return LQ_OK;
    if (entry->type != LQ_GGUF_ARRAY) return wrong_type(gguf, entry, "an array");
    *item_type = entry->item_type;
    *n_items = entry->n_items;
    *data = entry->data;
    return LQ_OK;
}
