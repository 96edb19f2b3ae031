/* kv_select.cu - chooses the tokens that stay in full precision, exactly as kv/policy.c and kv/policy_*.c do on the
 * CPU. One block per KV head. Compiled without contraction. */
#include "backends/cuda/backend_cuda.cuh"

#define BLOCK 256
#define N_WARPS (BLOCK / LQ_WARP)

/* A head's task. The list shrinks in place: BLOCK entries are read before any of them is written, and never written
 * beyond the entries read so far. */
typedef struct choice {
    uint32_t window;
    const float *accumulated; /* by token; NULL where the policy needs none */
    uint32_t *kept;           /* the list: before a choice, 2 * window tokens */
    uint32_t *warps;          /* [N_WARPS], shared */
} choice;

/* Returns the sum of all threads' x, *before that of the threads before this one. All of the block must call it. */
LQ_DEVICE uint32_t sum_block(uint32_t x, uint32_t *warps, uint32_t *before) {
    uint32_t lane = threadIdx.x % LQ_WARP, warp = threadIdx.x / LQ_WARP, sum = x, all = 0, lower = 0;
    for (uint32_t distance = 1; distance < LQ_WARP; distance *= 2) {
        uint32_t other = __shfl_sync(LQ_ALL_LANES, sum, (int)((lane - distance) % LQ_WARP));
        if (lane >= distance) sum += other;
    }
    if (lane == LQ_WARP - 1) warps[warp] = sum;
    __syncthreads();
    for (uint32_t i = 0; i < N_WARPS; i++) {
        if (i < warp) lower += warps[i];
        all += warps[i];
    }
    __syncthreads(); /* until all have read warps, which the next call overwrites */
    *before = lower + sum - x;
    return all;
}

/* ---- policies: keep_<name> moves the window tokens that stay to the front of the list */

LQ_DEVICE void keep_even(const choice &c) {
    for (uint32_t first = 0; first < c.window; first += BLOCK) {
        uint32_t i = first + threadIdx.x, token = i < c.window ? c.kept[2 * i] : 0;
        __syncthreads();
        if (i < c.window) c.kept[i] = token;
    }
}

LQ_DEVICE void keep_newest(const choice &c) {
    for (uint32_t i = threadIdx.x; i < c.window; i += BLOCK) c.kept[i] = c.kept[c.window + i];
}

/* Sums are not negative, so they are ordered like their bits; NaNs get a rank, too (policy_heaviest.c). */
LQ_DEVICE uint32_t rank_of(const choice &c, uint32_t i) { return __float_as_uint(c.accumulated[c.kept[i]]); }

LQ_DEVICE uint32_t count_from(const choice &c, uint32_t least) {
    uint32_t count = 0, before;
    for (uint32_t i = threadIdx.x; i < 2 * c.window; i += BLOCK) count += rank_of(c, i) >= least;
    return sum_block(count, c.warps, &before);
}

LQ_DEVICE void keep_heaviest(const choice &c) {
    uint32_t least = 0, n_above = 0, n_equal = 0, n = 2 * c.window; /* n_above, n_equal: in earlier tiles */
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1)
        if (count_from(c, least | bit) >= c.window) least |= bit;
    uint32_t most_equal = c.window - (least == UINT32_MAX ? 0 : count_from(c, least + 1));
    for (uint32_t first = 0; first < n; first += BLOCK) {
        uint32_t i = first + threadIdx.x, token = i < n ? c.kept[i] : 0, before;
        bool above = i < n && rank_of(c, i) > least, equal = i < n && rank_of(c, i) == least;
        uint32_t both = sum_block((uint32_t)above | (uint32_t)equal << 16, c.warps, &before);
        uint32_t above_before = n_above + (before & 0xffffu), equal_before = n_equal + (before >> 16);
        if (above || (equal && equal_before < most_equal))
            c.kept[above_before + (equal_before < most_equal ? equal_before : most_equal)] = token;
        n_above += both & 0xffffu;
        n_equal += both >> 16;
    }
}

LQ_DEVICE void keep(lq_kv_policy_id policy, const choice &c) {
    switch (policy) {
#define LQ_POLICY(name)                                                                                                \
    case LQ_KV_POLICY_##name:                                                                                          \
        keep_##name(c);                                                                                                \
        break;
#include "kv/policies.def"
#undef LQ_POLICY
    }
}

/* ---- the rule that all policies share, and its results */

/* Does what lq_kv_select() does. */
LQ_DEVICE void choose(const lq_kv_selection &args, lq_kv_policy_id policy, const choice &c) {
    uint32_t n_give_ups = (args.n_tokens - args.n_full) / c.window, n_chosen = 0;
    for (uint32_t round = 0; round < n_give_ups; round++, n_chosen = c.window) {
        for (uint32_t i = n_chosen + threadIdx.x; i < 2 * c.window; i += BLOCK) c.kept[i] = round * c.window + i;
        __syncthreads();
        keep(policy, c);
        __syncthreads();
    }
    for (uint32_t i = n_chosen + threadIdx.x; i < args.n_full; i += BLOCK) c.kept[i] = n_give_ups * c.window + i;
    __syncthreads();
}

/* Adds the accumulated attention so far to the chunk's, in `now`, and returns the head's row. */
LQ_DEVICE float *sum_accumulated(const lq_kv_accumulated &r, uint32_t head) {
    const float *so_far = r.so_far + head * r.head_floats;
    float *now = r.now + (size_t)head * r.n_columns;
    for (uint32_t i = threadIdx.x; i < r.n_before; i += BLOCK) now[i] = so_far[i] + now[i];
    __syncthreads();
    return now;
}

static __global__ void __launch_bounds__(BLOCK) select_tokens(lq_kv_selection args, lq_kv_policy_id policy, bool sums) {
    __shared__ uint32_t warps[N_WARPS];
    uint32_t head = blockIdx.x, *positions = args.positions + head * args.head_positions;
    float *accumulated = sums ? sum_accumulated(args.accumulated, head) : NULL;
    choice c = {args.window, sums ? accumulated + args.n_sinks : NULL, args.columns + (size_t)head * args.n_full,
                warps};
    choose(args, policy, c);
    for (uint32_t first = 0; first < args.n_overlay; first += BLOCK) { /* in place: kept[i] >= i */
        uint32_t i = first + threadIdx.x, position = 0;
        if (i < args.n_overlay) {
            uint32_t token = c.kept[i];
            position = token < args.n_listed ? positions[token] : args.pos0 + (token - args.n_listed);
        }
        __syncthreads();
        if (i < args.n_overlay) positions[i] = position;
    }
    if (!sums) return;
    float *so_far = args.accumulated.so_far + head * args.accumulated.head_floats;
    for (uint32_t i = threadIdx.x; i < args.n_sinks; i += BLOCK) so_far[i] = accumulated[i];
    for (uint32_t i = threadIdx.x; i < args.n_full; i += BLOCK) so_far[args.n_sinks + i] = c.accumulated[c.kept[i]];
}

void lq_cuda_kv_select(lq_backend *backend, const lq_kv_selection *args) {
    lq_backend_cuda *cuda = lq_cuda_ready(backend);
    LQ_LAUNCH(select_tokens, args->n_kv_heads, BLOCK, 0, cuda->stream, *args, args->policy->id,
              args->policy->needs_accumulated);
    lq_cuda_check(cuda, "kv_select");
}
