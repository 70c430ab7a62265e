/* Few tokens: a block of 15 warps walks one token, three levels at a time: 7 warps read the 7 rows of a subtree of w_in,
 * 8 add up the visited rows of w_out.
 * Work:   7 dot products for 3 levels, where 3 are needed; 2 d_out flops per visited neuron.
 * Memory: 7 rows of w_in for 3 levels and the visited rows of w_out, from L2.
 * Sums:   see warp_row.cuh; y sums trees, then levels, in order. Its bits are those of per_token and grouped.
 * Limit:  the chain from one decision to the next, 0.9 us on an H200: a read from L2, a sum over a warp and a barrier for
 *         3 levels, instead of for each. */
#include "warp_row.cuh"

/* Measured on an H200: 3 levels at once are as fast as 4, which are 15 rows, and faster with many tokens at once. */
enum { AT_ONCE = 3, PLACES = 1 << AT_ONCE, ROW_WARPS = PLACES - 1, COLUMN_WARPS = 8 };
enum { THREADS = 32 * (ROW_WARPS + COLUMN_WARPS) };

/* What a warp that adds has from the round before: rows of w_out on their way, the activations of their levels. */
template <typename T> struct pending {
    typename four<T>::word rows[AT_ONCE];
    float activation; /* of level from + lane */
};

template <typename T> __device__ inline void add(float (&y)[4], const pending<T> &last, int from, int levels)
{
#pragma unroll
    for (int l = 0; l < AT_ONCE; l++) {
        const float c = __shfl_sync(0xffffffffu, last.activation, l);
        if (from + l < levels) {
            float w[4];
            unpack_four(last.rows[l], w, T());
#pragma unroll
            for (int i = 0; i < 4; i++)
                y[i] = fma_(c, w[i], y[i]);
        }
    }
}

/* Of a path that is given the turns from a level on, a bit for each node of the subtree, as the walk through it reads
 * them: all nodes of one of its levels turn alike. */
__device__ inline unsigned turns_of(unsigned way, int from, int levels)
{
    unsigned rights = 0;
#pragma unroll
    for (int l = 0; l < AT_ONCE; l++)
        if (from + l < levels)
            rights |= turn_of(way, from + l) * (((1u << (1 << l)) - 1) << ((1 << l) - 1));
    return rights;
}

/* GIVEN: a path is given. */
template <typename T, int V, bool FULL, bool GIVEN>
__global__ void __launch_bounds__(THREADS, 1) fff_small_batch(const cmm_cuda_problem problem)
{
    __shared__ float logits[2][PLACES]; /* two, so that one barrier per round is enough */
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, levels = problem.depth + 1;
    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    const T *const bias = (const T *)problem.bias;
    const float threshold = cmm_threshold_f32(problem.tie);
    /* A row warp's place in a subtree: so many levels below its root, the so-manieth of that level. */
    const bool adds = warp >= ROW_WARPS;
    const int below = 31 - __clz(warp + 1), along = warp + 1 - (1 << below);
    /* Each thread of the other warps has four columns of y; the first of these warps writes the path. */
    const int column = 4 * ((int)threadIdx.x - 32 * ROW_WARPS);
    const bool has_columns = adds && problem.wants_y && column < problem.d_out;
    const bool warp_has_columns = adds && problem.wants_y && column - 4 * lane < problem.d_out; /* other lanes read the first */
    const char *const columns = (const char *)((const T *)problem.w_out + (has_columns ? column : 0));
    const unsigned pitch = (unsigned)(problem.ld_out * (int64_t)sizeof(T));
    int turn = 0;
    if (pdl_wait_is_refused<GIVEN>(problem))
        return;
    for (int64_t token = blockIdx.x; token < problem.batch; token += gridDim.x) {
        float x[V * ELEMENTS<T>], y[4] = {0, 0, 0, 0};
        bool has_x = false;
        for (int64_t tree = 0; tree < problem.trees; tree++) {
            const unsigned first = (unsigned)(tree * problem.nodes);
            const unsigned way = GIVEN ? given_way(problem, token, tree) : 0;
            int node = 0;
            float my_logit = 0; /* of level `lane` */
            pending<T> last = {};
            for (int from = 0; from < levels; from += AT_ONCE) {
                if (!adds && from + below < levels) {
                    const unsigned row = first + (unsigned)cmm_descendant(node, below, along);
                    uint4 words[V];
                    load_row<V, FULL>(words, w_in, row, lane);
                    const float b = bias ? widen(bias[row]) : 0.0f;
                    if (!has_x)
                        load_x<T, V, FULL>(x, (const T *)problem.x + token * problem.d_in, w_in.vectors, lane);
                    has_x = true;
                    const float sum = dot<T, V>(words, x);
                    if (lane == 0)
                        logits[turn][warp] = bias ? sum + b : sum;
                }
                __syncthreads();
                /* Every warp looks at all logits of the subtree at once; the walk through it is then one of bits. */
                const float seen = logits[turn][lane % PLACES];
                const unsigned voted = __ballot_sync(0xffffffffu, seen > threshold);
                const unsigned rights = GIVEN ? turns_of(way, from, levels) : voted;
                if (warp_has_columns && from > 0)
                    add<T>(y, last, from - AT_ONCE, levels);
                float logit_here = 0; /* of level from + lane */
                int local = 0;
#pragma unroll
                for (int l = 0; l < AT_ONCE; l++) {
                    if (from + l < levels) {
                        if (adds) {
                            const float logit = __shfl_sync(0xffffffffu, seen, local);
                            my_logit = lane == from + l ? logit : my_logit;
                            logit_here = lane == l ? logit : logit_here;
                        }
                        if (warp_has_columns)
                            last.rows[l] = load_now((const typename four<T>::word *)(
                                columns + (uint64_t)(first + (unsigned)node) * pitch));
                        const int right = (int)(rights >> local & 1);
                        local = (int)cmm_left_child(local) + right;
                        node = (int)cmm_left_child(node) + right;
                    }
                }
                if (warp_has_columns)
                    last.activation = activate(problem.activation, logit_here);
                turn ^= 1;
            }
            if (warp_has_columns)
                add<T>(y, last, (levels - 1) / AT_ONCE * AT_ONCE, levels);
            if (warp == ROW_WARPS) {
                visited path;
                path_from_leaf(path, node, levels, lane);
                const int64_t step = (token * problem.trees + tree) * levels + lane;
                if (problem.nodes_out && lane < levels)
                    problem.nodes_out[step] = path.node;
                if (problem.logits_out && lane < levels)
                    ((float *)problem.logits_out)[step] = my_logit;
            }
        }
        if (has_columns)
            *(typename four<T>::word *)((T *)problem.y + token * problem.d_out + column) = pack_four(y, T());
    }
}

template <typename T, int V, bool FULL> struct small_batch {
    static cudaError_t go(const cmm_cuda_problem *problem, cudaStream_t stream)
    {
        cmm_cuda_problem copy = *problem;
        void *arguments[] = {&copy};
        const void *const kernel = problem->path ? (const void *)fff_small_batch<T, V, false, true>
                                                 : (const void *)fff_small_batch<T, V, FULL, false>;
        return launch_overlapping(problem, kernel, blocks_for(problem->batch), THREADS, arguments, stream);
    }
};

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *)
{
    return for_rows<small_batch>(problem, stream);
}

/* Measured on an H200: up to one token for each processor. Shallow trees leave most warps idle. */
static int is_preferred(const cmm_problem *problem)
{
    return problem->batch <= cuda_problem(problem)->sm_count && problem->depth >= 2;
}

extern const cmm_cuda_kernel cmm_cuda_fff_small_batch = {
    cuda_traits(CMM_OP_FFF, "small_batch", "cuda", "small_batch", rows_fit, is_preferred), nullptr, run};
