/* Rows of up to 32 V vectors of 16 bytes, held by a warp: lane j has vectors j, j + 32, ... in registers.
 *
 * The kernels that include this file (per_token, small_batch, grouped) form the same sums in the same order, so that a
 * token's bits depend neither on the batch nor on the algorithm: a lane adds its products in two sums, elements
 * 0, 2, 4, ... and 1, 3, 5, ... of its vectors in order; both are added, then the lanes by halving, then the bias. */
#ifndef CMM_CUDA_WARP_ROW_CUH
#define CMM_CUDA_WARP_ROW_CUH

#include "params.cuh"

template <int N> struct constant {
    static constexpr int value = N;
};

template <typename T> constexpr int ELEMENTS = 16 / (int)sizeof(T);

__device__ inline void unpack(uint4 v, float *values, float)
{
    values[0] = __uint_as_float(v.x);
    values[1] = __uint_as_float(v.y);
    values[2] = __uint_as_float(v.z);
    values[3] = __uint_as_float(v.w);
}

__device__ inline void unpack(uint4 v, float *values, __nv_bfloat16)
{
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ inline void unpack(uint4 v, float *values, __half)
{
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*(const __half2 *)&words[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
    }
}

__device__ inline uint4 pack(const float *values, float)
{
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                      __float_as_uint(values[3]));
}

template <typename T> __device__ inline uint4 pack(const float *values, T)
{
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const T low = narrow<T>(values[2 * i]), high = narrow<T>(values[2 * i + 1]);
        words[i] = (unsigned)*(const unsigned short *)&low | (unsigned)*(const unsigned short *)&high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

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

/* Wait until the kernels before are done, and let the next one get ready: before any memory is touched. What is read
 * after it may have been written while this kernel was there already: so no load may take memory to be constant, as
 * __ldg() does. */
__device__ inline void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* The same, and whether a path that was given is none. A kernel returns then, before it writes anything; see check_path() in
 * api.cu. Which parameters it takes is asked before the wait: the first look at some may take as long as a read from L2. */
__device__ inline bool pdl_wait_is_refused(const cmm_cuda_problem &problem)
{
    const int64_t *const refused = problem.refused;
    asm volatile("" ::"l"(refused), "l"(problem.path));
    pdl_wait();
    return refused && *refused >= 0;
}

/* The same in a kernel that has an instance for calls with a path, GIVEN, and one without any trace of it for the others. */
template <bool GIVEN> __device__ inline bool pdl_wait_is_refused(const cmm_cuda_problem &problem)
{
    if (GIVEN)
        return pdl_wait_is_refused(problem);
    pdl_wait();
    return false;
}

/* Read what is read once, x: it should not push rows out of the L1 cache. */
__device__ inline uint4 load_once(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

/* Reads that stay where they stand: left to itself the compiler moves a read down to its use, past what should hide
 * its latency. */
__device__ inline uint2 load_now(const uint2 *from)
{
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
    return v;
}

__device__ inline uint4 load_now(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

/* A matrix whose rows a warp reads: where its lane's first vector of row 0 is, bytes from row to row, vectors in a row. */
struct matrix {
    const char *start;
    unsigned pitch;
    int vectors;
};

template <typename T> __device__ inline matrix matrix_of(const void *start, int64_t width, int64_t ld, int lane)
{
    return {(const char *)start + lane * 16, (unsigned)(ld * (int64_t)sizeof(T)), (int)(width / ELEMENTS<T>)};
}

/* FULL: a row has exactly 32 V vectors, so that no lane is without. */
template <int V, bool FULL, typename LOAD>
__device__ inline void load_vectors(uint4 (&words)[V], const char *lane_start, int vectors, int lane, LOAD load)
{
#pragma unroll
    for (int v = 0; v < V; v++)
        words[v] = FULL || v * 32 + lane < vectors ? load((const uint4 *)lane_start + v * 32) : make_uint4(0, 0, 0, 0);
}

/* A lane's share of x, as floats. */
template <typename T, int V, bool FULL>
__device__ inline void load_x(float (&x)[V * ELEMENTS<T>], const T *row, int vectors, int lane)
{
    uint4 words[V];
    load_vectors<V, FULL>(words, (const char *)row + lane * 16, vectors, lane,
                          [](const uint4 *from) { return load_once(from); });
#pragma unroll
    for (int v = 0; v < V; v++)
        unpack(words[v], x + v * ELEMENTS<T>, T());
}

template <int V, bool FULL>
__device__ inline void load_row(uint4 (&words)[V], const matrix &m, unsigned row, int lane)
{
    load_vectors<V, FULL>(words, m.start + (uint64_t)row * m.pitch, m.vectors, lane,
                          [](const uint4 *from) { return *from; });
}

/* A lane's part of the dot product of a row with x. */
template <typename T, int V>
__device__ inline float dot_in_lane(const uint4 (&words)[V], const float (&x)[V * ELEMENTS<T>])
{
    float sums[2] = {0, 0};
#pragma unroll
    for (int v = 0; v < V; v++) {
        float w[ELEMENTS<T>];
        unpack(words[v], w, T());
#pragma unroll
        for (int e = 0; e < ELEMENTS<T>; e++)
            sums[e & 1] = fma_(w[e], x[v * ELEMENTS<T> + e], sums[e & 1]);
    }
    return sums[0] + sums[1];
}

/* The dot product of a row with x; the same in every lane. */
template <typename T, int V>
__device__ inline float dot(const uint4 (&words)[V], const float (&x)[V * ELEMENTS<T>])
{
    return warp_sum(dot_in_lane<T, V>(words, x));
}

template <int N> __device__ inline void clear(float (&values)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        values[i] = 0;
}

/* Up to 32 visited neurons, one in each lane. */
struct visited {
    unsigned row;
    int node;
    float logit;
    int count;
};

/* The nodes on the way to the end, one level below the leaves, are its ancestors: so in the only tree of a layer, one look
 * at the end tells all. */
__device__ inline void path_from_leaf(visited &seen, int end, int levels, int lane)
{
    seen.node = lane < levels ? (int)cmm_ancestor((unsigned)end, levels - lane) : 0;
    seen.row = (unsigned)seen.node;
}

/* The path that is given for a token and a tree, as a word: after a leading 1 its turns, 1 to the right, then zeros. 0: none
 * is given, and the logits decide. */
__device__ inline unsigned given_way(const cmm_cuda_problem &problem, int64_t token, int64_t tree)
{
    return problem.path ? (cmm_given_leaf(&problem, token, tree) + 1) << (31 - problem.depth) : 0;
}

__device__ inline unsigned turn_of(unsigned way, int level)
{
    return way >> (30 - level) & 1;
}

/* Walk levels from .. to - 1 of a tree whose first row is given; node is where to start, and where the walk ends. way: see
 * given_way(); GIVEN, whether there is one. ONE: seen gets the logits only, for path_from_leaf(). */
template <typename T, int V, bool FULL, bool ONE, bool GIVEN>
__device__ inline void walk(const matrix &w_in, const T *bias, float threshold, const float (&x)[V * ELEMENTS<T>],
                            int lane, unsigned way, unsigned first, int from, int to, int &node, visited &seen)
{
    for (int level = from; level < to; level++) {
        const unsigned row = ONE ? (unsigned)node : first + (unsigned)node;
        uint4 words[V];
        load_row<V, FULL>(words, w_in, row, lane);
        const float b = bias ? widen(bias[row]) : 0.0f, sum = dot<T, V>(words, x);
        const float logit = bias ? sum + b : sum;
        if (lane == seen.count) {
            seen.logit = logit;
            if (!ONE) {
                seen.row = row;
                seen.node = node;
            }
        }
        seen.count++;
        node = (int)cmm_left_child(node) + (GIVEN ? (int)turn_of(way, level) : logit > threshold);
    }
}

/* The same; two loops, so that the one without a path has no register and no instruction for it. */
template <typename T, int V, bool FULL, bool ONE>
__device__ inline void descend(const matrix &w_in, const T *bias, float threshold, const float (&x)[V * ELEMENTS<T>],
                               int lane, unsigned way, unsigned first, int from, int to, int &node, visited &seen)
{
    if (way)
        walk<T, V, FULL, ONE, true>(w_in, bias, threshold, x, lane, way, first, from, to, node, seen);
    else
        walk<T, V, FULL, ONE, false>(w_in, bias, threshold, x, lane, 0, first, from, to, node, seen);
}

/* Write the path of the visited neurons from step on, add their rows of w_out to y, and forget them. IN_FLIGHT: so many
 * rows are on their way at a time, 1 to 4. */
template <typename T, int V, bool FULL, int IN_FLIGHT>
__device__ inline void epilogue(const cmm_cuda_problem &problem, const matrix &w_out, float (&y)[V * ELEMENTS<T>],
                                int lane,
                               int64_t step, visited &seen)
{
    if (lane < seen.count) {
        if (problem.nodes_out)
            problem.nodes_out[step + lane] = seen.node;
        if (problem.logits_out)
            ((float *)problem.logits_out)[step + lane] = seen.logit;
    }
    if (problem.wants_y) {
        constexpr int ROWS = IN_FLIGHT < 1 ? 1 : IN_FLIGHT > 4 ? 4 : IN_FLIGHT;
        const float a = activate(problem.activation, lane < seen.count ? seen.logit : 0.0f);
        auto add_rows = [&](int s, auto rows) {
            constexpr int COUNT = decltype(rows)::value;
            uint4 words[COUNT][V];
#pragma unroll
            for (int r = 0; r < COUNT; r++)
                load_row<V, FULL>(words[r], w_out, __shfl_sync(0xffffffffu, seen.row, s + r), lane);
#pragma unroll
            for (int r = 0; r < COUNT; r++) {
                const float c = __shfl_sync(0xffffffffu, a, s + r);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    float w[ELEMENTS<T>];
                    unpack(words[r][v], w, T());
#pragma unroll
                    for (int e = 0; e < ELEMENTS<T>; e++)
                        y[v * ELEMENTS<T> + e] = fma_(c, w[e], y[v * ELEMENTS<T> + e]);
                }
            }
        };
        int s = 0;
        for (; s + ROWS <= seen.count; s += ROWS)
            add_rows(s, constant<ROWS>());
        for (; s < seen.count; s++)
            add_rows(s, constant<1>());
    }
    seen.count = 0;
}

template <typename T, int V, bool FULL>
__device__ inline void store_y(T *row, const float (&y)[V * ELEMENTS<T>], int vectors, int lane)
{
#pragma unroll
    for (int v = 0; v < V; v++)
        if (FULL || v * 32 + lane < vectors)
            __stcs((uint4 *)row + v * 32 + lane, pack(y + v * ELEMENTS<T>, T()));
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

/* Queue a kernel that begins with pdl_wait(). Where problem->overlaps, its blocks may be placed while the kernel before it
 * still runs. */
static inline cudaError_t launch_overlapping(const cmm_cuda_problem *problem, const void *kernel, dim3 grid,
                                             unsigned threads, void **arguments, cudaStream_t stream)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = problem->overlaps ? 1 : 0;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

constexpr int64_t MOST_BYTES_16 = 4 * 512, MOST_BYTES_32 = 8 * 512; /* of a row: 32 values in each lane */

/* What these kernels can do: rows of float, bf16 or f16 that are whole, aligned vectors and fit in registers. */
static inline int rows_fit(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    const int64_t bytes = cmm_element_size(problem->dtype), most = problem->dtype == CMM_F32
        ? MOST_BYTES_32 : MOST_BYTES_16;
    return problem->dtype != CMM_F64 && problem->depth < CMM_MAX_DEPTH && problem->aligned &&
        problem->d_in * bytes <= most &&
           (!problem->wants_y || problem->d_out * bytes <= most) && problem->trees <= 0xffffffffll / problem->nodes &&
           problem->ld_in * bytes <= 0xffffffffll && problem->ld_out * bytes <= 0xffffffffll;
}

/* The vectors in a lane of the wider of a problem's rows. */
static inline int vectors_for(const cmm_cuda_problem *problem)
{
    const int64_t wider = problem->wants_y && problem->d_out > problem->d_in ? problem->d_out : problem->d_in;
    return (int)((wider * cmm_element_size(problem->dtype) + 511) / 512);
}

template <template <typename, int, bool> class LAUNCH, typename T, int V, typename... ARGUMENTS>
static cudaError_t for_width(const cmm_cuda_problem *problem, ARGUMENTS... arguments)
{
    const int64_t whole = V * 512 / (int64_t)sizeof(T);
    return problem->d_in == whole && (!problem->wants_y || problem->d_out == whole)
               ? LAUNCH<T, V, true>::go(problem, arguments...)
               : LAUNCH<T, V, false>::go(problem, arguments...);
}

template <template <typename, int, bool> class LAUNCH, typename T, typename... ARGUMENTS>
static cudaError_t for_half(const cmm_cuda_problem *problem, ARGUMENTS... arguments)
{
    const int v = vectors_for(problem);
    return v <= 1   ? for_width<LAUNCH, T, 1>(problem, arguments...)
           : v <= 2 ? for_width<LAUNCH, T, 2>(problem, arguments...)
           : v <= 3 ? for_width<LAUNCH, T, 3>(problem, arguments...)
                    : for_width<LAUNCH, T, 4>(problem, arguments...);
}

/* Call LAUNCH<T, V, FULL>::go(problem, arguments...) for the type and the widths of a problem. */
template <template <typename, int, bool> class LAUNCH, typename... ARGUMENTS>
static cudaError_t for_rows(const cmm_cuda_problem *problem, ARGUMENTS... arguments)
{
    if (problem->dtype == CMM_BF16)
        return for_half<LAUNCH, __nv_bfloat16>(problem, arguments...);
    if (problem->dtype == CMM_F16)
        return for_half<LAUNCH, __half>(problem, arguments...);
    const int v = vectors_for(problem);
    return v <= 1   ? for_width<LAUNCH, float, 1>(problem, arguments...)
           : v <= 2 ? for_width<LAUNCH, float, 2>(problem, arguments...)
           : v <= 4 ? for_width<LAUNCH, float, 4>(problem, arguments...)
           : v <= 6 ? for_width<LAUNCH, float, 6>(problem, arguments...)
                    : for_width<LAUNCH, float, 8>(problem, arguments...);
}

#endif
