/* Few tokens: a block of 15 warps walks one token, three levels at a time: 7 warps read the 7 rows of a subtree of w_in and
 * go on; 8 add up the visited rows of w_out, behind them.
 * Work:   7 dot products for 3 levels, where 3 are needed; 2 d_out flops per visited neuron.
 * Memory: 7 rows of w_in for 3 levels and the visited rows of w_out, from L2.
 * Sums:   see warp_row.cuh; y sums trees, then levels, in order. Its bits are those of per_token and grouped.
 * Limit:  the chain from one decision to the next: a read from L2, a sum over a warp and a barrier for 3 levels, instead of
 *         for each. */
#include "warp_row.cuh"

/* Measured on an H200: 3 levels at once are as fast as 4, which are 15 rows, and faster with many tokens at once. */
enum { AT_ONCE = 3, PLACES = 1 << AT_ONCE, ROW_WARPS = PLACES - 1, COLUMN_WARPS = 8 };
enum { THREADS = 32 * (ROW_WARPS + COLUMN_WARPS), ROW_THREADS = 32 * ROW_WARPS };
enum { ROUNDS = (CMM_MAX_DEPTH + AT_ONCE - 1) / AT_ONCE };

/* Barriers, by number: of the warps with rows; of each round of a tree, at which these only say that they have told their
 * logits, and go on; and of a tree, at which those that add say that they have seen all, so that the next tree may write. */
enum { AMONG_ROWS = 1, SEEN = 2, OF_ROUND = 3 };
static_assert(OF_ROUND + ROUNDS <= 16, "a block has 16 barriers");

/* The logits of two trees, which take turns. */
typedef float told[2][ROUNDS][PLACES];

enum { HELD = 4 }; /* rounds whose rows of w_out are on their way at the same time */

__device__ inline void wait_at(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ inline void arrive_at(int barrier, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
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

/* A subtree's logits have been told: of these threads, which see all of them at once, one in each lane, the turns, a bit for
 * each node. GIVEN: a path is given, and says so instead. */
template <bool GIVEN>
__device__ inline unsigned turns(float seen, float threshold, unsigned way, int from, int levels)
{
    const unsigned voted = __ballot_sync(0xffffffffu, seen > threshold);
    return GIVEN ? turns_of(way, from, levels) : voted;
}

/* A warp with a row of each subtree: find the path through all trees. */
template <typename T, int V, bool FULL, bool GIVEN>
__device__ inline void find_path(const cmm_cuda_problem &problem, told &logits, int warp, int lane)
{
    const int levels = problem.depth + 1;
    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    const T *const bias = (const T *)problem.bias;
    const float threshold = cmm_threshold_f32(problem.tie);
    /* Its place in a subtree: so many levels below its root, the so-manieth of that level. */
    const int below = 31 - __clz(warp + 1), along = warp + 1 - (1 << below);
    int turn = 0;
    for (int64_t token = blockIdx.x; token < problem.batch; token += gridDim.x) {
        float x[V * ELEMENTS<T>];
        bool has_x = false;
        for (int64_t tree = 0; tree < problem.trees; tree++, turn ^= 1) {
            const unsigned first = (unsigned)(tree * problem.nodes);
            const unsigned way = GIVEN ? given_way(problem, token, tree) : 0;
            int node = 0;
            if (tree > 0 || token > blockIdx.x)
                wait_at(SEEN, THREADS);
            for (int from = 0, round = 0; from < levels; from += AT_ONCE, round++) {
                if (from + below < levels) {
                    const unsigned row = first + (unsigned)cmm_descendant(node, below, along);
                    uint4 words[V];
                    load_row<V, FULL>(words, w_in, row, lane);
                    const float b = bias ? widen(bias[row]) : 0.0f;
                    if (!has_x)
                        load_x<T, V, FULL>(x, (const T *)problem.x + token * problem.d_in, w_in.vectors, lane);
                    has_x = true;
                    const float sum = dot<T, V>(words, x);
                    if (lane == 0)
                        logits[turn][round][warp] = bias ? sum + b : sum;
                }
                arrive_at(OF_ROUND + round, THREADS);
                if (from + AT_ONCE < levels) {
                    wait_at(AMONG_ROWS, ROW_THREADS);
                    const float seen = logits[turn][round][lane % PLACES];
                    const unsigned rights = turns<GIVEN>(seen, threshold, way, from, levels);
                    int local = 0;
#pragma unroll
                    for (int l = 0; l < AT_ONCE; l++)
                        local = (int)cmm_left_child(local) + (int)(rights >> local & 1);
                    node = (int)cmm_descendant(node, AT_ONCE, local - ROW_WARPS);
                }
            }
        }
    }
}

/* A warp with columns of y, four in each thread: add up the visited rows of w_out. The first such warp writes the path. */
template <typename T, bool GIVEN>
__device__ inline void add_up(const cmm_cuda_problem &problem, const told &logits, int warp, int lane)
{
    const int levels = problem.depth + 1, column = 4 * (32 * warp + lane);
    const float threshold = cmm_threshold_f32(problem.tie);
    const bool has_columns = problem.wants_y && column < problem.d_out;
    const bool warp_has_columns = problem.wants_y && column - 4 * lane < problem.d_out; /* other lanes read the first */
    const char *const columns = (const char *)((const T *)problem.w_out + (has_columns ? column : 0));
    const unsigned pitch = (unsigned)(problem.ld_out * (int64_t)sizeof(T));
    int turn = 0;
    for (int64_t token = blockIdx.x; token < problem.batch; token += gridDim.x) {
        float y[4] = {0, 0, 0, 0};
        for (int64_t tree = 0; tree < problem.trees; tree++, turn ^= 1) {
            const unsigned first = (unsigned)(tree * problem.nodes);
            const unsigned way = GIVEN ? given_way(problem, token, tree) : 0;
            const bool is_last = tree + 1 == problem.trees && token + gridDim.x >= problem.batch;
            int node = 0;
            float my_logit = 0; /* of level `lane` */
            for (int from = 0; from < levels; from += HELD * AT_ONCE) {
                typename four<T>::word rows[HELD][AT_ONCE];
#pragma unroll
                for (int held = 0; held < HELD; held++) {
                    const int start = from + held * AT_ONCE;
                    if (start >= levels)
                        break;
                    const int round = start / AT_ONCE;
                    wait_at(OF_ROUND + round, THREADS);
                    const float seen = logits[turn][round][lane % PLACES];
                    const unsigned rights = turns<GIVEN>(seen, threshold, way, start, levels);
                    if (start + AT_ONCE >= levels && !is_last)
                        arrive_at(SEEN, THREADS);
                    int local = 0;
#pragma unroll
                    for (int l = 0; l < AT_ONCE; l++) {
                        if (start + l < levels) {
                            const float logit = __shfl_sync(0xffffffffu, seen, local);
                            my_logit = lane == start + l ? logit : my_logit;
                            if (warp_has_columns)
                                rows[held][l] = load_now((const typename four<T>::word *)(
                                    columns + (uint64_t)(first + (unsigned)node) * pitch));
                            const int right = (int)(rights >> local & 1);
                            local = (int)cmm_left_child(local) + right;
                            node = (int)cmm_left_child(node) + right;
                        }
                    }
                }
                if (!warp_has_columns)
                    continue;
                const float a = activate(problem.activation, my_logit);
#pragma unroll
                for (int i = 0; i < HELD * AT_ONCE; i++) {
                    if (from + i >= levels)
                        break;
                    const float c = __shfl_sync(0xffffffffu, a, from + i);
                    float w[4];
                    unpack_four(rows[i / AT_ONCE][i % AT_ONCE], w, T());
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        y[e] = fma_(c, w[e], y[e]);
                }
            }
            if (warp == 0) {
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

/* GIVEN: a path is given. */
template <typename T, int V, bool FULL, bool GIVEN>
__global__ void __launch_bounds__(THREADS, 1) fff_small_batch(const cmm_cuda_problem problem)
{
    __shared__ told logits;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (pdl_wait_is_refused<GIVEN>(problem))
        return;
    if (warp < ROW_WARPS)
        find_path<T, V, FULL, GIVEN>(problem, logits, warp, lane);
    else
        add_up<T, GIVEN>(problem, logits, warp - ROW_WARPS, lane);
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
