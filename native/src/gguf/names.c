/* names.c - the table behind lq_gguf_find and lq_gguf_find_tensor. */
#include "gguf/names.h"

#include <stdlib.h>

#include "core/checked.h"
#include "core/hash.h"

bool lq_name_table_init(lq_name_table *table, uint64_t n_names) {
    uint64_t n_slots = 8, n_bytes;
    while (n_slots / 2 < n_names) n_slots *= 2;
    if (!lq_mul_u64(n_slots, sizeof(lq_name_slot), &n_bytes) || n_bytes > SIZE_MAX) return false;
    table->slots = calloc((size_t)n_slots, sizeof(lq_name_slot));
    if (!table->slots) return false;
    table->mask = n_slots - 1;
    table->seed = lq_hash_mix((uint64_t)(uintptr_t)table->slots ^ (uint64_t)(uintptr_t)table);
    return true;
}

void lq_name_table_free(lq_name_table *table) {
    free(table->slots);
    *table = (lq_name_table){NULL, 0, 0};
}

/* The slot that holds the name, or the free one where it belongs. The table is at most half full: the loop ends. */
static lq_name_slot *slot_of(const lq_name_table *table, const char *name, size_t name_bytes) {
    uint64_t at = lq_hash(name, name_bytes, table->seed) & table->mask;
    for (;; at = (at + 1) & table->mask) {
        lq_name_slot *slot = &table->slots[at];
        if (!slot->name || (slot->name_bytes == name_bytes && memcmp(slot->name, name, name_bytes) == 0)) return slot;
    }
}

bool lq_name_table_add(lq_name_table *table, const char *name, uint32_t name_bytes, uint32_t index) {
    lq_name_slot *slot = slot_of(table, name, name_bytes);
    if (slot->name) return false;
    *slot = (lq_name_slot){name, name_bytes, index};
    return true;
}

int64_t lq_name_table_find(const lq_name_table *table, const char *name, size_t name_bytes) {
    const lq_name_slot *slot = slot_of(table, name, name_bytes);
    return slot->name ? (int64_t)slot->index : -1;
}
