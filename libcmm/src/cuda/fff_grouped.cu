/* Many tokens, one tree: first every token walks the top levels and joins the bucket of the subtree that it arrives at;
 * then each multiprocessor (SM) takes a stretch of the buckets, so that its tokens share rows, and L1 has them.
 * Work:   as per_token.
 * Memory: x twice, y once; rows from L1, where a subtree's rows of w_in and w_out fit (SUBTREE_BYTES); 4 (split + 1)
 *         bytes a token to the workspace and back, split being the levels of the top.
 * Sums:   see warp_row.cuh; y sums levels in order. Its bits are those of per_token and small_batch: the order of the
 *         buckets varies from run to run, but decides only which warp does a token.
 * Limit:  instructions: conversions, multiply-adds and reads of L1 each come near their peak. */
#include "../scratch.h"
#include "warp_row.cuh"

constexpr int64_t CHUNK = 65536; /* tokens listed at a time, which bounds the workspace */
constexpr int64_t FROM = 4096;   /* tokens from which it pays */
constexpr int64_t SUBTREE_BYTES = 200 * 1024; /* of the 256 KiB of L1 */
constexpr int64_t L2_BYTES = 64 << 20; /* about the L2 of an H100 or H200: a threshold, measured, not asked for */
constexpr int MOST_SPLIT = 10;             /* levels in the top part: 2^10 buckets */
constexpr int COUNTER = 32;                /* ints from counter to counter: a cache line each, for they are contended */
constexpr int TOP_WARPS = 8;

/* Warps in a block of the second kernel: as many as registers allow, one block on each processor. */
template <int V, int E> constexpr int BOTTOM_WARPS = V * E <= 24 ? 24 : 20;

struct buckets {
    int *count;   /* [2^split], COUNTER apart */
    int *tokens;  /* [2^split][capacity] */
    float *logits; /* [capacity][split] */
    int64_t first; /* the first token of this chunk */
    int capacity, size; /* tokens of the largest chunk, of this one */
    int split;
};

/* GIVEN: a path is given. */
template <typename T, int V, bool FULL, bool GIVEN>
__global__ void __launch_bounds__(32 * TOP_WARPS) fff_grouped_top(const cmm_cuda_problem problem, const buckets to)
{
    const int lane = threadIdx.x % 32;
    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    if (pdl_wait_is_refused<GIVEN>(problem))
        return;
    for (int token = blockIdx.x * TOP_WARPS + threadIdx.x / 32; token < to.size; token += gridDim.x * TOP_WARPS) {
        float x[V * ELEMENTS<T>];
        load_x<T, V, FULL>(x, (const T *)problem.x + (to.first + token) * problem.d_in, w_in.vectors, lane);
        visited seen = {0, 0, 0, 0};
        int node = 0;
        walk<T, V, FULL, true, GIVEN>(w_in, (const T *)problem.bias, cmm_threshold_f32(problem.tie), x, lane,
                                      GIVEN ? given_way(problem, to.first + token, 0) : 0, 0, 0, to.split, node, seen);
        if (lane < to.split)
            to.logits[(int64_t)token * to.split + lane] = seen.logit;
        if (lane == 0) {
            const int bucket = node - (int)cmm_descendant(0, to.split, 0);
            to.tokens[(int64_t)bucket * to.capacity + atomicAdd(to.count + bucket * COUNTER, 1)] = token;
        }
    }
}

template <typename T, int V, bool FULL, bool GIVEN>
__global__ void __launch_bounds__(32 * BOTTOM_WARPS<V, ELEMENTS<T>>, 1)
    fff_grouped_bottom(const cmm_cuda_problem problem, const buckets from)
{
    constexpr int WARPS = BOTTOM_WARPS<V, ELEMENTS<T>>;
    __shared__ int ends[1 << MOST_SPLIT]; /* the place, in all buckets laid end to end, where each bucket ends */
    const int count = 1 << from.split, levels = problem.depth + 1, lane = threadIdx.x % 32;
    if (pdl_wait_is_refused<GIVEN>(problem))
        return;
    if (threadIdx.x < 32) {
        int sum = 0;
        for (int l = 0; l < count; l += 32) {
            int own = l + lane < count ? from.count[(l + lane) * COUNTER] : 0;
            for (int distance = 1; distance < 32; distance *= 2) {
                const int below = __shfl_up_sync(0xffffffffu, own, distance);
                own += lane >= distance ? below : 0;
            }
            if (l + lane < count)
                ends[l + lane] = sum + own;
            sum += __shfl_sync(0xffffffffu, own, 31);
        }
    }
    __syncthreads();

    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    const matrix w_out = matrix_of<T>(problem.w_out, problem.d_out, problem.ld_out, lane);
    const float threshold = cmm_threshold_f32(problem.tie);
    const int end = (int)((int64_t)from.size * (blockIdx.x + 1) / gridDim.x);
    int bucket = 0;
    for (int at = (int)((int64_t)from.size * blockIdx.x / gridDim.x) + threadIdx.x / 32; at < end; at += WARPS) {
        for (int last = count - 1; bucket < last;) { /* the first bucket that ends after `at` */
            const int middle = (bucket + last) / 2;
            if (ends[middle] > at)
                last = middle;
            else
                bucket = middle + 1;
        }
        const int place = at - (bucket > 0 ? ends[bucket - 1] : 0);
        const int in_chunk = from.tokens[(int64_t)bucket * from.capacity + place];
        const int64_t token = from.first + in_chunk;
        float x[V * ELEMENTS<T>], y[V * ELEMENTS<T>];
        load_x<T, V, FULL>(x, (const T *)problem.x + token * problem.d_in, w_in.vectors, lane);
        int node = (int)cmm_descendant(0, from.split, bucket);
        visited seen = {0, 0, 0, from.split};
        if (lane < from.split)
            seen.logit = from.logits[(int64_t)in_chunk * from.split + lane];
        walk<T, V, FULL, true, GIVEN>(w_in, (const T *)problem.bias, threshold, x, lane,
                                      GIVEN ? given_way(problem, token, 0) : 0, 0, from.split, levels, node, seen);
        path_from_leaf(seen, node, levels, lane);
        clear(y);
        epilogue<T, V, FULL, 6 / V>(problem, w_out, y, lane, token * levels, seen);
        if (problem.wants_y)
            store_y<T, V, FULL>((T *)problem.y + token * problem.d_out, y, w_out.vectors, lane);
    }
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

/* Levels in the top part, so that a subtree below it fits in L1. 0: the whole tree does. */
static int split_of(const cmm_problem *problem)
{
    const int64_t row = (problem->d_in + (problem->wants_y ? problem->d_out : 0)) * cmm_element_size(problem->dtype);
    int below = problem->depth + 1;
    while (below > 1 && (((int64_t)1 << below) - 1) * row > SUBTREE_BYTES)
        below--;
    return problem->depth + 1 - below;
}

static int can_implement(const cmm_problem *problem)
{
    const int split = rows_fit(problem) && problem->trees == 1 ? split_of(problem) : 0;
    return split >= 1 && split <= MOST_SPLIT;
}

/* Measured on an H200: worth its second launch from some thousand tokens on, where most of the walk is not in L1
 * anyway; but with 16-bit weights that fit in L2, per_token is bound by instructions, and faster. */
static int is_preferred(const cmm_problem *problem)
{
    const int64_t weights = problem->nodes * (problem->d_in + problem->d_out) * cmm_element_size(problem->dtype);
    return problem->batch >= FROM && split_of(problem) >= 4 && (problem->dtype == CMM_F32 || weights > L2_BYTES);
}

/* Lay the buckets out in a workspace, which may be NULL; return their size. */
static int64_t lay_out(const cmm_cuda_problem *problem, char *memory, buckets *b)
{
    b->split = split_of(problem);
    b->capacity = (int)(problem->batch < CHUNK ? problem->batch : CHUNK);
    const int64_t counts = cmm_padded(((int64_t)4 * COUNTER) << b->split, CMM_CUDA_ALIGNMENT);
    const int64_t logits = cmm_padded((int64_t)4 * b->capacity * b->split, CMM_CUDA_ALIGNMENT);
    b->count = (int *)memory;
    b->logits = (float *)(memory + counts);
    b->tokens = (int *)(memory + counts + logits);
    return counts + logits + ((int64_t)4 * b->capacity << b->split);
}

static int64_t workspace(const cmm_cuda_problem *problem)
{
    buckets unused;
    return lay_out(problem, nullptr, &unused);
}

template <typename T, int V, bool FULL> struct grouped {
    static cudaError_t go(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
    {
        cmm_cuda_problem copy = *problem;
        buckets b;
        lay_out(problem, (char *)memory, &b);
        void *arguments[] = {&copy, &b};
        const void *const top = problem->path ? (const void *)fff_grouped_top<T, V, false, true>
                                              : (const void *)fff_grouped_top<T, V, FULL, false>;
        const void *const bottom = problem->path ? (const void *)fff_grouped_bottom<T, V, false, true>
                                                 : (const void *)fff_grouped_bottom<T, V, FULL, false>;
        cudaError_t error = cudaSuccess;
        for (b.first = 0; b.first < problem->batch && error == cudaSuccess; b.first += CHUNK) {
            b.size = (int)(problem->batch - b.first < CHUNK ? problem->batch - b.first : CHUNK);
            error = cudaMemsetAsync(b.count, 0, (size_t)(4 * COUNTER) << b.split, stream);
            if (error == cudaSuccess)
                error = launch_overlapping(problem, top,
                                           (b.size + TOP_WARPS - 1) / TOP_WARPS, 32 * TOP_WARPS, arguments, stream);
            if (error == cudaSuccess)
                error = launch_overlapping(problem, bottom, problem->sm_count,
                                           32 * BOTTOM_WARPS<V, ELEMENTS<T>>, arguments, stream);
        }
        return error;
    }
};

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    return for_rows<grouped>(problem, stream, memory);
}

extern const cmm_cuda_kernel cmm_cuda_fff_grouped = {
    cuda_traits(CMM_OP_FFF, "grouped", "cuda", "grouped", can_implement, is_preferred), workspace, run};
