/* Few tokens: a block of 16 warps walks one token, four levels at a time: 15 warps read the 15 rows of a subtree.
 * Work:   15 dot products for 4 levels, where 4 are needed; 2 d_out flops per visited neuron.
 * Memory: 15 rows of w_in for 4 levels and the visited rows of w_out, from L2.
 * Sums:   see rows.cuh; y sums trees, then levels, in order. Its bits are those of walk and group.
 * Limit:  latency: one read from L2, a sum over a warp and a barrier for 4 levels, instead of for each. */
#include "rows.cuh"

enum { WARPS = 16, AT_ONCE = 4, SUBTREE = (1 << AT_ONCE) - 1, MOST_LEVELS = 32 };

/* Four neighbouring elements, as one word: structs of 16-bit types would be read one by one. */
template <typename T> struct four {
    using word = uint2;
};
template <> struct four<float> {
    using word = uint4;
};

__device__ inline void unpack_four(uint4 v, float *values, float)
{
    unpack(v, values, float());
}

template <typename T> __device__ inline void unpack_four(uint2 v, float *values, T)
{
    float eight[8];
    unpack(make_uint4(v.x, v.y, 0, 0), eight, T());
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] = eight[i];
}

__device__ inline uint4 pack_four(const float *values, float)
{
    return pack(values, float());
}

template <typename T> __device__ inline uint2 pack_four(const float *values, T)
{
    const float eight[8] = {values[0], values[1], values[2], values[3], 0, 0, 0, 0};
    const uint4 words = pack(eight, T());
    return make_uint2(words.x, words.y);
}

/* Add the rows of w_out of the levels from .. from + 3 to y; rows: of AT_ONCE levels, activations: of all. */
template <typename T>
__device__ inline void add_rows(float (&y)[4], const typename four<T>::word (&rows)[AT_ONCE], const float *activations,
                                int from, int levels)
{
#pragma unroll
    for (int l = 0; l < AT_ONCE; l++) {
        if (from + l < levels) {
            float w[4];
            unpack_four(rows[l], w, T());
#pragma unroll
            for (int c = 0; c < 4; c++)
                y[c] = fma_(activations[from + l], w[c], y[c]);
        }
    }
}

template <typename T, int V, bool FULL> __global__ void __launch_bounds__(32 * WARPS, 1) fff_wide(const cmm_cuda_task task)
{
    __shared__ float logits[2][WARPS]; /* two, so that one barrier per round is enough */
    __shared__ float activations[MOST_LEVELS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, levels = task.depth + 1;
    const matrix w_in = matrix_of<T>(task.w_in, task.d_in, task.ld_in, lane);
    const T *const bias = (const T *)task.bias;
    const float threshold = threshold_of(task.tie);
    /* This warp's place in a subtree: so many levels below its root, the so-manieth of that level. The last warp has
     * no place; it keeps the logits, activates them and writes the path. */
    const int below = 31 - __clz(warp + 1), place = warp + 1 - (1 << below);
    const bool keeper = warp == SUBTREE;
    const bool has_columns = task.wants_y && 4 * threadIdx.x < task.d_out;
    const char *const columns = (const char *)((const typename four<T>::word *)task.w_out + threadIdx.x);
    const unsigned pitch = (unsigned)(task.ld_out * (int64_t)sizeof(T));
    int turn = 0;
    for (int64_t token = blockIdx.x; token < task.batch; token += gridDim.x) {
        float x[V * ELEMENTS<T>], y[4] = {0, 0, 0, 0};
        bool has_x = false;
        for (int64_t tree = 0; tree < task.trees; tree++) {
            const unsigned first = (unsigned)(tree * task.nodes);
            typename four<T>::word rows[AT_ONCE]; /* of w_out, of the round before */
            int node = 0;
            float my_logit = 0; /* of level `lane`, in the keeper */
            for (int from = 0; from < levels; from += AT_ONCE) {
                if (!keeper && from + below < levels) {
                    const unsigned row = first + (unsigned)(((node + 1) << below) - 1 + place);
                    uint4 words[V];
                    load_row<V, FULL>(words, w_in, row, lane);
                    const float b = bias ? widen(bias[row]) : 0.0f;
                    if (!has_x)
                        load_x<T, V, FULL>(x, (const T *)task.x + token * task.d_in, w_in.vectors, lane);
                    has_x = true;
                    const float sum = dot<T, V>(words, x);
                    if (lane == 0)
                        logits[turn][warp] = bias ? sum + b : sum;
                }
                if (keeper && task.wants_y && lane >= from - AT_ONCE && lane < from)
                    activations[lane] = activate(task.activation, my_logit);
                __syncthreads();
                if (has_columns && from > 0)
                    add_rows<T>(y, rows, activations, from - AT_ONCE, levels);
                /* Every warp looks at all logits of the subtree at once; the walk through it is then one of bits. */
                const float seen = logits[turn][lane % WARPS];
                const unsigned rights = __ballot_sync(0xffffffffu, seen > threshold);
                int local = 0;
#pragma unroll
                for (int l = 0; l < AT_ONCE; l++) {
                    if (from + l < levels) {
                        if (keeper) {
                            const float logit = __shfl_sync(0xffffffffu, seen, local);
                            my_logit = lane == from + l ? logit : my_logit;
                        }
                        if (has_columns)
                            rows[l] = __ldg((const typename four<T>::word *)(columns + (uint64_t)(first + (unsigned)node) * pitch));
                        const int right = (int)(rights >> local & 1);
                        local = 2 * local + 1 + right;
                        node = 2 * node + 1 + right;
                    }
                }
                turn ^= 1;
            }
            if (keeper) {
                visited path;
                look_back(path, (node - 1) / 2, levels, lane);
                if (task.wants_y && lane >= (levels - 1) / AT_ONCE * AT_ONCE)
                    activations[lane] = activate(task.activation, my_logit);
                const int64_t step = (token * task.trees + tree) * levels + lane;
                if (task.nodes_out && lane < levels)
                    task.nodes_out[step] = path.node;
                if (task.logits_out && lane < levels)
                    ((float *)task.logits_out)[step] = my_logit;
            }
            __syncthreads();
            if (has_columns)
                add_rows<T>(y, rows, activations, (levels - 1) / AT_ONCE * AT_ONCE, levels);
        }
        if (has_columns)
            ((typename four<T>::word *)((T *)task.y + token * task.d_out))[threadIdx.x] = pack_four(y, T());
    }
}

template <typename T, int V, bool FULL> struct wide {
    static cudaError_t go(const cmm_cuda_task *task, cudaStream_t stream)
    {
        cmm_cuda_task copy = *task;
        void *arguments[] = {&copy};
        return cudaLaunchKernel((const void *)fff_wide<T, V, FULL>, blocks_for(task->batch), 32 * WARPS, arguments, 0,
                                stream);
    }
};

static cudaError_t run(const cmm_cuda_task *task, cudaStream_t stream, void *)
{
    return for_rows<wide>(task, stream);
}

/* Measured on an H200: up to one token for each processor. Shallow trees leave most warps idle. */
static int suits(const cmm_cuda_task *task)
{
    return task->batch <= task->processors && task->depth >= 2;
}

extern const cmm_cuda_kernel cmm_cuda_fff_wide = {"fff", "wide", "cuda", "wide", rows_fit, suits, nullptr, run};
