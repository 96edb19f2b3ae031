/* split.c - opens a model in several files, name-00001-of-0000N.gguf: the first holds the metadata, each has tensors.
 * The keys split.no, split.count and split.tensors.count are llama.cpp's (tools/gguf-split). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf/file.h"

#define MAX_PARTS 65535
#define SUFFIX_FORMAT "-%05u-of-%05u.gguf"
#define SUFFIX_BYTES 20 /* of "-00001-of-00002.gguf" */

/* Writes the end of a part's file name; number counts from 0, n_parts is at most MAX_PARTS. */
static void write_suffix(char suffix[SUFFIX_BYTES + 1], uint32_t number, uint32_t n_parts) {
    char text[2 * SUFFIX_BYTES];
    snprintf(text, sizeof text, SUFFIX_FORMAT, (unsigned)number + 1, (unsigned)n_parts);
    memcpy(suffix, text, SUFFIX_BYTES);
    suffix[SUFFIX_BYTES] = '\0';
}

/* Checks the part's number (from 0) and the count that its file states; LQ_E_FORMAT if either is wrong. */
static lq_status check_part(const lq_gguf *g, uint32_t number, uint32_t n_parts) {
    uint32_t found_number = 0, found_count = 0;
    LQ_TRY(lq_gguf_u32(g, "split.no", &found_number, NULL));
    LQ_TRY(lq_gguf_u32(g, "split.count", &found_count, NULL));
    if (found_count != n_parts)
        return lq_fail(LQ_E_FORMAT, "%s: says it is one of %u parts, the first part says %u", g->path,
                       (unsigned)found_count, (unsigned)n_parts);
    if (found_number != number)
        return lq_fail(LQ_E_FORMAT, "%s: says it is part %u of a model, by its name it is part %u", g->path,
                       (unsigned)found_number + 1, (unsigned)number + 1);
    return LQ_OK;
}

/* Whether a path ends in the suffix of a first part; *stem_bytes is then what comes before it. */
static bool is_first_name(const char *path, uint32_t n_parts, size_t *stem_bytes) {
    char suffix[SUFFIX_BYTES + 1];
    size_t n = strlen(path);
    write_suffix(suffix, 0, n_parts);
    if (n < SUFFIX_BYTES || strcmp(path + n - SUFFIX_BYTES, suffix) != 0) return false;
    *stem_bytes = n - SUFFIX_BYTES;
    return true;
}

static lq_status open_part(const lq_gguf *first, size_t stem_bytes, uint32_t number, uint32_t n_parts, lq_gguf **out) {
    char *path = malloc(stem_bytes + SUFFIX_BYTES + 1);
    if (path == NULL) return lq_fail(LQ_E_MEMORY, "%s: no memory to open its parts", first->path);
    memcpy(path, first->path, stem_bytes);
    write_suffix(path + stem_bytes, number, n_parts);
    lq_status status = lq_gguf_open_file(path, out);
    free(path);
    if (status == LQ_OK) status = check_part(*out, number, n_parts);
    return status;
}

/* Replaces the first part's tensor table by one of all tensors, in the order of the parts. */
static lq_status merge_tensors(lq_gguf *g, size_t n_total) {
    lq_name_table names;
    lq_gguf_tensor_info *all = calloc(n_total ? n_total : 1, sizeof *all);
    size_t n = 0;
    if (all == NULL || !lq_name_table_init(&names, n_total)) {
        free(all);
        return lq_fail(LQ_E_MEMORY, "%s: no memory for %zu tensors", g->path, n_total);
    }
    for (uint32_t i = 0; i <= g->n_parts; i++) {
        const lq_gguf *part = i == 0 ? g : g->parts[i - 1];
        for (size_t j = 0; j < part->n_tensors; j++, n++) {
            all[n] = part->tensors[j];
            if (lq_name_table_add(&names, all[n].name, (uint32_t)all[n].name_bytes, (uint32_t)n)) continue;
            lq_name_table_free(&names);
            lq_status status = lq_fail(LQ_E_FORMAT, "%s: tensor '%.*s' is in an earlier part too", part->path,
                                       (int)all[n].name_bytes, all[n].name);
            free(all);
            return status;
        }
    }
    lq_name_table_free(&g->names);
    free(g->tensors);
    g->names = names;
    g->tensors = all;
    g->n_tensors = n_total;
    return LQ_OK;
}

static lq_status open_parts(lq_gguf *g, uint32_t n_parts, size_t stem_bytes) {
    uint32_t n_expected;
    size_t n_total = g->n_tensors;
    bool found;
    g->parts = calloc(n_parts, sizeof *g->parts);
    if (g->parts == NULL) return lq_fail(LQ_E_MEMORY, "%s: no memory to open its parts", g->path);
    for (uint32_t i = 1; i < n_parts; i++) {
        lq_gguf **part = &g->parts[g->n_parts];
        lq_status status = open_part(g, stem_bytes, i, n_parts, part);
        g->n_parts += *part != NULL;
        if (status != LQ_OK) return status;
        n_total += (*part)->n_tensors;
        g->total_bytes += (*part)->total_bytes;
    }
    LQ_TRY(merge_tensors(g, n_total));
    LQ_TRY(lq_gguf_u32(g, "split.tensors.count", &n_expected, &found));
    if (!found || n_expected == n_total) return LQ_OK;
    return lq_fail(LQ_E_FORMAT, "%s: says that its %u parts hold %u tensors, they hold %zu", g->path, (unsigned)n_parts,
                   (unsigned)n_expected, n_total);
}

lq_status lq_gguf_join(lq_gguf *g) {
    uint32_t n_parts = 1, number = 0;
    size_t stem_bytes = 0;
    bool found;
    LQ_TRY(lq_gguf_u32(g, "split.count", &n_parts, &found));
    if (!found || n_parts <= 1) return LQ_OK;
    if (n_parts > MAX_PARTS)
        return lq_fail(LQ_E_FORMAT, "%s: a model in %u parts; at most %d are possible", g->path, (unsigned)n_parts,
                       MAX_PARTS);
    LQ_TRY(lq_gguf_u32(g, "split.no", &number, NULL));
    if (number != 0)
        return lq_fail(LQ_E_FORMAT,
                       "%s: part %u of a model in %u; open the first one, which is named ...-00001-of-%05u.gguf",
                       g->path, (unsigned)number + 1, (unsigned)n_parts, (unsigned)n_parts);
    if (!is_first_name(g->path, n_parts, &stem_bytes))
        return lq_fail(LQ_E_FORMAT,
                       "%s: the first part of a model in %u, whose name must end in -00001-of-%05u.gguf so that the "
                       "others can be found",
                       g->path, (unsigned)n_parts, (unsigned)n_parts);
    return open_parts(g, n_parts, stem_bytes);
}
