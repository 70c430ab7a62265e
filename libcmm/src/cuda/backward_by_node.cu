/* The backward pass: every sum of a weight's gradient is that of one node, over its tokens.
 *
 * The tokens are sorted by their leaves in each tree, in which order those of every node lie together; that sort is
 * stable, so there is one such order. Then come dz, activations and dx, a warp to a token (or a block, where rows are no
 * whole vectors); zeros in rows of nodes that no token visits; and the rows of dW. The order of a tree is cut into
 * stretches of one length. A block takes a stretch and some columns of one weight, holds a row of sums for every level
 * of the tree in registers, and reads each token once: its x times dz of each level is added to all of them. Where the
 * next token turns off to another node, the row of the one that is left is done and stored. Sums of nodes that go on in
 * another stretch are kept apart, and the last kernel adds them up, stretch by stretch.
 * Trees of one node take the place of levels: that is a matrix product dz^T x.
 * Work:   8 flops for each column of a visited row.
 * Memory: rows of both weights from L1 and L2; x, dy, dx once for the tokens and once more for each tree; dW once, and of a
 *         node that is in several stretches a row for each of them, to the workspace and back.
 * Sums:   <dy, w_out> as warp_row.cuh says, or by lanes, which are halved; dx trees in order, root first; dW and dbias the
 *         tokens of a stretch in order, then the stretches. How long a stretch is follows from the shape alone.
 * Limit:  the loads and multiply-adds of both functions; see docs/internals/backward.md. */
#include "../scratch.h"
#include "warp_row.cuh"

#include <cub/device/device_radix_sort.cuh>

constexpr int TILE = 64;     /* threads that share a stretch */
constexpr int PLACES = 64;   /* tokens whose coefficients they hold in shared memory at a time */
constexpr int IN_FLIGHT = 4; /* tokens that a thread reads at a time */
constexpr int64_t SHORTEST = 32;     /* tokens of a stretch */
constexpr int64_t PIECES = 1536;     /* of stretches and tiles: blocks that fill a GPU */
constexpr int64_t MOST_STRETCHES = 512;
constexpr int TOKEN_WARPS = 8, TOKENS = 32; /* of a block of the first kernel */

template <typename T> constexpr int COLUMNS = sizeof(T) == 8 ? 2 : 4; /* of a thread: 8 or 16 bytes of x, 16 of sums */

/* A call: what is in the workspace, and the order of the tokens. */
struct backward {
    cmm_cuda_problem problem;
    cmm_backward b;
    int64_t groups, rows;    /* trees and levels; or 1 and trees, where a tree is one node */
    uint32_t *keys, *leaf;   /* [groups][batch] tree and leaf; the same in order */
    uint32_t *ids, *token;   /* [groups][batch] */
    void *sort;
    size_t sort_bytes;
    void *dz, *a;            /* [batch][groups][rows] */
    int64_t stretch, stretches;
    void *parts[3];          /* dw_in, dw_out, dbias: [groups][stretches][2][rows][columns that are padded] */
};

/* One of dw_in, dw_out, dbias; of the last the tokens have one column, of ones. */
struct sums {
    const void *tokens, *c;
    void *out, *parts;
    int64_t d, ld, padded; /* padded: the columns of a row in parts */
    int64_t tiles;
    int adds;
};

struct three_sums {
    sums of[3];
    int64_t tiles;
};

__device__ inline int64_t leaf_at(const backward &call, int64_t group, int64_t place)
{
    return call.leaf[group * call.problem.batch + place] & (uint32_t)(((int64_t)1 << call.problem.depth) - 1);
}

/* How many rows the tokens at two places of the order share; a place beyond the ends shares none. */
__device__ inline int shared_rows(const backward &call, int64_t group, int64_t place, int64_t other)
{
    if (place < 0 || other < 0 || place >= call.problem.batch || other >= call.problem.batch)
        return 0;
    if (call.problem.depth == 0)
        return (int)call.rows;
    const uint32_t differ = (uint32_t)(leaf_at(call, group, place) ^ leaf_at(call, group, other));
    return differ ? call.problem.depth - (31 - __clz((int)differ)) : (int)call.rows;
}

__device__ inline int64_t neuron_of(const backward &call, int64_t group, int64_t row, int64_t leaf)
{
    const int32_t depth = call.problem.depth;
    return depth == 0 ? row
                      : group * call.problem.nodes + ((((int64_t)1 << depth) + leaf) >> (depth - row)) - 1;
}

/* ---- the order of the tokens --------------------------------------------------------------------------------------- */

__global__ void backward_keys(const backward call)
{
    const cmm_cuda_problem &problem = call.problem;
    const int64_t pairs = problem.batch * problem.trees, threads = gridDim.x * (int64_t)blockDim.x;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < pairs; i += threads) {
        const int64_t tree = i / problem.batch, token = i - tree * problem.batch;
        const uint32_t first = ((uint32_t)1 << problem.depth) - 1;
        call.keys[i] = ((uint32_t)tree << problem.depth) +
                       ((cmm_given_leaf(&problem, token, tree) - first) & first); /* no path is refused, but sorted */
        call.ids[i] = (uint32_t)token;
    }
}

/* ---- dz, activations, dx ------------------------------------------------------------------------------------------- */

/* The sums over the warp of N numbers that each lane has: number r is in lane r * (32 / N). In each step a lane keeps half of
 * its numbers and gives away the others, so that there are some N + 4 steps instead of 5 N. */
template <int N> __device__ inline float warp_sums(float (&values)[N], int lane)
{
    int distance = 16;
#pragma unroll
    for (int kept = N / 2; kept >= 1; kept /= 2, distance /= 2) {
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < kept; i++) {
            const float away = upper ? values[i] : values[i + kept], own = upper ? values[i + kept] : values[i];
            values[i] = own + __shfl_xor_sync(0xffffffffu, away, distance);
        }
    }
#pragma unroll
    for (; distance > 0; distance /= 2)
        values[0] += __shfl_xor_sync(0xffffffffu, values[0], distance);
    return values[0];
}

/* A warp to a token, whose dy and dx it holds in registers. */
template <typename T, int V, bool FULL>
__global__ void __launch_bounds__(32 * TOKEN_WARPS, V < 4 ? 2 : 1) backward_tokens(const backward call)
{
    constexpr int E = V * ELEMENTS<T>, ROWS = V < 2 ? 8 : V < 4 ? 4 : 2; /* rows on their way at a time */
    const cmm_cuda_problem &problem = call.problem;
    const cmm_backward &b = call.b;
    const int lane = threadIdx.x % 32;
    const matrix w_in = matrix_of<T>(problem.w_in, problem.d_in, problem.ld_in, lane);
    const matrix w_out = matrix_of<T>(problem.w_out, problem.d_out, problem.ld_out, lane);
    const int64_t visits = problem.trees * (problem.depth + 1);
    if (is_refused(problem))
        return;
    for (int64_t first = blockIdx.x * (int64_t)TOKENS; first < problem.batch; first += gridDim.x * (int64_t)TOKENS)
        for (int64_t place = first + threadIdx.x / 32; place < problem.batch && place < first + TOKENS;
             place += TOKEN_WARPS) {
            const int64_t token = call.token ? call.token[place] : place;
            float dy[E], dx[E];
            if (call.dz)
                load_x<T, V, FULL>(dy, (const T *)b.dy + token * problem.d_out, w_out.vectors, lane);
            clear(dx);
            if (b.dx && (b.accumulate & CMM_DX))
                load_x<T, V, FULL>(dx, (const T *)b.dx + token * problem.d_in, w_in.vectors, lane);
            for (int64_t start = 0; start < visits; start += 32) {
                const int count = (int)(visits - start < 32 ? visits - start : 32);
                const int64_t visit = token * visits + start + lane;
                unsigned row = 0;
                float z = 0;
                if (lane < count) {
                    const unsigned tree = (unsigned)(start + lane) / (unsigned)(problem.depth + 1);
                    row = tree * (unsigned)problem.nodes + (unsigned)problem.path[visit];
                    z = ((const float *)b.logits)[visit];
                }
                if (call.a && lane < count)
                    ((float *)call.a)[visit] = activate(problem.activation, z);
                if (!call.dz)
                    continue;
                float da = 0;
                auto dots = [&](int s, auto rows) {
                    constexpr int COUNT = decltype(rows)::value;
                    uint4 words[COUNT][V];
#pragma unroll
                    for (int r = 0; r < COUNT; r++)
                        load_row<V, FULL>(words[r], w_out, __shfl_sync(0xffffffffu, row, s + r), lane);
                    float sums[COUNT];
#pragma unroll
                    for (int r = 0; r < COUNT; r++)
                        sums[r] = dot_in_lane<T, V>(words[r], dy);
                    const float sum = warp_sums(sums, lane);
                    const float own = __shfl_sync(0xffffffffu, sum, (lane - s) * (32 / COUNT));
                    da = lane >= s && lane < s + COUNT ? own : da;
                };
                int s = 0;
                for (; s + ROWS <= count; s += ROWS)
                    dots(s, constant<ROWS>());
                for (; s < count; s++)
                    dots(s, constant<1>());
                const float dz = differentiate(problem.activation, z) * da;
                if (lane < count)
                    ((float *)call.dz)[visit] = dz;
                if (!b.dx)
                    continue;
                auto add_rows = [&](int s, auto rows) {
                    constexpr int COUNT = decltype(rows)::value;
                    uint4 words[COUNT][V];
#pragma unroll
                    for (int r = 0; r < COUNT; r++)
                        load_row<V, FULL>(words[r], w_in, __shfl_sync(0xffffffffu, row, s + r), lane);
#pragma unroll
                    for (int r = 0; r < COUNT; r++) {
                        const float c = __shfl_sync(0xffffffffu, dz, s + r);
#pragma unroll
                        for (int v = 0; v < V; v++) {
                            float w[ELEMENTS<T>];
                            unpack(words[r][v], w, T());
#pragma unroll
                            for (int e = 0; e < ELEMENTS<T>; e++)
                                dx[v * ELEMENTS<T> + e] = fma_(c, w[e], dx[v * ELEMENTS<T> + e]);
                        }
                    }
                };
                for (s = 0; s + ROWS <= count; s += ROWS)
                    add_rows(s, constant<ROWS>());
                for (; s < count; s++)
                    add_rows(s, constant<1>());
            }
            if (b.dx)
                store_y<T, V, FULL>((T *)b.dx + token * problem.d_in, dx, w_in.vectors, lane);
        }
}

/* Any rows: a block to a token, whose warps share its nodes, and then its threads the columns of dx. */
template <typename T> __global__ void __launch_bounds__(128) backward_tokens_generic(const backward call)
{
    using A = typename accumulator<T>::type;
    const cmm_cuda_problem &problem = call.problem;
    const cmm_backward &b = call.b;
    const int lane = threadIdx.x % 32;
    const int64_t levels = problem.depth + 1, visits = problem.trees * levels;
    if (is_refused(problem))
        return;
    for (int64_t token = blockIdx.x; token < problem.batch; token += gridDim.x) {
        const T *const dy = (const T *)b.dy + token * problem.d_out;
        A *const dz = (A *)call.dz + token * visits;
        for (int64_t i = threadIdx.x / 32; i < visits; i += blockDim.x / 32) {
            const int64_t visit = token * visits + i;
            const A z = ((const A *)b.logits)[visit];
            if (call.a && lane == 0)
                ((A *)call.a)[visit] = activate(problem.activation, z);
            if (!call.dz)
                continue;
            const int64_t row = i / levels * problem.nodes + problem.path[visit];
            const T *const w = (const T *)problem.w_out + row * problem.ld_out;
            A sum = 0;
            for (int64_t o = lane; o < problem.d_out; o += 32)
                sum = fma_(widen(w[o]), widen(dy[o]), sum);
            sum = warp_sum(sum);
            if (lane == 0)
                dz[i] = differentiate(problem.activation, z) * sum;
        }
        if (!b.dx)
            continue;
        __syncthreads();
        for (int64_t column = threadIdx.x; column < problem.d_in; column += blockDim.x) {
            T *const dx = (T *)b.dx + token * problem.d_in + column;
            A sum = b.accumulate & CMM_DX ? widen(*dx) : (A)0;
            for (int64_t i = 0; i < visits; i++) {
                const int64_t row = i / levels * problem.nodes + problem.path[token * visits + i];
                sum = fma_(dz[i], widen(((const T *)problem.w_in)[row * problem.ld_in + column]), sum);
            }
            *dx = narrow<T>(sum);
        }
    }
}

/* ---- rows of nodes that nobody visits ------------------------------------------------------------------------------ */

/* Whether a token is at a node; a warp asks. */
__device__ inline bool is_visited(const backward &call, int64_t neuron, int lane)
{
    const cmm_cuda_problem &problem = call.problem;
    if (problem.batch == 0 || problem.depth == 0)
        return problem.batch > 0;
    const int64_t group = neuron / problem.nodes, node = neuron - group * problem.nodes;
    const int down = problem.depth - (63 - __clzll(node + 1));
    const int64_t first = ((node + 1) << down) - ((int64_t)1 << problem.depth), end = first + ((int64_t)1 << down);
    int64_t below = 0, above = problem.batch; /* the first place whose leaf is not before these */
    while (below < above) {
        const int64_t step = (above - below + 31) / 32, probe = below + step * (lane + 1) - 1;
        const bool before = probe < above && leaf_at(call, group, probe) < first;
        const int probes = __popc(__ballot_sync(0xffffffffu, before)); /* that many in a row are before */
        const int64_t from = below + step * probes;
        above = from + step - 1 < above ? from + step - 1 : above;
        below = from;
    }
    return below < problem.batch && leaf_at(call, group, below) < end;
}

template <typename A> __global__ void __launch_bounds__(256) backward_zeros(const backward call, const three_sums all)
{
    const cmm_cuda_problem &problem = call.problem;
    const int lane = threadIdx.x % 32;
    const int64_t warps = gridDim.x * (int64_t)(blockDim.x / 32), neurons = problem.trees * problem.nodes;
    if (is_refused(problem))
        return;
    for (int64_t neuron = blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32; neuron < neurons; neuron += warps)
        if (!is_visited(call, neuron, lane))
            for (const sums &s : all.of)
                for (int64_t column = lane; s.out && !s.adds && column < s.d; column += 32)
                    ((A *)s.out)[neuron * s.ld + column] = 0;
}

/* ---- rows of nodes ------------------------------------------------------------------------------------------------- */

/* Two or four numbers of 16 bytes, or one after the other where they do not lie so. */
template <typename A, int V> __device__ inline void store_sums(A *to, const A (&sum)[V], int64_t columns, bool whole)
{
    if (whole) {
        uint4 words;
        memcpy(&words, sum, sizeof words);
        *(uint4 *)to = words;
    } else {
#pragma unroll
        for (int v = 0; v < V; v++)
            if (v < columns)
                to[v] = sum[v];
    }
}

/* A thread's columns of a token. */
template <typename T, int V, bool WHOLE>
__device__ inline void load_columns(T (&values)[V], const T *from, int64_t columns)
{
    if (WHOLE) {
        if (columns > 0) {
            if (sizeof(T) * V == 8) {
                const uint2 words = *(const uint2 *)from;
                memcpy(values, &words, sizeof words);
            } else {
                const uint4 words = *(const uint4 *)from;
                memcpy(values, &words, sizeof words);
            }
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v++)
            if (v < columns)
                values[v] = from[v];
    }
}

/* Rows first .. first + N - 1 of the paths of a group's tokens, for a stretch and a tile of columns of one weight. */
template <typename T, int N, bool WHOLE>
__global__ void __launch_bounds__(TILE) backward_rows(const backward call, const three_sums all)
{
    using A = typename accumulator<T>::type;
    constexpr int V = COLUMNS<T>, PAD = (N + V - 1) / V * V;
    __shared__ __align__(16) A coefficients[PLACES][PAD];
    __shared__ int64_t tokens[PLACES];
    __shared__ int keeps[PLACES]; /* rows that the next token is at, too */
    const cmm_cuda_problem &problem = call.problem;
    const int64_t chunks = (call.rows + N - 1) / N, pieces = call.groups * chunks * call.stretches * all.tiles;
    if (is_refused(problem))
        return;
    for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        int64_t tile = piece % all.tiles, rest = piece / all.tiles;
        const int64_t stretch = rest % call.stretches, part = rest / call.stretches;
        const int64_t chunk = part % chunks, group = part / chunks;
        const int which = tile < all.of[0].tiles ? 0 : tile < all.of[0].tiles + all.of[1].tiles ? 1 : 2;
        tile -= which > 0 ? all.of[0].tiles : 0;
        tile -= which > 1 ? all.of[1].tiles : 0;
        const sums &s = all.of[which];
        const int first = (int)chunk * N, count = call.rows - first < N ? (int)(call.rows - first) : N;
        const int64_t begin = stretch * call.stretch;
        const int64_t end = begin + call.stretch < problem.batch ? begin + call.stretch : problem.batch;
        int open = shared_rows(call, group, begin - 1, begin); /* so many rows began in a stretch before */

        /* Where a row's sum goes: to the gradient, or to the parts of this stretch, first those of rows that are open. */
        auto part_of = [&](int row, int slot) {
            return (A *)s.parts + (((group * call.stretches + stretch) * 2 + slot) * call.rows + row) * s.padded;
        };
        auto out_of = [&](int row, int64_t place) {
            const int64_t leaf = problem.depth == 0 ? 0 : leaf_at(call, group, place);
            return (A *)s.out + neuron_of(call, group, row, leaf) * s.ld;
        };

        const int64_t column = (tile * TILE + threadIdx.x) * V, columns = s.d - column; /* not all may be there */
        A sum[N][V];
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int v = 0; v < V; v++)
                sum[r][v] = 0;
        A bias[V] = {0};

        for (int64_t from = begin; from < end; from += PLACES) {
            const int these = (int)(end - from < PLACES ? end - from : PLACES);
            __syncthreads();
            for (int i = threadIdx.x; i < these; i += TILE) {
                const int64_t place = from + i;
                tokens[i] = call.token ? call.token[group * problem.batch + place] : place;
                keeps[i] = shared_rows(call, group, place, place + 1);
            }
            __syncthreads();
            for (int i = threadIdx.x; i < these * N; i += TILE) {
                const int place = i / N, r = i - place * N;
                coefficients[place][r] =
                    r < count ? ((const A *)s.c)[(tokens[place] * call.groups + group) * call.rows + first + r] : (A)0;
            }
            __syncthreads();

            if (which == 2) { /* a thread for each row; in parts a row is a whole vector */
                const int row = first + threadIdx.x;
                for (int i = 0; threadIdx.x < count && i < these; i++) {
                    bias[0] += coefficients[i][threadIdx.x];
                    if (row >= keeps[i]) {
                        if (row < open)
                            store_sums(part_of(row, 0), bias, V, true);
                        else {
                            A *const to = out_of(row, from + i);
                            *to = s.adds ? *to + bias[0] : bias[0];
                        }
                        bias[0] = 0;
                        open = keeps[i] < open ? keeps[i] : open;
                    }
                }
                continue;
            }
            for (int at = 0; at < these; at += IN_FLIGHT) {
                T x[IN_FLIGHT][V];
#pragma unroll
                for (int i = 0; i < IN_FLIGHT; i++) {
#pragma unroll
                    for (int v = 0; v < V; v++)
                        x[i][v] = narrow<T>((A)0);
                    if (at + i < these)
                        load_columns<T, V, WHOLE>(x[i], (const T *)s.tokens + tokens[at + i] * s.d + column, columns);
                }
#pragma unroll
                for (int i = 0; i < IN_FLIGHT; i++) {
                    if (at + i >= these)
                        break;
                    A c[PAD];
#pragma unroll
                    for (int r = 0; r < PAD; r += V) {
                        const uint4 words = *(const uint4 *)&coefficients[at + i][r];
                        memcpy(c + r, &words, sizeof words);
                    }
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        const A value = widen(x[i][v]);
#pragma unroll
                        for (int r = 0; r < N; r++)
                            sum[r][v] = fma_(c[r], value, sum[r][v]);
                    }
                    const int kept = keeps[at + i];
                    if (kept >= first + count)
                        continue;
                    const int64_t place = from + at + i;
#pragma unroll
                    for (int r = 0; r < N; r++)
                        if (first + r >= kept && r < count) {
                            const bool done = first + r >= open;
                            A *const to = (done ? out_of(first + r, place) : part_of(first + r, 0)) + column;
                            if (done && s.adds) {
#pragma unroll
                                for (int v = 0; v < V; v++)
                                    if (v < columns)
                                        sum[r][v] += to[v];
                            }
                            store_sums(to, sum[r], columns, (WHOLE || !done) && columns > 0);
#pragma unroll
                            for (int v = 0; v < V; v++)
                                sum[r][v] = 0;
                        }
                    open = kept < open ? kept : open;
                }
            }
        }
        const int kept = shared_rows(call, group, end - 1, end); /* go on in the next stretch */
        if (which == 2) {
            const int row = first + threadIdx.x;
            if (threadIdx.x < count && row < kept)
                store_sums(part_of(row, row < open ? 0 : 1), bias, V, true);
            continue;
        }
#pragma unroll
        for (int r = 0; r < N; r++)
            if (first + r < kept && r < count)
                store_sums(part_of(first + r, first + r < open ? 0 : 1) + column, sum[r], columns, columns > 0);
    }
}

/* A row that begins in a stretch and goes on in others: add up its parts. */
template <typename A> __global__ void __launch_bounds__(TILE) backward_parts(const backward call, const three_sums all)
{
    constexpr int V = 16 / (int)sizeof(A);
    const cmm_cuda_problem &problem = call.problem;
    const int64_t pieces = call.groups * (call.stretches - 1) * call.rows * all.tiles;
    if (is_refused(problem))
        return;
    for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
        int64_t tile = piece % all.tiles, rest = piece / all.tiles;
        const int64_t row = rest % call.rows;
        rest /= call.rows;
        const int64_t stretch = rest % (call.stretches - 1), group = rest / (call.stretches - 1);
        const int64_t begin = stretch * call.stretch, place = begin + call.stretch - 1;
        const bool goes_on = row < shared_rows(call, group, place, place + 1);
        const bool began_before = row < shared_rows(call, group, begin - 1, place);
        if (!goes_on || began_before)
            continue;
        int64_t end = stretch + 2; /* the first stretch that it is not in */
        for (int more = TILE; more == TILE;) {
            const int64_t other = end + threadIdx.x;
            more = __syncthreads_count(other < call.stretches &&
                                       row < shared_rows(call, group, place, other * call.stretch));
            end += more;
        }
        const int which = tile < all.of[0].tiles ? 0 : tile < all.of[0].tiles + all.of[1].tiles ? 1 : 2;
        tile -= which > 0 ? all.of[0].tiles : 0;
        tile -= which > 1 ? all.of[1].tiles : 0;
        const sums &s = all.of[which];
        const int64_t leaf = problem.depth == 0 ? 0 : leaf_at(call, group, place);
        A *const out = (A *)s.out + neuron_of(call, group, row, leaf) * s.ld;
        const int64_t step = 2 * call.rows * s.padded; /* from a stretch's parts to the next one's */
        const A *const parts = (const A *)s.parts + ((group * call.stretches + stretch) * 2 * call.rows + row) * s.padded;
        const int64_t column = (tile * TILE + threadIdx.x) * V;
        if (column >= s.d)
            continue;
        A sum[V];
        uint4 words = *(const uint4 *)(parts + call.rows * s.padded + column);
        memcpy(sum, &words, sizeof words);
#pragma unroll 16
        for (int64_t other = stretch + 1; other < end; other++) {
            A more[V];
            words = *(const uint4 *)(parts + (other - stretch) * step + column);
            memcpy(more, &words, sizeof words);
#pragma unroll
            for (int v = 0; v < V; v++)
                sum[v] += more[v];
        }
#pragma unroll
        for (int v = 0; v < V; v++)
            if (column + v < s.d)
                out[column + v] = s.adds ? out[column + v] + sum[v] : sum[v];
    }
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

static int64_t tiles_for(int64_t d, int columns)
{
    return (d + TILE * columns - 1) / (TILE * columns);
}

static int64_t rows_at_once(int64_t rows)
{
    const int64_t chunks = (rows + 11) / 12, even = (rows + chunks - 1) / chunks;
    return even <= 2 ? 2 : even <= 5 ? 5 : even <= 6 ? 6 : even <= 8 ? 8 : 12;
}

/* The gradients of rows, and how many pieces of columns they are. */
static three_sums find_sums(const backward &call)
{
    const cmm_backward &b = call.b;
    const int64_t size = cmm_logit_size(call.problem.dtype), whole = 16 / size;
    const int columns = call.problem.dtype == CMM_F64 ? 2 : 4;
    three_sums all = {};
    all.of[0] = {call.problem.x, call.dz, b.dw_in, call.parts[0], call.problem.d_in, b.ld_dw_in, 0, 0,
                 b.accumulate & CMM_DW_IN};
    all.of[1] = {b.dy, call.a, b.dw_out, call.parts[1], call.problem.d_out, b.ld_dw_out, 0, 0,
                 b.accumulate & CMM_DW_OUT};
    all.of[2] = {nullptr, call.dz, b.dbias, call.parts[2], 1, 1, 0, 0, b.accumulate & CMM_DBIAS};
    for (sums &s : all.of) {
        s.padded = cmm_padded(s.d, whole);
        s.tiles = s.out ? tiles_for(s.d, columns) : 0;
        all.tiles += s.tiles;
    }
    return all;
}

static void *take(char *memory, int64_t *used, int64_t bytes)
{
    void *const piece = memory ? memory + *used : nullptr;
    *used += cmm_padded(bytes, CMM_CUDA_ALIGNMENT);
    return piece;
}

static cudaError_t sort(backward *call, int64_t pairs, cudaStream_t stream)
{
    int bits = call->problem.depth;
    while (((int64_t)1 << (bits - call->problem.depth)) < call->groups)
        bits++;
    return cub::DeviceRadixSort::SortPairs(call->sort, call->sort_bytes, call->keys, call->leaf, call->ids, call->token,
                                           (int)pairs, 0, bits, stream);
}

/* Divide the workspace; with NULL, only say how many bytes that takes; -1: so many tokens cannot be sorted. */
static int64_t lay_out(const cmm_backward *b, char *memory, backward *call)
{
    const cmm_cuda_problem *const problem = cuda_problem(b->problem);
    const int64_t size = cmm_logit_size(problem->dtype), batch = problem->batch;
    const int is_forest = problem->depth == 0;
    call->problem = *problem;
    call->b = *b;
    call->groups = is_forest ? 1 : problem->trees;
    call->rows = is_forest ? problem->trees : problem->depth + 1;
    if (batch == 0)
        return 0;
    const int64_t pairs = batch * problem->trees;
    int64_t used = 0;
    if (!is_forest) {
        if (pairs > INT32_MAX || problem->trees > (int64_t)UINT32_MAX >> problem->depth)
            return -1;
        call->keys = (uint32_t *)take(memory, &used, pairs * 4);
        call->leaf = (uint32_t *)take(memory, &used, pairs * 4);
        call->ids = (uint32_t *)take(memory, &used, pairs * 4);
        call->token = (uint32_t *)take(memory, &used, pairs * 4);
        if (sort(call, pairs, nullptr) != cudaSuccess) /* without memory it says how much it takes */
            return -2; /* what the device said, maybe of an earlier call */
        call->sort = take(memory, &used, (int64_t)call->sort_bytes);
    }
    const int64_t coefficients = pairs * (problem->depth + 1) * size;
    call->dz = b->dx || b->dw_in || b->dbias ? take(memory, &used, coefficients) : nullptr;
    call->a = b->dw_out ? take(memory, &used, coefficients) : nullptr;

    const three_sums all = find_sums(*call);
    const int64_t chunks = (call->rows + rows_at_once(call->rows) - 1) / rows_at_once(call->rows);
    const int columns = problem->dtype == CMM_F64 ? 2 : 4;
    /* as if all were wanted, so that what is wanted changes no bit */
    const int64_t tiles = tiles_for(problem->d_in, columns) + tiles_for(problem->d_out, columns) + 1;
    const int64_t each = call->groups * chunks * tiles;
    int64_t most = (PIECES + each - 1) / each;
    most = most < MOST_STRETCHES ? most : MOST_STRETCHES;
    call->stretch = cmm_padded((batch + most - 1) / most, IN_FLIGHT);
    call->stretch = call->stretch < SHORTEST ? SHORTEST : call->stretch;
    call->stretches = (batch + call->stretch - 1) / call->stretch;
    for (int i = 0; i < 3; i++)
        call->parts[i] = call->stretches > 1 && all.of[i].out
                             ? take(memory, &used, call->groups * call->stretches * 2 * call->rows * all.of[i].padded * size)
                             : nullptr;
    return used;
}

static int64_t workspace(const cmm_backward *b)
{
    backward call = {};
    return lay_out(b, nullptr, &call);
}

template <typename T, int V, bool FULL> struct tokens_of {
    static cudaError_t go(const cmm_cuda_problem *problem, backward *call, cudaStream_t stream)
    {
        void *arguments[] = {call};
        return cudaLaunchKernel((const void *)backward_tokens<T, V, FULL>,
                                blocks_for((problem->batch + TOKENS - 1) / TOKENS), 32 * TOKEN_WARPS, arguments, 0,
                                stream);
    }
};

/* Whether every tile of a weight can be read and written in whole vectors. */
template <typename T> static bool is_whole(const sums &s)
{
    constexpr int V = COLUMNS<T>;
    return !s.out || (s.d % V == 0 && s.ld % V == 0 && (uintptr_t)s.tokens % (V * sizeof(T)) == 0 &&
                      (uintptr_t)s.out % 16 == 0);
}

template <typename T, int N>
static const void *rows_kernel_of(bool whole)
{
    return whole ? (const void *)backward_rows<T, N, true> : (const void *)backward_rows<T, N, false>;
}

template <typename T> static const void *rows_kernel(int64_t at_once, bool whole)
{
    return at_once == 2   ? rows_kernel_of<T, 2>(whole)
           : at_once == 5 ? rows_kernel_of<T, 5>(whole)
           : at_once == 6 ? rows_kernel_of<T, 6>(whole)
           : at_once == 8 ? rows_kernel_of<T, 8>(whole)
                          : rows_kernel_of<T, 12>(whole);
}

template <typename T> static cudaError_t launch(backward *call, cudaStream_t stream)
{
    using A = typename accumulator<T>::type;
    const cmm_cuda_problem *const problem = &call->problem;
    three_sums all = find_sums(*call);
    void *arguments[] = {call, &all};
    cudaError_t error = cudaSuccess;
    if (problem->batch > 0 && problem->depth > 0) {
        const int64_t pairs = problem->batch * problem->trees;
        error = cudaLaunchKernel((const void *)backward_keys, blocks_for((pairs + 255) / 256), 256, arguments, 0, stream);
        if (error == cudaSuccess)
            error = sort(call, pairs, stream);
    }
    if (problem->batch > 0 && error == cudaSuccess) {
        if (rows_fit(problem))
            error = for_rows<tokens_of>(problem, call, stream);
        else
            error = cudaLaunchKernel((const void *)backward_tokens_generic<T>, blocks_for(problem->batch), 128,
                                     arguments, 0, stream);
    }
    if (all.tiles == 0 || error != cudaSuccess)
        return error;
    const int64_t neurons = problem->trees * problem->nodes;
    error = cudaLaunchKernel((const void *)backward_zeros<A>, blocks_for((neurons + 7) / 8), 256, arguments, 0, stream);
    if (problem->batch > 0 && error == cudaSuccess) {
        const int64_t at_once = rows_at_once(call->rows), chunks = (call->rows + at_once - 1) / at_once;
        error = cudaLaunchKernel(rows_kernel<T>(at_once, is_whole<T>(all.of[0]) && is_whole<T>(all.of[1])),
                                 blocks_for(call->groups * chunks * call->stretches * all.tiles), TILE, arguments, 0,
                                 stream);
        if (call->stretches > 1 && error == cudaSuccess)
            error = cudaLaunchKernel((const void *)backward_parts<A>,
                                     blocks_for(call->groups * (call->stretches - 1) * call->rows * all.tiles), TILE,
                                     arguments, 0, stream);
    }
    return error;
}

static cudaError_t run(const cmm_backward *b, cudaStream_t stream, void *memory)
{
    backward call = {};
    if (lay_out(b, (char *)memory, &call) < 0)
        return cudaErrorUnknown;
    return CMM_CUDA_FOR_DTYPE(b->problem->dtype, launch, &call, stream);
}

extern const cmm_cuda_kernel cmm_cuda_backward_by_node = {
    cuda_traits(CMM_OP_BACKWARD, "by_node", "cuda", "", nullptr, nullptr), nullptr, nullptr, workspace, run};
