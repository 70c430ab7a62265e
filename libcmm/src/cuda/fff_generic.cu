/* Any layer at all: a block of 32 or 256 threads walks one token, element by element.
 * Work:   2 (d_in + d_out) flops per visited neuron, and the dot products again for every further 256 or 4096.
 * Memory: rows of w_in and w_out, coalesced, 2 to 8 bytes a thread; x from the L1 cache once per level.
 * Sums:   thread j takes i = j, j + threads, ..., turn about into two sums; both, then over a warp by halving, then
 *         the warps in order, then the bias. y sums trees, then levels, in order.
 * Limit:  one dependent read per level. Aligned rows of up to 1024 have fff_per_token.cu. */
#include "params.cuh"

template <typename T, int THREADS, int COLUMNS>
__global__ void __launch_bounds__(THREADS) fff_generic(const cmm_cuda_problem problem)
{
    using A = typename accumulator<T>::type;
    constexpr int WARPS = THREADS / 32;
    __shared__ A partial[2][WARPS]; /* two, so that one barrier per level is enough */
    const T *const w_in = (const T *)problem.w_in, *const bias = (const T *)problem.bias,
        *const w_out = (const T *)problem.w_out;
    const int64_t levels = problem.depth + 1;
    const int64_t tiles = problem.wants_y ? (problem.d_out + THREADS * COLUMNS - 1) / (THREADS * COLUMNS) : 1;
    if (is_refused(problem))
        return;
    int turn = 0;
    for (int64_t token = blockIdx.x; token < problem.batch; token += gridDim.x) {
        for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
            const T *const x = (const T *)problem.x + token * problem.d_in;
            const int64_t column = tile * THREADS * COLUMNS + threadIdx.x;
            A y[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                y[c] = 0;
            for (int64_t tree = 0; tree < problem.trees; tree++) {
                int64_t node = 0;
                for (int64_t level = 0; level < levels; level++) {
                    const int64_t row = tree * problem.nodes + node;
                    const T *const w = w_in + row * problem.ld_in;
                    A even = 0, odd = 0;
                    for (int64_t i = threadIdx.x; i < problem.d_in; i += 2 * THREADS) {
                        even = fma_(widen(w[i]), widen(x[i]), even);
                        if (i + THREADS < problem.d_in)
                            odd = fma_(widen(w[i + THREADS]), widen(x[i + THREADS]), odd);
                    }
                    A logit = warp_sum(even + odd);
                    if (WARPS > 1) {
                        turn ^= 1;
                        if (threadIdx.x % 32 == 0)
                            partial[turn][threadIdx.x / 32] = logit;
                        __syncthreads();
                        logit = partial[turn][0];
                        for (int warp = 1; warp < WARPS; warp++)
                            logit += partial[turn][warp];
                    }
                    if (bias)
                        logit += widen(bias[row]);
                    if (threadIdx.x == 0 && tile == 0) {
                        const int64_t step = (token * problem.trees + tree) * levels + level;
                        if (problem.nodes_out)
                            problem.nodes_out[step] = (int32_t)node;
                        if (problem.logits_out)
                            ((A *)problem.logits_out)[step] = logit;
                    }
                    if (problem.wants_y) {
                        const A a = activate(problem.activation, logit);
                        const T *const v = w_out + row * problem.ld_out;
#pragma unroll
                        for (int c = 0; c < COLUMNS; c++)
                            if (column + c * THREADS < problem.d_out)
                                y[c] = fma_(a, widen(v[column + c * THREADS]), y[c]);
                    }
                    node = cmm_left_child(node) + CMM_TURNS_RIGHT(&problem, token, tree, (int32_t)level, logit);
                }
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                if (problem.wants_y && column + c * THREADS < problem.d_out)
                    ((T *)problem.y)[token * problem.d_out + column + c * THREADS] = narrow<T>(y[c]);
        }
    }
}

template <typename T, int THREADS, int COLUMNS> static cudaError_t launch_as(const cmm_cuda_problem *problem,
                                                                             cudaStream_t stream)
{
    cmm_cuda_problem copy = *problem;
    void *arguments[] = {&copy};
    const int64_t tiles = problem->wants_y ? (problem->d_out + THREADS * COLUMNS - 1) / (THREADS * COLUMNS) : 1;
    const dim3 grid(blocks_for(problem->batch), (unsigned)(tiles < 65535 ? tiles : 65535));
    return cudaLaunchKernel((const void *)fff_generic<T, THREADS, COLUMNS>, grid, THREADS, arguments, 0, stream);
}

/* d_in alone decides, so that a token's logits depend neither on the batch nor on the outputs. */
template <typename T> static cudaError_t launch(const cmm_cuda_problem *problem, cudaStream_t stream)
{
    return problem->d_in <= 512 ? launch_as<T, 32, 8>(problem, stream) : launch_as<T, 256, 16>(problem, stream);
}

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *)
{
    return CMM_CUDA_FOR_DTYPE(problem->dtype, launch, problem, stream);
}

extern const cmm_cuda_kernel cmm_cuda_fff_generic = {
    cuda_traits(CMM_OP_FFF, "generic", "cuda", "generic", nullptr, nullptr), nullptr, run};
