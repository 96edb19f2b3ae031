/* unused.c - refuses files with tensors that nothing loaded: parts of a model that would silently be left out. */
#include <stdio.h>
#include <string.h>

#include "model/model.h"

#define N_SHOWN 3

/* What tensors are for, by a part of their names (llama.cpp, src/llama-arch.cpp and tools/mtmd). */
static const struct {
    const char *part;
    bool at_start;
    const char *purpose;
} purposes[] = {
    {"v.", true, "of a vision encoder: the language part alone runs, from a file without them"},
    {"a.", true, "of an audio encoder: the language part alone runs, from a file without them"},
    {"mm.", true, "of a projector of images or sound: the language part alone runs, from a file without them"},
    {"resampler.", true, "of a projector of images: the language part alone runs, from a file without them"},
    {"nextn.", false, "of a draft head, which guesses tokens ahead: the model alone runs, from a file without them"},
    {"mtp.", false, "of a draft head, which guesses tokens ahead: the model alone runs, from a file without them"},
    {"lora_", false, "of a LoRA adapter: merge it into the model's weights first"},
    {"_shexp", false, "of shared experts, which this build does not run"},
    {"_exps", false, "of experts, for which the file's keys give no number"},
    {".ffn_gate.", false, "of experts in a tensor each, as files of 2023 have them: convert the model again"},
    {"attn_sinks", false, "attention sinks, which this build does not run"},
    {"ssm_", false, "of state-space layers, which this build does not run"},
    {"cls", true, "of a classifier"},
    {"dense_2", true, "of a model that embeds texts, which this build does not run"},
    {"scale", false, "factors of weights that the file does not have"},
    {".bias", false, "biases that this architecture does not have"},
    {"shortconv.", false, "of a short convolution, which only layers of lfm2 without KV heads have"},
};

static const char *purpose_of(const lq_gguf_tensor_info *t, uint32_t n_layers) {
    for (size_t i = 0; i < sizeof purposes / sizeof purposes[0]; i++) {
        size_t n = strlen(purposes[i].part), last = purposes[i].at_start ? 0 : t->name_bytes;
        for (size_t at = 0; at + n <= t->name_bytes && at <= last; at++)
            if (memcmp(t->name + at, purposes[i].part, n) == 0) return purposes[i].purpose;
    }
    uint32_t layer = lq_tensor_layer(t);
    return layer != UINT32_MAX && layer >= n_layers ? "of layers beyond the number that the file's keys give" : NULL;
}

lq_status lq_tensors_check(const lq_gguf *gguf, const bool *used, uint32_t n_layers, const char *arch) {
    char names[N_SHOWN * 70] = "", more[40] = "";
    const char *purpose = NULL;
    size_t n_unused = 0;
    int n = 0;
    for (size_t i = 0; i < lq_gguf_n_tensors(gguf); i++) {
        const lq_gguf_tensor_info *t = lq_gguf_tensor_at(gguf, i);
        if (used[i]) continue;
        if (purpose == NULL) purpose = purpose_of(t, n_layers);
        if (n_unused++ >= N_SHOWN) continue;
        n += snprintf(names + n, sizeof names - (size_t)n, "%s'%.*s'", n == 0 ? "" : ", ", (int)t->name_bytes, t->name);
    }
    if (n_unused == 0) return LQ_OK;
    if (n_unused > N_SHOWN) snprintf(more, sizeof more, " and %zu more", n_unused - N_SHOWN);
    return lq_fail(LQ_E_UNSUPPORTED, "the file has %zu tensor%s that architecture %s does not use: %s%s%s%s", n_unused,
                   n_unused == 1 ? "" : "s", arch, names, more, purpose != NULL ? ", " : "",
                   purpose != NULL ? purpose : "");
}
