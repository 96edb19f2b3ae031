/* fingerprint.c - hashes what tells models apart: all metadata, the tensor table, and samples of every tensor's data.
 * Two trainings of the same shape differ in nearly every sample; reading all weights would take as long as copying
 * them. */
#include "core/hash.h"
#include "model/model.h"

#define N_SAMPLES 4
#define SAMPLE_BYTES 64

static uint64_t hash_tensor(const lq_gguf_tensor_info *t, uint64_t hash) {
    uint64_t n_sample = t->data_bytes < SAMPLE_BYTES ? t->data_bytes : SAMPLE_BYTES;
    hash = lq_hash(t->name, t->name_bytes, hash);
    hash = lq_hash(&t->type, sizeof t->type, hash);
    hash = lq_hash(t->dims, sizeof t->dims, hash);
    for (uint64_t i = 0; i < N_SAMPLES && t->data != NULL; i++)
        hash = lq_hash(t->data + (t->data_bytes - n_sample) / (N_SAMPLES - 1) * i, (size_t)n_sample, hash);
    return hash;
}

uint64_t lq_model_fingerprint(const lq_model *model) {
    uint64_t hash = 1;
    lq_gguf_entry entry;
    for (size_t i = 0; i < lq_gguf_n_entries(model->gguf); i++) {
        if (lq_gguf_get_entry(model->gguf, i, &entry) != LQ_OK) continue;
        hash = lq_hash(entry.key, entry.key_bytes, hash);
        hash = lq_hash(&entry.type, sizeof entry.type, hash);
        hash = lq_hash(entry.data, (size_t)entry.data_bytes, hash);
    }
    for (size_t i = 0; i < lq_gguf_n_tensors(model->gguf); i++)
        hash = hash_tensor(lq_gguf_tensor_at(model->gguf, i), hash);
    return hash;
}
