/* names.h - an open-addressing table from names that lie in the file to indices; no name is copied. */
#ifndef LQ_GGUF_NAMES_H
#define LQ_GGUF_NAMES_H

#include <stdbool.h>

#include "core/status.h"

typedef struct lq_name_slot {
    const char *name; /* NULL: free */
    uint32_t name_bytes;
    uint32_t index;
} lq_name_slot;

typedef struct lq_name_table {
    lq_name_slot *slots;
    uint64_t mask; /* slots - 1, a power of two at least twice the names */
    uint64_t seed;
} lq_name_table;

/* Makes an empty table with room for n_names; false if out of memory. */
bool lq_name_table_init(lq_name_table *table, uint64_t n_names);
void lq_name_table_free(lq_name_table *table);
/* Adds a name; returns false and changes nothing if it is there already. */
bool lq_name_table_add(lq_name_table *table, const char *name, uint32_t name_bytes, uint32_t index);
/* The index of a name, or -1. */
int64_t lq_name_table_find(const lq_name_table *table, const char *name, size_t name_bytes);

#endif
