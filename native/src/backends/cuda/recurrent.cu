/* recurrent.cu - layers with a state instead of keys and values. Sums run in the order of recurrent_cpu.c. */
#include "backends/cuda/backend_cuda.cuh"

#define BLOCK 128
#define MAX_GRID 65535u
#define MAX_SEQUENCES 16 /* of one launch: they are passed as the kernel's arguments */

typedef struct conv_batch {
    lq_conv_sequence sequences[MAX_SEQUENCES];
} conv_batch;

/* One thread per channel and token. It computes b x of earlier tokens again, so that it waits for no other thread. */
static __global__ void convolve(conv_batch batch, const float *weights, uint32_t n_channels, uint32_t n_taps) {
    lq_conv_sequence s = batch.sequences[blockIdx.z];
    uint32_t channel = blockIdx.x * BLOCK + threadIdx.x;
    if (channel >= n_channels) return;
    for (uint32_t t = blockIdx.y; t < s.n_tokens; t += gridDim.y) {
        float sum = 0.0f, bx = 0.0f;
        for (uint32_t i = 0; i < n_taps; i++) {
            size_t row = (size_t)t + i; /* rows of `before`, then the tokens of this call */
            if (row < n_taps - 1) {
                bx = s.before[row * n_channels + channel];
            } else {
                const float *b = s.bcx + (row - (n_taps - 1)) * 3 * n_channels + channel;
                bx = b[0] * b[2 * (size_t)n_channels];
            }
            sum += weights[(size_t)channel * n_taps + i] * bx;
        }
        s.bx[(size_t)t * n_channels + channel] = bx; /* the last tap's: the token's own */
        s.y[(size_t)t * n_channels + channel] = s.bcx[((size_t)t * 3 + 1) * n_channels + channel] * sum;
    }
}

void lq_cuda_short_conv(lq_backend *backend, const lq_short_conv *args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    for (uint32_t first = 0; first < args->n_sequences; first += MAX_SEQUENCES) {
        uint32_t n = args->n_sequences - first < MAX_SEQUENCES ? args->n_sequences - first : MAX_SEQUENCES;
        uint32_t n_tokens = 0; /* of the longest */
        conv_batch batch;
        for (uint32_t i = 0; i < n; i++) {
            batch.sequences[i] = args->sequences[first + i];
            if (batch.sequences[i].n_tokens > n_tokens) n_tokens = batch.sequences[i].n_tokens;
        }
        if (n_tokens == 0) continue;
        dim3 grid(lq_divide_up(args->n_channels, BLOCK), n_tokens < MAX_GRID ? n_tokens : MAX_GRID, n);
        LQ_LAUNCH(convolve, grid, BLOCK, 0, cuda->stream, batch, args->weights, args->n_channels, args->n_taps);
    }
    lq_cuda_check(cuda, "short_conv");
}
