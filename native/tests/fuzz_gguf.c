/* fuzz_gguf.c - opens any bytes as a GGUF file: they are refused with a text, or every getter stays inside the mapping.
 *
 * See fuzz_mutate.h. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "fuzz_mutate.h"
#include "gguf/file.h"

static char path[512];
static unsigned long n_accepted;
static volatile unsigned sink; /* so that the compiler keeps the reads */

static void fail(const char *what) {
    fprintf(stderr, "fuzz_gguf: %s; the input is in %s\n", what, path);
    abort();
}

/* Checks bounds, because sanitizers do not see reads past the file's end within the mapping's last page. */
static void check_inside(const lq_gguf *g, const void *data, uint64_t n_bytes) {
    uint64_t at = (uint64_t)((const uint8_t *)data - g->file.bytes);
    if (at > g->file.n_bytes || n_bytes > g->file.n_bytes - at) fail("data outside of the mapping");
    if (n_bytes) sink += ((const uint8_t *)data)[0] + ((const uint8_t *)data)[n_bytes - 1];
}

static void check_entry(const lq_gguf *g, size_t index) {
    lq_gguf_entry entry;
    uint32_t u32 = 0;
    float f32 = 0;
    bool flag = false, found = false;
    const char *chars = NULL;
    const void *items = NULL;
    size_t n_bytes = 0;
    int32_t item_type = 0;
    uint64_t n_items = 0, n_chars = 0;
    if (lq_gguf_get_entry(g, index, &entry) != LQ_OK) fail("an entry is missing");
    check_inside(g, entry.key, entry.key_bytes);
    check_inside(g, entry.data, entry.data_bytes);
    char *key = malloc(entry.key_bytes + 1);
    if (!key) exit(2);
    memcpy(key, entry.key, entry.key_bytes);
    key[entry.key_bytes] = '\0';
    if (lq_gguf_find(g, key) != (int64_t)index) fail("a key is not found");
    lq_status any =
        lq_gguf_u32(g, key, &u32, &found) | lq_gguf_f32(g, key, &f32, &found) | lq_gguf_bool(g, key, &flag, &found);
    sink += (unsigned)any + u32 + flag;
    if (lq_gguf_string(g, key, &chars, &n_bytes, &found) == LQ_OK) check_inside(g, chars, n_bytes);
    if (lq_gguf_array(g, key, &item_type, &n_items, &items, &found) == LQ_OK) check_inside(g, items, 0);
    free(key);
    if (lq_gguf_get_strings(g, index, NULL, NULL, &n_chars) != LQ_OK) return;
    uint64_t *offsets = malloc((entry.n_items + 1) * sizeof *offsets);
    char *gathered = malloc(n_chars + 1);
    uint8_t *within = malloc(entry.n_items + 1);
    if (!offsets || !gathered || !within) exit(2);
    uint64_t again = 0;
    if (lq_gguf_get_strings(g, index, offsets, gathered, &again) != LQ_OK || again != n_chars)
        fail("strings change between calls");
    for (uint64_t i = 0; i < entry.n_items; i++)
        if (offsets[i] > offsets[i + 1]) fail("offsets fall");
    if (offsets[0] != 0 || offsets[entry.n_items] != n_chars) fail("offsets do not add up");
    sink += (unsigned)lq_strings_check_utf8(entry.n_items, offsets, gathered);
    if (lq_strings_within(entry.n_items, offsets, gathered, NULL, -1, gathered, n_chars, within) != LQ_OK)
        fail("strings cannot be looked for");
    for (uint64_t i = 0; i < entry.n_items; i++)
        if (!within[i]) fail("a string is not found among themselves");
    free(offsets);
    free(gathered);
    free(within);
}

static void check_tensor(const lq_gguf *g, size_t index) {
    lq_gguf_tensor tensor;
    const lq_gguf_tensor_info *info = lq_gguf_tensor_at(g, index);
    char name[65] = "";
    if (lq_gguf_get_tensor(g, index, &tensor) != LQ_OK || !info) fail("a tensor is missing");
    check_inside(g, tensor.name, tensor.name_bytes);
    if (tensor.name_bytes >= sizeof name) fail("a tensor's name is too long");
    memcpy(name, tensor.name, tensor.name_bytes);
    if (lq_gguf_find_tensor(g, name) != info) fail("a tensor is not found");
    if (info->format) check_inside(g, info->data, info->data_bytes);
    for (int i = 0; i < 4; i++)
        if (tensor.dims[i] == 0) fail("a dimension is 0");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lq_gguf *g = NULL;
    if (!path[0]) make_temporary(path, sizeof path);
    write_file(path, data, size);
    lq_status status = lq_gguf_open(path, &g);
    if (status != LQ_OK) {
        const char *text = lq_error_message();
        if (status != LQ_E_FORMAT || g || !strstr(text, path) || strchr(text, '\n')) fail("a poor refusal");
        return 0;
    }
    n_accepted++;
    for (size_t i = 0; i < lq_gguf_n_entries(g); i++) check_entry(g, i);
    for (size_t i = 0; i < lq_gguf_n_tensors(g); i++) check_tensor(g, i);
    lq_gguf_close(&g);
    return 0;
}

#ifndef LQ_LIBFUZZER

int main(int argc, char **argv) {
    static bytes valid;
    build_valid(&valid, 3);
    if (fuzz_corpus(argc, argv, &valid, 1)) return 0;
    LLVMFuzzerTestOneInput(valid.data, valid.n);
    CHECK(n_accepted == 1);
    unsigned long n = fuzz_mutations(argc, argv, 20000, &valid, 1);
    /* Some files are refused and some accepted: mutations reach past the header, and the getters run. */
    CHECK_MSG(n_accepted > n / 20 && n_accepted < n / 20 * 19, "%lu of %lu accepted", n_accepted, n);
    unlink(path);
    return check_report("fuzz_gguf");
}

#endif
