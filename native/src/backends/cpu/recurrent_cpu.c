/* recurrent_cpu.c - layers that keep a state instead of keys and values. */
#include "backends/cpu/backend_cpu.h"

/* Channels that a task works on at a time: their weights, sorted by tap, are on the stack. Fewer mean shorter stretches
 * of each row. */
#define CHANNELS 512
#define FEWEST_CHANNELS 64 /* of a task */
/* Fewer values (channels of all tokens) cost less than waking a second thread. */
#define SERIAL_VALUES 8192

typedef struct conv_op {
    const lq_short_conv *conv;
    uint32_t channels_per_task;
} conv_op;

/* Row i of `before` followed by bx: what tap i of the first token meets, tap i - 1 of the second one, and so on. */
static const float *bx_row(const lq_short_conv *conv, const lq_conv_sequence *s, size_t i) {
    uint32_t n_before = conv->n_taps - 1;
    return i < n_before ? s->before + i * conv->n_channels : s->bx + (i - n_before) * conv->n_channels;
}

/* Computes n channels from channel `first` on. The innermost loops go over channels, so that compilers vectorise them.
 */
static void conv_channels(const lq_short_conv *conv, const lq_conv_sequence *s, uint32_t first, uint32_t n) {
    float weights[LQ_CONV_MAX_TAPS][CHANNELS], sums[CHANNELS];
    for (uint32_t i = 0; i < conv->n_taps; i++)
        for (uint32_t c = 0; c < n; c++) weights[i][c] = conv->weights[(size_t)(first + c) * conv->n_taps + i];
    for (uint32_t t = 0; t < s->n_tokens; t++) {
        const float *b = s->bcx + (size_t)t * 3 * conv->n_channels + first;
        const float *gate = b + conv->n_channels, *x = gate + conv->n_channels;
        float *bx = s->bx + (size_t)t * conv->n_channels + first, *y = s->y + (size_t)t * conv->n_channels + first;
        for (uint32_t c = 0; c < n; c++) bx[c] = b[c] * x[c];
        for (uint32_t c = 0; c < n; c++) sums[c] = 0.0f;
        for (uint32_t i = 0; i < conv->n_taps; i++) {
            const float *row = bx_row(conv, s, (size_t)t + i) + first;
            for (uint32_t c = 0; c < n; c++) sums[c] += weights[i][c] * row[c];
        }
        for (uint32_t c = 0; c < n; c++) y[c] = gate[c] * sums[c];
    }
}

static void conv_task(void *context, uint32_t task, uint32_t thread) {
    const conv_op *op = context;
    const lq_short_conv *conv = op->conv;
    uint32_t first = task * op->channels_per_task, left = conv->n_channels - first;
    uint32_t end = first + (left < op->channels_per_task ? left : op->channels_per_task);
    (void)thread;
    for (uint32_t s = 0; s < conv->n_sequences; s++)
        for (uint32_t c = first; c < end; c += CHANNELS)
            conv_channels(conv, &conv->sequences[s], c, end - c < CHANNELS ? end - c : CHANNELS);
}

void lq_cpu_short_conv(lq_backend *backend, const lq_short_conv *args) {
    conv_op op = {args, args->n_channels};
    uint64_t n_values = 0;
    for (uint32_t s = 0; s < args->n_sequences; s++)
        n_values += (uint64_t)args->sequences[s].n_tokens * args->n_channels;
    if (n_values == 0) return;
    if (n_values >= SERIAL_VALUES) {
        uint32_t share = args->n_channels / (2 * lq_cpu(backend)->n_threads) / FEWEST_CHANNELS * FEWEST_CHANNELS;
        op.channels_per_task = share < FEWEST_CHANNELS ? FEWEST_CHANNELS : share < CHANNELS ? share : CHANNELS;
    }
    lq_pool_run(lq_cpu(backend)->pool, conv_task, &op,
                (args->n_channels + op.channels_per_task - 1) / op.channels_per_task);
}
