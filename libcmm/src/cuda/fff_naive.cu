/* The definition of the layer on a GPU, to be read: one thread walks one token.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: every thread reads rows of its own, 32 rows at a time in a warp: nothing is coalesced.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums trees, then levels, in order.
 * Limit:  the latency of those reads; a warp to a token (fff_per_token.cu) makes them whole cache lines. */
#include "kernel.cuh"

/* sums: [batch][d_out] of A, where y is summed up; y itself where that has the type. */
template <typename T> __global__ void fff_naive(const cmm_cuda_task task, typename accumulator<T>::type *sums)
{
    using A = typename accumulator<T>::type;
    const T *__restrict__ const w_in = (const T *)task.w_in;
    const T *__restrict__ const w_out = (const T *)task.w_out;
    const T *__restrict__ const bias = (const T *)task.bias;
    const int64_t levels = task.depth + 1;
    const int64_t first = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, stride = gridDim.x * (int64_t)blockDim.x;
    for (int64_t token = first; token < task.batch; token += stride) {
        const T *__restrict__ const x = (const T *)task.x + token * task.d_in;
        A *__restrict__ const y = sums + token * task.d_out;
        for (int64_t o = 0; task.wants_y && o < task.d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < task.trees; tree++) {
            int64_t node = 0;
            for (int64_t level = 0; level < levels; level++) {
                const int64_t row = tree * task.nodes + node;
                A logit = 0;
                for (int64_t i = 0; i < task.d_in; i++)
                    logit = fma_(widen(w_in[row * task.ld_in + i]), widen(x[i]), logit);
                if (bias)
                    logit += widen(bias[row]);
                const int64_t step = (token * task.trees + tree) * levels + level;
                if (task.nodes_out)
                    task.nodes_out[step] = (int32_t)node;
                if (task.logits_out)
                    ((A *)task.logits_out)[step] = logit;
                if (task.wants_y) {
                    const A a = activate(task.activation, logit);
                    for (int64_t o = 0; o < task.d_out; o++)
                        y[o] = fma_(a, widen(w_out[row * task.ld_out + o]), y[o]);
                }
                node = child(node, logit, task.tie);
            }
        }
        for (int64_t o = 0; task.wants_y && (void *)sums != task.y && o < task.d_out; o++)
            ((T *)task.y)[token * task.d_out + o] = narrow<T>(y[o]);
    }
}

static int64_t workspace(const cmm_cuda_task *task)
{
    return task->wants_y && cmm_element_size(task->dtype) < 4 ? task->batch * task->d_out * 4 : 0;
}

template <typename T> static cudaError_t launch(const cmm_cuda_task *task, cudaStream_t stream, void *memory)
{
    using A = typename accumulator<T>::type;
    cmm_cuda_task copy = *task;
    A *sums = (A *)(sizeof(T) == sizeof(A) ? task->y : memory);
    void *arguments[] = {&copy, &sums};
    return cudaLaunchKernel((const void *)fff_naive<T>, blocks_for((task->batch + 63) / 64), 64, arguments, 0, stream);
}

static cudaError_t run(const cmm_cuda_task *task, cudaStream_t stream, void *memory)
{
    return CMM_CUDA_FOR_DTYPE(task->dtype, launch, task, stream, memory);
}

extern const cmm_cuda_kernel cmm_cuda_fff_naive = {
    cuda_traits(CMM_OP_FFF, "naive", "cuda-naive", "", nullptr, nullptr), workspace, run};
