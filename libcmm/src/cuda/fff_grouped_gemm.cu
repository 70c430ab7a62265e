/* Many tokens, one deep tree, 16-bit types, on tensor cores, in two kernels. The first multiplies tokens by all rows of the
 * top levels, walks those, and sorts each chunk of tokens by the subtree that they arrive at. The second takes tiles of
 * tokens of one subtree, multiplies them by all its rows of w_in, walks, and multiplies the coefficients of the path by the
 * rows of w_out of the subtree and of its ancestors: one product, y is written once.
 * Work:   2 (2^top + 2^bottom) d_in + 2 (2^bottom + top) d_out flops a token, on tensor cores; levels activations.
 * Memory: x twice, y once; the weights of a tile's subtree from L2, once for each tile; 33 bytes a token to the workspace
 *         and back.
 * Sums:   float, on tensor cores, 16 products at a time: of each 32 elements those whose number modulo 8 is below 4, then
 *         the others; then the bias. y: nodes of the subtree in their order, 16 at a time, then its ancestors. A token's
 *         bits depend neither on the batch nor on its place, but are not those of warp_row.cuh.
 * Limit:  with many tokens what a block waits for each chunk of columns, and instructions; memory would allow 1.8 times the
 *         speed. With few tokens the same waits, 0.75 us a chunk on an H100, however few there are.
 *
 * Tokens go from global memory to the registers that mma reads: what is summed over may come in any order that both
 * operands share, so a thread's 16 bytes of a row are its part of two products. Outputs leave through shared memory, as
 * whole cache lines. Weights come to a ring of slots in shared memory, 64 columns at a time. A coefficient is rounded
 * to the type of the layer. A product with 0 lets an infinity or NaN of a row that was not visited through as NaN: an
 * output that is not finite is summed again along the path alone, with float coefficients (along_path()). */
#include "../scratch.h"
#include "warp_row.cuh"

constexpr int LEAST_LEVELS = 4, MOST_LEVELS = 7; /* of a part, the top or a subtree */
constexpr int MOST_CHUNKS = 256;                 /* chunks of tokens that are sorted, in a pass */
constexpr int MOST_IN_CHUNK = 256;               /* so that a number within a chunk is a byte */
constexpr int64_t PASS = MOST_CHUNKS * MOST_IN_CHUNK; /* tokens in a pass, which bounds the workspace */
constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = 16; /* of a block; tokens of a warp */
constexpr int CHUNK = 64, UNITS = CHUNK / 8;     /* columns of weights at a time, 16 bytes of them */
constexpr int OUT_PITCH = CHUNK * 2 + 16;        /* bytes, of rows of w_out and of y: reads meet no bank twice */
constexpr int SLOTS = 4;                         /* of weights */

/* What one pass leaves in the workspace. */
struct sorted {
    float *coefficients;    /* [size][8] of the top levels */
    unsigned short *starts; /* [2^top + 1][MOST_CHUNKS], where in a chunk's list each bucket starts */
    unsigned char *list;    /* [chunks][chunk] the chunk's tokens, by bucket */
    int64_t first;          /* token of the pass */
    int size, chunk, chunks, tile, top; /* a tile: a block's tokens at a time */
};

template <int LEVELS> struct part_of {
    static constexpr int NODES = (1 << LEVELS) - 1, BLOCKS = (NODES + 7) / 8; /* of 8 rows of w_in */
    static constexpr int STEPS = (NODES + MOST_LEVELS + 15) / 16;             /* of 16 rows of w_out */
    static constexpr int IN_BYTES = BLOCKS * 8 * CHUNK * 2, OUT_BYTES = STEPS * 16 * OUT_PITCH;
    static constexpr int AHEAD = LEVELS == 7 ? 4 : 2; /* chunks of x that are on their way */
    static constexpr int LOGITS_PITCH = BLOCKS * 8 + 8, COEFFICIENTS_PITCH = STEPS * 32 + 16; /* floats; bytes */
    static constexpr int LOGITS_BYTES = ROWS * LOGITS_PITCH * 4, COEFFICIENTS_BYTES = ROWS * COEFFICIENTS_PITCH;
};

constexpr int PATH_PITCH = 17; /* floats: activations of a token's path */

/* Blocks on a processor: registers and shared memory allow so many. */
template <int LEVELS> constexpr int BLOCKS_AT_ONCE = LEVELS == 7 ? 1 : 2;

constexpr int larger(int a, int b) { return a > b ? a : b; }

/* How a block's shared memory is used; OUTPUTS: by the second kernel. */
template <int LEVELS, bool OUTPUTS> struct layout_of {
    using part = part_of<LEVELS>;
    static constexpr int SLOT = OUTPUTS ? larger(part::IN_BYTES, part::OUT_BYTES) : part::IN_BYTES;
    static constexpr int WARP = OUTPUTS ? larger(larger(part::LOGITS_BYTES, part::COEFFICIENTS_BYTES), ROWS * OUT_PITCH)
                                       : part::LOGITS_BYTES;
    static constexpr int WARP_PATHS = SLOTS * SLOT + WARPS * WARP;
    static constexpr int IN_ROWS = WARP_PATHS + (OUTPUTS ? WARPS * ROWS * (PATH_PITCH + 1) * 4 : 0); /* addresses */
    static constexpr int OUT_ROWS = IN_ROWS + part::BLOCKS * 8 * 8;
    static constexpr int BIAS = OUT_ROWS + (OUTPUTS ? part::STEPS * 16 * 8 : 0);
    static constexpr int REST = BIAS + part::BLOCKS * 8 * 4; /* struct search, or a chunk's buckets */
};

/* ---- instructions ------------------------------------------------------------------------------------------------------ */

__device__ inline uint32_t address_of(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* d += a b: 16 x 8, 16 is what is summed over. */
__device__ inline void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1, __nv_bfloat16)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1, __half)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void load_matrices(uint32_t (&v)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&v)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

/* Copy to shared memory in the background; zeros where there is nothing to copy. */
__device__ inline void copy_16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> __device__ inline void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* ---- what both kernels do ---------------------------------------------------------------------------------------------- */

/* The ring of slots that the weights of a part come through, w_in first, then w_out. */
template <typename T, int LEVELS, bool OUTPUTS> struct ring {
    using part = part_of<LEVELS>;
    using layout = layout_of<LEVELS, OUTPUTS>;
    char *const memory;
    const int d_in, d_out, out_rows;
    const int in, all; /* chunks of w_in, of both */
    int next, to;      /* which chunk is to be asked for, and its slot */
    int slot;          /* of the chunk at hand */

    __device__ inline ring(const cmm_cuda_problem &problem, char *memory, int above)
        : memory(memory), d_in((int)problem.d_in), d_out(OUTPUTS && problem.wants_y ? (int)problem.d_out : 0),
          out_rows(part::NODES + above), in((d_in + CHUNK - 1) / CHUNK), all(in + (d_out + CHUNK - 1) / CHUNK)
    {
    }

    /* Rows of 128 bytes, whose halves change places in odd rows, so that reads meet no bank twice. */
    __device__ inline void ask_in(uint32_t at, int chunk)
    {
        const int unit = threadIdx.x % UNITS, first = threadIdx.x / UNITS, column = chunk * CHUNK + unit * 8;
        const char *const *const rows = (const char *const *)(memory + layout::IN_ROWS);
        at += first * 128 + (unit ^ (first & 1) << 2) * 16;
#pragma unroll
        for (int row = 0; row < part::BLOCKS * 8; row += THREADS / UNITS)
            if (part::BLOCKS * 8 >= THREADS / UNITS || first < part::BLOCKS * 8)
                copy_16(at + row * 128, rows[row + first] + column * 2, row + first < part::NODES && column < d_in);
    }

    __device__ inline void ask_out(uint32_t at, int chunk)
    {
        const int unit = threadIdx.x % UNITS, first = threadIdx.x / UNITS, column = chunk * CHUNK + unit * 8;
        const char *const *const rows = (const char *const *)(memory + layout::OUT_ROWS);
        at += first * OUT_PITCH + unit * 16;
#pragma unroll
        for (int row = 0; row < part::STEPS * 16; row += THREADS / UNITS)
            if (row + THREADS / UNITS <= part::STEPS * 16 || row + first < part::STEPS * 16)
                copy_16(at + row * OUT_PITCH, rows[row + first] + column * 2, row + first < out_rows && column < d_out);
    }

    __device__ inline void ask()
    {
        const uint32_t at = address_of(memory + to * layout::SLOT);
        if (next < in)
            ask_in(at, next);
        else if (OUTPUTS && next < all)
            ask_out(at, next - in);
        copies_commit();
        next++;
        to = to + 1 == SLOTS ? 0 : to + 1;
    }

    __device__ inline void begin()
    {
        next = to = 0;
        slot = SLOTS - 1;
#pragma unroll 1
        for (int i = 0; i < SLOTS - 1; i++)
            ask();
    }

    /* The slot of the next chunk, which is there; all warps are done with the one before. */
    __device__ inline const char *wait()
    {
        copies_wait<SLOTS - 2>();
        __syncthreads();
        ask();
        slot = slot + 1 == SLOTS ? 0 : slot + 1;
        return memory + slot * layout::SLOT;
    }
};

/* Where the rows of a part lie, those of its ancestors in w_out behind; its bias. What is not there has some address. */
template <typename T, int LEVELS, bool OUTPUTS>
__device__ inline void describe_part(const cmm_cuda_problem &problem, char *memory, uint32_t root, int above)
{
    using part = part_of<LEVELS>;
    using layout = layout_of<LEVELS, OUTPUTS>;
    const T **const in = (const T **)(memory + layout::IN_ROWS), **const out = (const T **)(memory + layout::OUT_ROWS);
    float *const bias = (float *)(memory + layout::BIAS);
    for (int i = threadIdx.x; i < part::STEPS * 16; i += THREADS) {
        const int level = 31 - __clz(i + 1), up = i - part::NODES;
        const int64_t node = i < part::NODES ? cmm_descendant(root, level, i + 1 - (1 << level))
                             : up < above    ? cmm_ancestor(root, above - up)
                                             : 0;
        if (i < part::BLOCKS * 8) {
            in[i] = (const T *)problem.w_in + node * problem.ld_in;
            if (problem.bias)
                bias[i] = i < part::NODES ? widen(((const T *)problem.bias)[node]) : 0.0f;
        }
        if (OUTPUTS)
            out[i] = (const T *)problem.w_out + node * problem.ld_out;
    }
}

/* A thread's part of 64 columns of two rows of x. */
struct piece {
    uint4 half[2][2]; /* [32 columns][row] */
};

template <typename T>
__device__ inline void load_piece(piece &p, const T *const (&rows)[2], int column, int width)
{
    if (column + 32 < width) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                p.half[h][r] = load_once((const uint4 *)(rows[r] + column + 32 * h));
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                p.half[h][r] = column + 32 * h < width ? load_once((const uint4 *)(rows[r] + column + 32 * h))
                                                       : make_uint4(0, 0, 0, 0);
    }
}

/* Logits of 16 tokens and all nodes of a part. rows: of tokens lane / 4 and 8 more, from column 8 (lane % 4) on. */
template <typename T, int LEVELS, bool OUTPUTS>
__device__ inline void multiply_in(ring<T, LEVELS, OUTPUTS> &weights, float (&d)[part_of<LEVELS>::BLOCKS][4],
                                   const T *const (&rows)[2], bool works, int lane)
{
    constexpr int BLOCKS = part_of<LEVELS>::BLOCKS, AHEAD = part_of<LEVELS>::AHEAD;
    const int width = weights.d_in - lane % 4 * 8;
    const int half = (lane / 4) * 128 + (lane % 4 + (lane & 4)) * 16; /* where a row's first half is: see ask_in() */
    piece x[AHEAD];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            d[b][i] = 0;
    if (works)
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            load_piece(x[a], rows, a * CHUNK, width);
    for (int chunk = 0; chunk < weights.in; chunk += AHEAD) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (chunk + a >= weights.in)
                break;
            const char *const at = weights.wait();
            if (!works)
                continue;
            constexpr int GROUP = BLOCKS < 4 ? BLOCKS : 4;
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int first = 0; first < BLOCKS; first += GROUP) {
                    const uint4 low = x[a].half[h][0], high = x[a].half[h][1];
                    uint4 w[GROUP];
#pragma unroll
                    for (int b = 0; b < GROUP; b++)
                        w[b] = *(const uint4 *)(at + (half ^ h * 64) + (first + b) * 1024);
#pragma unroll
                    for (int b = 0; b < GROUP; b++)
                        multiply_add(d[first + b], low.x, high.x, low.y, high.y, w[b].x, w[b].y, T());
#pragma unroll
                    for (int b = 0; b < GROUP; b++)
                        multiply_add(d[first + b], low.z, high.z, low.w, high.w, w[b].z, w[b].w, T());
                }
            load_piece(x[a], rows, (chunk + a + AHEAD) * CHUNK, width);
        }
    }
}

/* Put a warp's logits, bias added, into shared memory, and walk: the place, among those below the part, where token lane % 16
 * arrives. The turns of the path to it are its bits. */
template <int LEVELS>
__device__ inline int walk_part(float *logits, const float (&d)[part_of<LEVELS>::BLOCKS][4], const float *bias,
                                float threshold, int lane)
{
    constexpr int PITCH = part_of<LEVELS>::LOGITS_PITCH;
#pragma unroll
    for (int b = 0; b < part_of<LEVELS>::BLOCKS; b++) {
        const int column = b * 8 + lane % 4 * 2;
        const float2 more = bias ? *(const float2 *)(bias + column) : make_float2(0, 0);
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(float2 *)(logits + (lane / 4 + 8 * r) * PITCH + column) =
                bias ? make_float2(d[b][2 * r] + more.x, d[b][2 * r + 1] + more.y)
                     : make_float2(d[b][2 * r], d[b][2 * r + 1]);
    }
    __syncwarp();
    int node = 0;
#pragma unroll
    for (int level = 0; level < LEVELS; level++)
        node = (int)cmm_left_child(node) + (logits[lane % 16 * PITCH + node] > threshold);
    return node - part_of<LEVELS>::NODES;
}

/* ---- the first kernel -------------------------------------------------------------------------------------------------- */

/* Sort a chunk by bucket, tokens of a bucket in order: counts of each 32 tokens, their sums, and each token's rank. */
__device__ inline void sort_chunk(const sorted &to, int *counts, const unsigned char *bucket_of, int tokens)
{
    const int buckets = 1 << to.top, lane = threadIdx.x % 32, groups = (tokens + 31) / 32;
    for (int i = threadIdx.x; i < buckets * (MOST_IN_CHUNK / 32); i += THREADS)
        counts[i] = 0;
    __syncthreads();
    for (int token = threadIdx.x; token < groups * 32; token += THREADS) {
        const int bucket = token < tokens ? bucket_of[token] : -1;
        const unsigned alike = __match_any_sync(0xffffffffu, bucket);
        if (bucket >= 0 && (alike & ((1u << lane) - 1)) == 0)
            counts[token / 32 * buckets + bucket] = __popc(alike);
    }
    __syncthreads();
    if (threadIdx.x < 32) { /* starts, of the bucket and of each group's tokens in it */
        int sum = 0;
        for (int first = 0; first < buckets; first += 32) {
            const int bucket = first + lane;
            int own = 0;
            for (int g = 0; g < groups && bucket < buckets; g++)
                own += counts[g * buckets + bucket];
            int end = own;
            for (int distance = 1; distance < 32; distance *= 2) {
                const int below = __shfl_up_sync(0xffffffffu, end, distance);
                end += lane >= distance ? below : 0;
            }
            int start = sum + end - own;
            if (bucket < buckets) {
                to.starts[bucket * MOST_CHUNKS + blockIdx.x] = (unsigned short)start;
                for (int g = 0; g < groups; g++) {
                    const int count = counts[g * buckets + bucket];
                    counts[g * buckets + bucket] = start;
                    start += count;
                }
            }
            sum += __shfl_sync(0xffffffffu, end, 31);
        }
        if (lane == 0)
            to.starts[buckets * MOST_CHUNKS + blockIdx.x] = (unsigned short)sum;
    }
    __syncthreads();
    for (int token = threadIdx.x; token < groups * 32; token += THREADS) {
        const int bucket = token < tokens ? bucket_of[token] : -1;
        const unsigned alike = __match_any_sync(0xffffffffu, bucket);
        if (bucket >= 0)
            to.list[blockIdx.x * to.chunk + counts[token / 32 * buckets + bucket] + __popc(alike & ((1u << lane) - 1))] =
                (unsigned char)token;
    }
}

template <typename T, int LEVELS>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE<LEVELS>)
    fff_grouped_gemm_top(const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ sorted to)
{
    using layout = layout_of<LEVELS, false>;
    constexpr int PITCH = part_of<LEVELS>::LOGITS_PITCH;
    extern __shared__ __align__(128) char memory[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, levels = problem.depth + 1;
    const int first = blockIdx.x * to.chunk, end = min(to.size, first + to.chunk);
    float *const logits = (float *)(memory + SLOTS * layout::SLOT + warp * layout::WARP);
    unsigned char *const bucket_of = (unsigned char *)memory + layout::REST;
    if (pdl_wait_is_refused(problem))
        return;
    describe_part<T, LEVELS, false>(problem, memory, 0, 0);
    __syncthreads();
    ring<T, LEVELS, false> weights(problem, memory, 0);
    for (int at = first; at < end; at += to.tile) {
        const int own = at + warp * ROWS, row = lane % 16, token = own + row;
        const bool works = warp * ROWS < to.tile && own < end;
        const T *rows[2];
#pragma unroll
        for (int r = 0; r < 2; r++)
            rows[r] = (const T *)problem.x + (to.first + min(own + lane / 4 + 8 * r, end - 1)) * problem.d_in + lane % 4 * 8;
        float d[part_of<LEVELS>::BLOCKS][4];
        weights.begin();
        multiply_in(weights, d, rows, works, lane);
        if (works) {
            int place = walk_part<LEVELS>(logits, d, problem.bias ? (const float *)(memory + layout::BIAS) : nullptr,
                                          cmm_threshold_f32(problem.tie), lane);
            if (token < end) {
                if (problem.path)
                    place = (int)(given_way(problem, to.first + token, 0) << 1 >> (32 - LEVELS));
                if (lane < 16)
                    bucket_of[token - first] = (unsigned char)place;
#pragma unroll 1
                for (int level = lane / 16; level < LEVELS; level += 2) {
                    const int node = (1 << level) - 1 + (place >> (LEVELS - level));
                    const float logit = logits[row * PITCH + node];
                    const int64_t step = (to.first + token) * levels + level;
                    if (problem.nodes_out)
                        problem.nodes_out[step] = node;
                    if (problem.logits_out)
                        ((float *)problem.logits_out)[step] = logit;
                    if (problem.wants_y)
                        to.coefficients[(int64_t)token * 8 + level] = activate(problem.activation, logit);
                }
            }
        }
        __syncthreads();
    }
    sort_chunk(to, (int *)memory, bucket_of, end - first);
}

/* ---- the second kernel ------------------------------------------------------------------------------------------------- */

/* An output of a token, of its path alone. */
template <typename T>
__device__ inline float along_path(const cmm_cuda_problem &problem, const float *coefficients, uint32_t leaf,
                                         int64_t column)
{
    float sum = 0;
    for (int level = 0; level <= problem.depth; level++)
        sum = fma_(coefficients[level],
                   widen(((const T *)problem.w_out)[cmm_ancestor(leaf, problem.depth - level) * problem.ld_out + column]),
                   sum);
    return sum;
}

__device__ inline __nv_bfloat162 pair_of(float low, float high, __nv_bfloat16)
{
    return __floats2bfloat162_rn(low, high);
}

__device__ inline __half2 pair_of(float low, float high, __half)
{
    return __floats2half2_rn(low, high);
}

/* Two numbers as a word. */
template <typename PAIR> __device__ inline uint32_t word_of(PAIR pair)
{
    return *(const uint32_t *)&pair;
}

/* Sum those outputs again that are not finite, of a warp's tokens and 64 columns. */
template <typename T>
__device__ __noinline__ void mend(const cmm_cuda_problem &problem, const char *y, const float *path, const int *leaves,
                                  const int *tokens, int64_t first, int column, int rows, int lane)
{
    for (int i = lane; i < ROWS * CHUNK; i += 32) {
        const int row = i / CHUNK, to = column + i % CHUNK;
        if (row < rows && to < problem.d_out && !isfinite(widen(((const T *)(y + row * OUT_PITCH))[i % CHUNK])))
            ((T *)problem.y)[(first + tokens[row]) * problem.d_out + to] =
                narrow<T>(along_path<T>(problem, path + row * PATH_PITCH, (uint32_t)leaves[row], to));
    }
}

/* Which tokens a tile has. Its bucket lies in pieces, one in each chunk's list. */
struct search {
    int ends[MOST_CHUNKS];   /* in the bucket, where each chunk's piece ends */
    int starts[MOST_CHUNKS]; /* what to add to a place in the bucket, for its place in the lists */
    int tiles[(1 << MOST_LEVELS) + 1]; /* before each bucket */
    int sums[(1 << MOST_LEVELS) + 1];  /* tokens before each bucket */
    int tokens[WARPS * ROWS];
};

/* How many tiles there are before each bucket; returns how many in all. */
__device__ inline int count_tiles(const sorted &from, search &s, int tile)
{
    const int buckets = 1 << from.top, lane = threadIdx.x % 32;
    constexpr int AT_ONCE = 5; /* reads on their way */
    for (int first = threadIdx.x / 32; first <= buckets; first += WARPS * AT_ONCE) {
        uint4 v[AT_ONCE];
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++)
            v[a] = load_now((const uint4 *)(from.starts + min(first + a * WARPS, buckets) * MOST_CHUNKS) + lane);
#pragma unroll
        for (int a = 0; a < AT_ONCE; a++) {
            const uint32_t words[4] = {v[a].x, v[a].y, v[a].z, v[a].w};
            int sum = 0;
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum += lane * 8 + i < from.chunks ? (int)(words[i / 2] >> i % 2 * 16 & 0xffff) : 0;
            sum = __reduce_add_sync(0xffffffffu, sum);
            if (lane == 0 && first + a * WARPS <= buckets)
                s.sums[first + a * WARPS] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        int sum = 0;
        for (int first = 0; first < buckets; first += 32) {
            const int bucket = first + lane;
            const int own = bucket < buckets ? (s.sums[bucket + 1] - s.sums[bucket] + tile - 1) / tile : 0;
            int end = own;
            for (int distance = 1; distance < 32; distance *= 2) {
                const int below = __shfl_up_sync(0xffffffffu, end, distance);
                end += lane >= distance ? below : 0;
            }
            if (bucket < buckets)
                s.tiles[bucket] = sum + end - own;
            sum += __shfl_sync(0xffffffffu, end, 31);
        }
        if (lane == 0)
            s.tiles[buckets] = sum;
    }
    __syncthreads();
    return s.tiles[buckets];
}

/* Find the pieces of a bucket: the first warp, eight chunks to a lane. */
__device__ inline void find_pieces(const sorted &from, search &s, int bucket)
{
    if (threadIdx.x >= 32)
        return;
    const int lane = threadIdx.x;
    const uint4 a = load_now((const uint4 *)(from.starts + bucket * MOST_CHUNKS) + lane);
    const uint4 b = load_now((const uint4 *)(from.starts + (bucket + 1) * MOST_CHUNKS) + lane);
    const uint32_t starts[4] = {a.x, a.y, a.z, a.w}, ends[4] = {b.x, b.y, b.z, b.w};
    int counts[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        counts[i] = (int)(ends[i / 2] >> i % 2 * 16 & 0xffff) - (int)(starts[i / 2] >> i % 2 * 16 & 0xffff);
        counts[i] = lane * 8 + i < from.chunks ? counts[i] : 0;
        sum += counts[i];
    }
    int end = sum;
    for (int distance = 1; distance < 32; distance *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, end, distance);
        end += lane >= distance ? below : 0;
    }
    int place = end - sum;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int chunk = lane * 8 + i;
        s.starts[chunk] = chunk * from.chunk + (int)(starts[i / 2] >> i % 2 * 16 & 0xffff) - place;
        place += counts[i];
        s.ends[chunk] = place;
    }
}

template <typename T, int LEVELS>
__global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE<LEVELS>)
    fff_grouped_gemm_bottom(const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ sorted from)
{
    using part = part_of<LEVELS>;
    using layout = layout_of<LEVELS, true>;
    constexpr int PITCH = part::LOGITS_PITCH;
    extern __shared__ __align__(128) char memory[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane % 16, levels = problem.depth + 1;
    const int tile = from.tile;
    search &s = *(search *)(memory + layout::REST);
    char *const own = memory + SLOTS * layout::SLOT + warp * layout::WARP;
    float *const path = (float *)(memory + layout::WARP_PATHS) + warp * ROWS * (PATH_PITCH + 1);
    int *const leaves = (int *)(path + ROWS * PATH_PITCH);
    if (pdl_wait_is_refused(problem))
        return;
    const int tiles = count_tiles(from, s, tile), top = from.top;
    ring<T, LEVELS, true> weights(problem, memory, top);
    const int last = (int)((int64_t)tiles * (blockIdx.x + 1) / gridDim.x);
    int bucket = -1;
    for (int at = (int)((int64_t)tiles * blockIdx.x / gridDim.x); at < last; at++) {
        int next = 0; /* the last bucket that has no more tiles before it */
        for (int step = 1 << (top - 1); step > 0; step /= 2)
            next += s.tiles[next + step] <= at ? step : 0;
        const int tokens = s.sums[next + 1] - s.sums[next], place_of_tile = (at - s.tiles[next]) * tile;
        const uint32_t root = (uint32_t)((1 << top) - 1 + next);
        if (next != bucket) {
            find_pieces(from, s, next);
            describe_part<T, LEVELS, true>(problem, memory, root, top);
            bucket = next;
        }
        __syncthreads();
        weights.begin();
        const int rows_here = min(tile, tokens - place_of_tile);
        if (threadIdx.x < WARPS * ROWS) {
            const int i = threadIdx.x, place = place_of_tile + min(i, rows_here - 1);
            int chunk = 0; /* how many pieces end at or before the place */
#pragma unroll
            for (int step = MOST_CHUNKS / 2; step > 0; step /= 2)
                chunk += s.ends[chunk + step - 1] <= place ? step : 0;
            s.tokens[i] = chunk * from.chunk + from.list[s.starts[chunk] + place];
        }
        __syncthreads();

        const int first_row = warp * ROWS, token = s.tokens[first_row + row];
        const bool works = first_row < rows_here, there = first_row + row < rows_here;
        int in_tile[2];
        const T *rows[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            in_tile[r] = s.tokens[first_row + lane / 4 + 8 * r];
            rows[r] = (const T *)problem.x + (from.first + in_tile[r]) * problem.d_in + lane % 4 * 8;
        }
        float4 above = make_float4(0, 0, 0, 0); /* activations of four top levels */
        if (problem.wants_y)
            above = *(const float4 *)(from.coefficients + (int64_t)token * 8 + lane / 16 * 4);
        float d[part::BLOCKS][4];
        multiply_in(weights, d, rows, works, lane);
        uint32_t a[part::STEPS][4];
        if (works) {
            float *const logits = (float *)own;
            int place = walk_part<LEVELS>(logits, d, problem.bias ? (const float *)(memory + layout::BIAS) : nullptr,
                                          cmm_threshold_f32(problem.tie), lane);
            if (problem.path)
                place = (int)(given_way(problem, from.first + token, 0) << (1 + top) >> (32 - LEVELS));
            if (problem.wants_y) {
                const float four[4] = {above.x, above.y, above.z, above.w};
                for (int i = 0; i < 4; i++)
                    path[row * PATH_PITCH + lane / 16 * 4 + i] = four[i];
                if (lane < 16)
                    leaves[row] = (int)cmm_descendant(root, LEVELS - 1, place >> 1);
            }
            __syncwarp();
#pragma unroll 1
            for (int level = lane / 16; level < LEVELS; level += 2) {
                const int node = (1 << level) - 1 + (place >> (LEVELS - level));
                const float logit = logits[row * PITCH + node];
                const int64_t step = (from.first + token) * levels + top + level;
                if (problem.nodes_out && there)
                    problem.nodes_out[step] = (int)cmm_descendant(root, level, place >> (LEVELS - level));
                if (problem.logits_out && there)
                    ((float *)problem.logits_out)[step] = logit;
                if (problem.wants_y)
                    path[row * PATH_PITCH + top + level] = activate(problem.activation, logit);
            }
            if (problem.wants_y) {
                __syncwarp();
                for (int i = lane; i < part::COEFFICIENTS_BYTES / 16; i += 32)
                    ((uint4 *)own)[i] = make_uint4(0, 0, 0, 0);
                __syncwarp();
                for (int level = lane / 16; level < levels; level += 2) {
                    const int below = level - top;
                    const int column = below < 0 ? part::NODES + level : (1 << below) - 1 + (place >> (LEVELS - below));
                    *(T *)(own + row * part::COEFFICIENTS_PITCH + column * 2) =
                        narrow<T>(path[row * PATH_PITCH + level]);
                }
                __syncwarp();
#pragma unroll
                for (int k = 0; k < part::STEPS; k++)
                    load_matrices(a[k], address_of(own) + row * part::COEFFICIENTS_PITCH + k * 32 + lane / 16 * 16);
            }
        }
        T *out[4]; /* of rows lane / 8 + 4 i, from column 8 (lane % 8) on */
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = (T *)problem.y + (from.first + s.tokens[first_row + lane / 8 + 4 * i]) * problem.d_out + lane % 8 * 8;
        for (int column = 0; column < weights.d_out; column += CHUNK) {
            const uint32_t slot = address_of(weights.wait()) + row * OUT_PITCH + lane / 16 * 16;
            if (!works)
                continue;
            float y[8][4] = {};
#pragma unroll
            for (int k = 0; k < part::STEPS; k++) {
                uint32_t w[4][4];
#pragma unroll
                for (int b = 0; b < 4; b++)
                    load_matrices_transposed(w[b], slot + k * 16 * OUT_PITCH + b * 32);
#pragma unroll
                for (int b = 0; b < 8; b++)
                    multiply_add(y[b], a[k][0], a[k][1], a[k][2], a[k][3], w[b / 2][b % 2 * 2], w[b / 2][b % 2 * 2 + 1], T());
            }
            auto nothing = pair_of(0, 0, T()); /* stays 0 where all is finite */
            const auto zero = nothing;
            __syncwarp();
#pragma unroll
            for (int b = 0; b < 8; b++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const auto pair = pair_of(y[b][2 * r], y[b][2 * r + 1], T());
                    nothing = __hfma2(pair, zero, nothing);
                    *(uint32_t *)(own + (lane / 4 + 8 * r) * OUT_PITCH + b * 16 + lane % 4 * 4) = word_of(pair);
                }
            const bool finite = __all_sync(0xffffffffu, (word_of(nothing) & 0x7fff7fff) == 0);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first_row + lane / 8 + 4 * i < rows_here && column + lane % 8 * 8 < weights.d_out)
                    __stcs((uint4 *)(out[i] + column), *(const uint4 *)(own + (lane / 8 + 4 * i) * OUT_PITCH + lane % 8 * 16));
            if (!finite) {
                __syncwarp(); /* these outputs are written after those */
                mend<T>(problem, own, path, leaves, s.tokens + first_row, from.first, column, rows_here - first_row, lane);
            }
        }
        __syncthreads();
    }
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

/* Levels of the top. The depth alone decides, so that a token's bits do not depend on the batch. */
static int top_of(const cmm_problem *problem)
{
    return (problem->depth + 2) / 2;
}

/* Bytes of shared memory that a block has, of both kernels, for parts of 4 to 7 levels. */
static constexpr int top_memory[] = {
#define OF(levels) layout_of<levels, false>::REST + MOST_IN_CHUNK
    OF(4), OF(5), OF(6), OF(7)
#undef OF
};
static constexpr int bottom_memory[] = {
#define OF(levels) layout_of<levels, true>::REST + (int)sizeof(search)
    OF(4), OF(5), OF(6), OF(7)
#undef OF
};

/* Bits must not depend on the GPU's shared memory, so where a part does not fit the layer is another kernel's. */
static int can_implement(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    const int64_t most = 1 << 30;
    const int top = top_of(problem), bottom = problem->depth + 1 - top;
    return (problem->dtype == CMM_BF16 || problem->dtype == CMM_F16) && problem->trees == 1 && problem->aligned &&
           problem->depth + 1 >= 2 * LEAST_LEVELS && problem->depth + 1 <= 2 * MOST_LEVELS &&
           top_memory[top - LEAST_LEVELS] <= problem->shared_memory &&
           bottom_memory[bottom - LEAST_LEVELS] <= problem->shared_memory &&
           problem->d_in < most && problem->d_out < most;
}

/* Measured on an H100; on other GPUs by name alone. A call takes a time of its own, however few tokens there are, which
 * grows with the rows of a part and with their length. Beside it, rows that fit in a warp's registers are walked at the
 * speed of instructions, which 12 levels, or nearly, have many of; longer rows at a tenth of that. */
static int is_preferred(const cmm_problem *problem)
{
    const int levels = problem->depth + 1, top = top_of(problem), bottom = levels - top;
    const int64_t tokens = problem->batch, wider = problem->d_in > problem->d_out ? problem->d_in : problem->d_out;
    if (!cuda_problem(problem)->overlaps || !problem->wants_y)
        return 0;
    if (rows_fit(problem))
        return levels >= 11 && levels <= 13 && tokens * wider >= 1 << 24;
    return tokens >= 2048 && tokens * levels >= 192 * ((1 << top) + (1 << bottom));
}

/* Lay a pass out in a workspace, which may be NULL; return its size. */
static int64_t lay_out(const cmm_cuda_problem *problem, char *memory, sorted *s)
{
    const int64_t most = problem->batch < PASS ? problem->batch : PASS;
    s->top = top_of(problem);
    const int64_t coefficients = cmm_padded(most * 8 * 4, CMM_CUDA_ALIGNMENT);
    const int64_t starts = cmm_padded((int64_t)((1 << s->top) + 1) * MOST_CHUNKS * 2, CMM_CUDA_ALIGNMENT);
    s->coefficients = (float *)memory;
    s->starts = (unsigned short *)(memory + coefficients);
    s->list = (unsigned char *)(memory + coefficients + starts);
    return coefficients + starts + PASS;
}

static int64_t workspace(const cmm_cuda_problem *problem)
{
    sorted unused;
    return lay_out(problem, nullptr, &unused);
}

static cudaError_t launch(const cmm_cuda_problem *problem, const void *kernel, int memory, unsigned blocks,
                          void **arguments, cudaStream_t stream)
{
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)memory;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = problem->overlaps ? 1 : 0;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

template <typename T> static cudaError_t run_typed(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    static const void *const tops[] = {
#define OF(levels) (const void *)fff_grouped_gemm_top<T, levels>
        OF(4), OF(5), OF(6), OF(7)
#undef OF
    };
    static const void *const bottoms[] = {
#define OF(levels) (const void *)fff_grouped_gemm_bottom<T, levels>
        OF(4), OF(5), OF(6), OF(7)
#undef OF
    };
    static constexpr int at_once[] = {BLOCKS_AT_ONCE<4>, BLOCKS_AT_ONCE<5>, BLOCKS_AT_ONCE<6>, BLOCKS_AT_ONCE<7>};
    cmm_cuda_problem copy = *problem;
    sorted s;
    lay_out(problem, (char *)memory, &s);
    const int top = s.top - LEAST_LEVELS, bottom = problem->depth + 1 - s.top - LEAST_LEVELS;
    const int processors = problem->sm_count < MOST_CHUNKS ? problem->sm_count : MOST_CHUNKS;
    void *arguments[] = {&copy, &s};
    cudaError_t error = cudaSuccess;
    for (s.first = 0; s.first < problem->batch && error == cudaSuccess; s.first += PASS) {
        s.size = (int)(problem->batch - s.first < PASS ? problem->batch - s.first : PASS);
        s.tile = WARPS * ROWS; /* smaller ones where these leave processors without one */
        while (s.tile > ROWS && s.size <= s.tile / 2 * processors)
            s.tile /= 2;
        s.chunk = (s.size + MOST_CHUNKS * s.tile - 1) / (MOST_CHUNKS * s.tile) * s.tile;
        s.chunks = (s.size + s.chunk - 1) / s.chunk;
        error = launch(problem, tops[top], top_memory[top], (unsigned)s.chunks, arguments, stream);
        const int tiles = s.size / s.tile + (1 << s.top), blocks = at_once[bottom] * problem->sm_count; /* tiles at most */
        if (error == cudaSuccess)
            error = launch(problem, bottoms[bottom], bottom_memory[bottom], (unsigned)(tiles < blocks ? tiles : blocks),
                           arguments, stream);
    }
    return error;
}

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    return problem->dtype == CMM_BF16 ? run_typed<__nv_bfloat16>(problem, stream, memory)
                                      : run_typed<__half>(problem, stream, memory);
}

extern const cmm_cuda_kernel cmm_cuda_fff_grouped_gemm = {
    cuda_traits(CMM_OP_FFF, "grouped_gemm", "cuda", "grouped_gemm", can_implement, is_preferred), workspace, run};
