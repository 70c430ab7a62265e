/* One warp walks one token, its x in registers; rows come in whole cache lines.
 * Work:   2 (d_in + d_out) flops per visited neuron, and a conversion of every bf16 or f16 weight.
 * Memory: x and y once; the rows of a path from L2, those of the top levels from L1.
 * Sums:   see warp_row.cuh; y sums trees, then levels, in order. Its bits are those of small_batch and grouped.
 * Limit:  with many tokens the bandwidth of L2 (fff_grouped.cu lowers its share), with few the latency of one read per
 *         level (fff_small_batch.cu). The outputs are summed after the walk, so that their reads do not wait for each
 *         other and 32 lanes compute 32 activations at once. */
#include "warp_row.cuh"

enum { WARPS = 8 };

/* Measured on an H200 at 768 wide: blocks on a processor at least, and vectors of w_out that a lane has on their way. */
template <typename T> constexpr int BLOCKS = sizeof(T) == 2 ? 4 : 3;
template <typename T> constexpr int VECTORS_IN_FLIGHT = sizeof(T) == 2 ? 3 : 6;

/* ONE: the problem has one tree, so that x and y need not be held at the same time. */
template <typename T, int V, bool FULL, bool ONE>
__global__ void __launch_bounds__(32 * WARPS, ONE ? BLOCKS<T> : 1) fff_per_token(const cmm_cuda_problem problem)
{
    const int lane = threadIdx.x % 32, levels = problem.depth + 1;
    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    const matrix w_out = matrix_of<T>(problem.w_out, problem.d_out, problem.ld_out, lane);
    const float threshold = cmm_threshold_f32(problem.tie);
    const int64_t trees = ONE ? 1 : problem.trees;
    if (pdl_wait_is_refused(problem))
        return;
    for (int64_t token = blockIdx.x * (int64_t)WARPS + threadIdx.x / 32; token < problem.batch;
         token += gridDim.x * (int64_t)WARPS) {
        float x[V * ELEMENTS<T>], y[V * ELEMENTS<T>];
        load_x<T, V, FULL>(x, (const T *)problem.x + token * problem.d_in, w_in.vectors, lane);
        visited seen = {0, 0, 0, 0};
        int64_t step = token * trees * levels;
        clear(y);
        for (int64_t tree = 0; tree < trees; tree++) {
            int node = 0;
            descend<T, V, FULL, ONE>(w_in, (const T *)problem.bias, threshold, x, lane,
                                     given_way(problem, token, tree), (unsigned)(tree * problem.nodes), 0, levels,
                                     node, seen);
            if (ONE)
                path_from_leaf(seen, node, levels, lane);
            if (ONE || seen.count + levels > 32 || tree + 1 == trees) {
                const int count = seen.count;
                epilogue<T, V, FULL, VECTORS_IN_FLIGHT<T> / V>(problem, w_out, y, lane, step, seen);
                step += count;
            }
        }
        if (problem.wants_y)
            store_y<T, V, FULL>((T *)problem.y + token * problem.d_out, y, w_out.vectors, lane);
    }
}

template <typename T, int V, bool FULL> struct per_token {
    static cudaError_t go(const cmm_cuda_problem *problem, cudaStream_t stream)
    {
        cmm_cuda_problem copy = *problem;
        void *arguments[] = {&copy};
        const void *const kernel = problem->trees == 1 ? (const void *)fff_per_token<T, V, FULL, true>
                                                    : (const void *)fff_per_token<T, V, FULL, false>;
        const int blocks = blocks_for((problem->batch + WARPS - 1) / WARPS);
        return launch_overlapping(problem, kernel, blocks, 32 * WARPS, arguments, stream);
    }
};

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *)
{
    return for_rows<per_token>(problem, stream);
}

extern const cmm_cuda_kernel cmm_cuda_fff_per_token = {
    cuda_traits(CMM_OP_FFF, "per_token", "cuda", "per_token", rows_fit, nullptr), nullptr, run};
