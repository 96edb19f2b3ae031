/* rank.cu - finds the k largest of many numbers, in an order without ties, so that the host need not copy all logits to
 * choose a token from the best of them. */
#include "backends/cuda/backend_cuda.cuh"

#define CHUNK 2048 /* numbers that a block sorts; 16 KiB of shared memory */
#define BLOCK 256
static_assert(CHUNK >= 2 * LQ_BEST_MOST, "every round leaves fewer");

typedef unsigned long long key; /* a larger key is better; 0: the number does not count */

/* Larger numbers get larger keys, of equal ones (as 0 and -0) the lower index does. NaN and -infinity do not count. */
LQ_DEVICE key make_key(float x, uint32_t index) {
    if (!(x > -INFINITY)) return 0;
    uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (key)rising << 32 | (uint32_t)~index;
}

/* Sorts CHUNK keys, best first, by bitonic sort (Batcher 1968). */
LQ_DEVICE void sort_keys(key *keys) {
    for (uint32_t size = 2; size <= CHUNK; size *= 2) {
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < CHUNK / 2; i += BLOCK) {
                uint32_t low = 2 * i - (i & (stride - 1)), high = low + stride;
                bool falls = (low & size) == 0;
                key a = keys[low], b = keys[high];
                if ((a < b) == falls) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

/* Finds the k best of each chunk of n numbers or, if numbers is NULL, of n keys. */
static __global__ void __launch_bounds__(BLOCK)
    best_of_chunks(const float *numbers, const key *keys, uint32_t n, uint32_t k, key *out) {
    __shared__ key sorted[CHUNK];
    uint32_t first = blockIdx.x * CHUNK;
    for (uint32_t i = threadIdx.x; i < CHUNK; i += BLOCK) {
        uint32_t at = first + i;
        sorted[i] = at >= n ? 0 : numbers != NULL ? make_key(numbers[at], at) : keys[at];
    }
    sort_keys(sorted);
    for (uint32_t i = threadIdx.x; i < k; i += BLOCK) out[(size_t)blockIdx.x * k + i] = sorted[i];
}

static lq_ranked read_key(key key) {
    uint32_t rising = (uint32_t)(key >> 32), bits = (rising & 0x80000000u) != 0 ? rising & 0x7fffffffu : ~rising;
    lq_ranked ranked;
    memcpy(&ranked.value, &bits, sizeof bits);
    ranked.index = ~(uint32_t)key;
    return ranked;
}

/* Memory for n keys. NULL: out of memory, which is noted. */
static key *key_memory(lq_backend_cuda *cuda, size_t n) {
    if (n <= cuda->n_ranks) return (key *)cuda->ranks;
    void *memory = NULL;
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "best");
    cudaFree(cuda->ranks);
    cuda->ranks = NULL;
    cuda->n_ranks = 0;
    cudaError_t error = cudaMalloc(&memory, n * sizeof(key));
    lq_cuda_note(cuda, error, "best");
    if (error != cudaSuccess) return NULL;
    cuda->ranks = memory;
    cuda->n_ranks = n;
    return (key *)memory;
}

uint32_t lq_cuda_best(lq_backend *backend, const float *x, uint32_t n, uint32_t k, lq_ranked *out) {
    lq_backend_cuda *cuda = lq_cuda(backend);
    key best[LQ_BEST_MOST];
    uint32_t n_chunks = lq_divide_up(n, CHUNK), n_found = 0;
    std::lock_guard<std::mutex> hold(cuda->ranking);
    lq_cuda_note(cuda, cudaSetDevice(cuda->device), "cudaSetDevice");
    key *to = key_memory(cuda, 2 * (size_t)n_chunks * k), *from = NULL;
    if (to == NULL) return 0;
    key *other = to + (size_t)n_chunks * k;
    LQ_LAUNCH(best_of_chunks, n_chunks, BLOCK, 0, cuda->stream, x, (const key *)NULL, n, k, to);
    while (n_chunks > 1) {
        uint32_t n_left = n_chunks * k;
        from = to, to = other, other = from;
        n_chunks = lq_divide_up(n_left, CHUNK);
        LQ_LAUNCH(best_of_chunks, n_chunks, BLOCK, 0, cuda->stream, (const float *)NULL, (const key *)from, n_left, k,
                  to);
    }
    lq_cuda_check(cuda, "best");
    memset(best, 0, sizeof best);
    lq_cuda_note(cuda, cudaMemcpyAsync(best, to, k * sizeof(key), cudaMemcpyDeviceToHost, cuda->stream), "best");
    lq_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "best");
    while (n_found < k && best[n_found] != 0) {
        out[n_found] = read_key(best[n_found]);
        n_found++;
    }
    return n_found;
}
