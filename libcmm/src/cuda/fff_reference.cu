/* The definition of the layer on a GPU, to be read: one thread walks one token.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: every thread reads rows of its own, 32 rows at a time in a warp: nothing is coalesced.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums trees, then levels, in order.
 * Limit:  the latency of those reads; a warp to a token (fff_per_token.cu) makes them whole cache lines. */
#include "params.cuh"

/* sums: [batch][d_out] of A, where y is summed up; y itself where that has the type. */
template <typename T> __global__ void fff_naive(const cmm_cuda_problem problem, typename accumulator<T>::type *sums)
{
    using A = typename accumulator<T>::type;
    const T *__restrict__ const w_in = (const T *)problem.w_in;
    const T *__restrict__ const w_out = (const T *)problem.w_out;
    const T *__restrict__ const bias = (const T *)problem.bias;
    const int64_t levels = problem.depth + 1;
    if (is_refused(problem))
        return;
    const int64_t first = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, stride = gridDim.x * (int64_t)blockDim.x;
    for (int64_t token = first; token < problem.batch; token += stride) {
        const T *__restrict__ const x = (const T *)problem.x + token * problem.d_in;
        A *__restrict__ const y = sums + token * problem.d_out;
        for (int64_t o = 0; problem.wants_y && o < problem.d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < problem.trees; tree++) {
            int64_t node = 0;
            for (int64_t level = 0; level < levels; level++) {
                const int64_t row = tree * problem.nodes + node;
                A logit = 0;
                for (int64_t i = 0; i < problem.d_in; i++)
                    logit = fma_(widen(w_in[row * problem.ld_in + i]), widen(x[i]), logit);
                if (bias)
                    logit += widen(bias[row]);
                const int64_t step = (token * problem.trees + tree) * levels + level;
                if (problem.nodes_out)
                    problem.nodes_out[step] = (int32_t)node;
                if (problem.logits_out)
                    ((A *)problem.logits_out)[step] = logit;
                if (problem.wants_y) {
                    const A a = activate(problem.activation, logit);
                    for (int64_t o = 0; o < problem.d_out; o++)
                        y[o] = fma_(a, widen(w_out[row * problem.ld_out + o]), y[o]);
                }
                node = cmm_left_child(node) + CMM_TURNS_RIGHT(&problem, token, tree, (int32_t)level, logit);
            }
        }
        for (int64_t o = 0; problem.wants_y && (void *)sums != problem.y && o < problem.d_out; o++)
            ((T *)problem.y)[token * problem.d_out + o] = narrow<T>(y[o]);
    }
}

static int64_t workspace(const cmm_cuda_problem *problem)
{
    return problem->wants_y && cmm_element_size(problem->dtype) < 4 ? problem->batch * problem->d_out * 4 : 0;
}

template <typename T> static cudaError_t launch(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    using A = typename accumulator<T>::type;
    cmm_cuda_problem copy = *problem;
    A *sums = (A *)(sizeof(T) == sizeof(A) ? problem->y : memory);
    void *arguments[] = {&copy, &sums};
    return cudaLaunchKernel((const void *)fff_naive<T>, blocks_for((problem->batch + 63) / 64), 64, arguments, 0,
                            stream);
}

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    return CMM_CUDA_FOR_DTYPE(problem->dtype, launch, problem, stream, memory);
}

extern const cmm_cuda_kernel cmm_cuda_fff_naive = {
    cuda_traits(CMM_OP_FFF, "naive", "cuda-naive", "", nullptr, nullptr), workspace, run};
