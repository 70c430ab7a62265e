/* A forest as a dense layer of two products on tensor cores; between them every tree is walked in registers and shared
 * memory, and what is off the path is 0. For shallow trees, whose rows cost more to gather than to multiply.
 * Work:   2 (d_in + d_out) flops for every neuron, visited or not; an activation for each visited one.
 * Memory: x and y once; the weights from L2; the coefficients of every neuron, 2 bytes each, to the workspace and back.
 * Sums:   float, on tensor cores, 16 products at a time in order of i, then the bias; y in order of the neurons, 16 at a
 *         time. A token's bits depend neither on the batch nor on its place, but are not those of warp_row.cuh.
 * Limit:  tensor cores; with few tokens, how fast the operands of one tile come. A block does a tile of 64 or 128 tokens x
 *         64 to 256 neurons, whole trees, and then of as many outputs. One thread asks the copy engine for 64 columns of
 *         either operand at a time, the second one for two blocks at once; each warpgroup multiplies for itself, so that
 *         one multiplies while the other one walks.
 *
 * A coefficient is rounded to the type of the layer, on the path never to a 0 of positive sign: so the coefficients tell
 * which neurons were visited. A product with 0 lets an infinity or NaN of a row that was not visited through as NaN:
 * wherever a sum is not finite, it is taken again along the path alone (along_path()). */
#include "../scratch.h"
#include "warp_row.cuh"
#include "wgmma.cuh"

constexpr int DEPTHS = 8;  /* of trees that fit in a tile */
constexpr int STEP = 64;   /* what is summed over, at a time: rows of 128 bytes */
constexpr int BOX_BYTES = 64 * STEP * 2; /* what the copy engine brings at a time: 64 rows of STEP numbers */
constexpr int64_t HIDDEN_BYTES = 512 << 20; /* of coefficients at a time, which bounds the workspace */

/* Sizes of a tile. Wide: 128 tokens x 256 columns, two warpgroups, a block on each processor; middle: 128 x 192, of the
 * second product alone, where that leaves fewer processors idle. For fewer tokens 64 x 128 or 64 x 64, so that more
 * processors have a tile: less is brought to each. Two such blocks fit on a processor, of which one may be of the next
 * kernel. Blocks of all but tiny tiles come in clusters of two. */
enum { TINY, NARROW, MIDDLE, WIDE, SIZES };
template <int SIZE> struct block_of {
    static constexpr int WARPGROUPS = SIZE >= MIDDLE ? 2 : 1, WARPS = 4 * WARPGROUPS, TOKENS = 64 * WARPGROUPS;
    static constexpr int COLUMNS = SIZE == WIDE ? 256 : SIZE == MIDDLE ? 192 : SIZE == NARROW ? 128 : 64;
    static constexpr int CLUSTER = SIZE == TINY ? 1 : 2;
    /* The copies are asked for by one more warp; where there are two warpgroups by a third one, which gives its registers
     * away. */
    static constexpr int THREADS = 32 * WARPS + (WARPGROUPS > 1 ? 128 : 32);
};

/* How trees of a depth lie in the columns: one after the other, from tree to tree PITCH columns, of which the last one is
 * always 0 where that makes them a power of 2. A tile has whole trees, as many as fit in its columns. So a column has the
 * same place in the sums whatever the tile. */
template <int DEPTH, int SIZE> struct tile_of {
    static constexpr int NODES = (2 << DEPTH) - 1, LEVELS = DEPTH + 1, PITCH = NODES + (DEPTH >= 5);
    static constexpr int BOXES = (block_of<SIZE>::COLUMNS < PITCH ? PITCH : block_of<SIZE>::COLUMNS) / 64;
    static constexpr int TREES = (DEPTH == 0 ? 256 : DEPTH == 1 ? 80 : 256 / (NODES + 1)) * BOXES / 4;
    static constexpr int COLUMNS = TREES * PITCH, WIDTH = (COLUMNS + 7) / 8 * 8; /* of the product */
};

/* The size of the first product's tiles instead of one that it does not have: of those in which a tree leaves room for no
 * second one the smallest. */
constexpr int hidden_size(int depth, int size)
{
    return size == TINY && depth >= 6 ? NARROW : size == MIDDLE ? WIDE : size;
}

/* Shared memory: slots of both operands, a buffer for each warp that multiplies, barriers. The rows of 8 tokens' logits are
 * apart so that those that a half warp writes share few banks or none, and with room for the ways through the trees (see
 * routing::ways()); those of 8 rows of outputs so that they share none. */
template <int SIZE, int BOXES_, int PITCH_BYTES, int STAGES_> struct memory_of {
    static constexpr int BOXES = BOXES_, STAGES = STAGES_;
    static constexpr int SLOT_BYTES = (block_of<SIZE>::WARPGROUPS + BOXES) * BOX_BYTES, WARP_BYTES = 8 * PITCH_BYTES;
    static constexpr int BYTES = STAGES * (SLOT_BYTES + 16) + block_of<SIZE>::WARPS * WARP_BYTES;
};

template <int BOXES> constexpr int LOGITS_PITCH = BOXES * 64 + (BOXES == 2 ? 4 : 8); /* floats */
template <int DEPTH, int SIZE>
using hidden_memory = memory_of<SIZE, tile_of<DEPTH, SIZE>::BOXES, LOGITS_PITCH<tile_of<DEPTH, SIZE>::BOXES> * 4,
                                SIZE == WIDE ? 3 : SIZE == NARROW ? 4 : 6>;

template <int SIZE> constexpr int OUTPUTS_PITCH = block_of<SIZE>::COLUMNS * 2 + 16; /* bytes */
template <int SIZE>
using outputs_memory = memory_of<SIZE, block_of<SIZE>::COLUMNS / 64, OUTPUTS_PITCH<SIZE>,
                                 SIZE == TINY ? 7 : SIZE == MIDDLE ? 5 : 4>;

/* A part of the tokens, few enough for the workspace. */
struct part {
    int64_t first;
    int size;
    unsigned short *hidden; /* [size][pitch], bits of the coefficients */
    int pitch, tree_pitch;  /* columns from token to token, from tree to tree */
};

/* The row of w_in or w_out that belongs to a column; to one that is always 0 the next tree's first. */
__device__ inline int row_of(int column, int depth)
{
    return depth >= 5 ? column - (column >> (depth + 1)) : column;
}

#if CMM_HAS_WGMMA

template <typename T> __device__ inline unsigned short bits_of(float v)
{
    const T narrow_ = narrow<T>(v);
    return *(const unsigned short *)&narrow_;
}

/* All set: an infinity or NaN. */
template <typename T> constexpr unsigned EXPONENT = 0x7c00;
template <> constexpr unsigned EXPONENT<__nv_bfloat16> = 0x7f80;

template <typename T> __device__ inline float value_of(unsigned short bits)
{
    return widen(*(const T *)&bits);
}

/* What each of 32 lanes has of 64, 128 or 256 numbers of 16 bits. */
template <int BOXES> struct share_of_row {
    using type = uint4;
};
template <> struct share_of_row<2> {
    using type = uint2;
};
template <> struct share_of_row<1> {
    using type = uint32_t;
};

/* x Phi(x) to a relative error of 2^-15, where the coefficient will be rounded to 2^-9 or 2^-12: with a = |x|, t = 1 / (1 +
 * 0.31 a) and Q = 1 - Phi, Q(a) = exp(-a^2/2) times a polynomial in t, whose relative error is 2^-17.7 up to 14.5, from
 * where on the result is 0. As cmm_act_gelu_f32() it is NaN at -infinity. */
__device__ inline float gelu_for_16_bits(float x)
{
    const float a = fminf(fabsf(x), 14.5f), t = __fdividef(1.0f, fma_(a, 0.31f, 1.0f));
    float q = fma_(t, -0.07392938f, 0.18045105f);
    q = fma_(t, q, 0.01574392f);
    q = fma_(t, q, 0.1334302f);
    q = fma_(t, q, 0.12044118f);
    q = fma_(t, q, 0.12386071f);
    float decay;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(decay) : "f"(a * a * -0.72134752f));
    return (x < 0 ? x * 0 : x) - a * t * q * decay;
}

/* The first product: logits, which the epilogue makes coefficients of. */
template <typename T, int DEPTH, int SIZE> struct routing : block_of<SIZE>, hidden_memory<DEPTH, SIZE> {
    using type = T;
    using tile = tile_of<DEPTH, SIZE>;
    static constexpr int BOXES = tile::BOXES, PITCH = LOGITS_PITCH<BOXES>;
    static constexpr int WIDTH = tile::WIDTH, BY_ROWS = 0;
    /* Rows of coefficients that are made at a time, so that the lanes have work: TASKS are visited neurons. */
    static constexpr int AT_MOST = (DEPTH >= 5 ? 8 : DEPTH == 4 ? 4 : DEPTH >= 2 ? 2 : 1) * 4 / BOXES;
    static constexpr int AT_ONCE = AT_MOST < 8 ? AT_MOST : 8;
    static constexpr int TASKS = AT_ONCE * tile::TREES * tile::LEVELS;

    static __device__ inline int steps(const cmm_cuda_problem &problem, const part &)
    {
        return (int)((problem.d_in + STEP - 1) / STEP);
    }

    static __device__ inline int tiles(const cmm_cuda_problem &problem, const part &)
    {
        return (int)((problem.trees + tile::TREES - 1) / tile::TREES);
    }

    /* 64 rows of w_in: the first of their columns, the first row. */
    static __device__ inline int2 place_of_box(const cmm_cuda_problem &, const part &, int tile_index, int step, int box)
    {
        return make_int2(step * STEP, row_of(tile_index * tile::COLUMNS + box * 64, DEPTH));
    }

    static __device__ inline uint64_t at(uint32_t b, int sixteenth) { return operand(b + sixteenth * 32, 1024, 16); }

    /* The way through a tree, a bit for each level, is kept behind a row's logits. */
    static __device__ inline unsigned char *ways(float *row) { return (unsigned char *)(row + WIDTH); }

    static __device__ inline void finish(const cmm_cuda_problem &problem, const part &p, const float (&d)[WIDTH / 2],
                                         char *memory, int tile_index, int first_row, int lane)
    {
        using words = typename share_of_row<BOXES>::type; /* a lane's part of a row of coefficients */
        constexpr int EACH = (TASKS + 31) / 32;
        float *const logits = (float *)memory;
        const T *const bias = problem.bias ? (const T *)problem.bias + (int64_t)tile_index * tile::TREES * tile::NODES : nullptr;
        const float threshold = cmm_threshold_f32(problem.tie);
        const int first_tree = tile_index * tile::TREES, trees = (int)problem.trees - first_tree;
        const bool wants_path = problem.nodes_out || problem.logits_out;
        uint32_t tasks[EACH]; /* which visited neuron of the rows at hand is a lane's i-th one; 0: there is none */
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int task = i * 32 + lane, tree = task / tile::LEVELS % tile::TREES;
            const int among = task / (tile::LEVELS * tile::TREES), level = task % tile::LEVELS;
            tasks[i] = task < TASKS && tree < trees ? 1u << 31 | (uint32_t)(among << 24 | tree << 16 |
                                                                            tree * tile::PITCH << 8 | level)
                                                    : 0;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) { /* a lane has columns 2 (lane % 4), + 1, of every 8, of rows lane / 4 and + 8 */
            const int above = first_row + 8 * half;
            __syncwarp();
#pragma unroll
            for (int c = 0; c < WIDTH / 8; c++)
                *(float2 *)(logits + lane / 4 * PITCH + 8 * c + lane % 4 * 2) =
                    make_float2(d[4 * c + 2 * half], d[4 * c + 2 * half + 1]);
            __syncwarp();
            if (DEPTH > 0 && problem.path) {
                for (int task = lane; task < 8 * tile::TREES; task += 32) {
                    const int row = task / tile::TREES, tree = task % tile::TREES;
                    const uint32_t leaf = cmm_given_leaf(&problem, p.first + min(above + row, p.size - 1),
                                                         first_tree + min(tree, trees - 1));
                    ways(logits + row * PITCH)[tree] = (unsigned char)(leaf + 1 - (1u << DEPTH));
                }
                __syncwarp();
            } else if (DEPTH > 0) {
                /* A lane walks WALKS trees at the same time, so that their reads do not wait for each other; in place of a
                 * tree that there is not, the last one, again. */
                constexpr int ALL = 8 * tile::TREES, WALKS = ALL <= 32 ? 1 : ALL <= 64 ? 2 : 4;
#pragma unroll 1
                for (int task = lane; task < ALL; task += 32 * WALKS) {
                    int node[WALKS];
                    const float *row[WALKS];
                    int tree[WALKS];
#pragma unroll
                    for (int w = 0; w < WALKS; w++) {
                        const int walk = ALL % (32 * WALKS) == 0 ? task + 32 * w : min(task + 32 * w, ALL - 1);
                        row[w] = logits + walk / tile::TREES * PITCH;
                        tree[w] = walk % tile::TREES;
                        node[w] = 0;
                    }
#pragma unroll
                    for (int level = 0; level < DEPTH; level++)
#pragma unroll
                        for (int w = 0; w < WALKS; w++) {
                            const int own = min(tree[w], trees - 1);
                            float logit = row[w][own * tile::PITCH + node[w]];
                            if (bias)
                                logit += widen(bias[own * tile::NODES + node[w]]);
                            node[w] = 2 * node[w] + 1 + (logit > threshold);
                        }
#pragma unroll
                    for (int w = 0; w < WALKS; w++)
                        ways((float *)row[w])[tree[w]] = (unsigned char)(node[w] + 1 - (1 << DEPTH));
                }
                __syncwarp();
            }
#pragma unroll 1
            for (int rows = 0; rows < 8; rows += AT_ONCE) {
                float logit[EACH], a[EACH];
                int column[EACH];
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    const int level = tasks[i] & 255, first = tasks[i] >> 8 & 255, tree = tasks[i] >> 16 & 255;
                    float *const row = logits + (rows + (int)(tasks[i] >> 24 & 127)) * PITCH;
                    const int way = DEPTH > 0 ? ways(row)[tree] : 0;
                    column[i] = first + (1 << level) - 1 + (way >> (DEPTH - level));
                    logit[i] = row[column[i]];
                }
                if (bias)
#pragma unroll
                    for (int i = 0; i < EACH; i++)
                        logit[i] += widen(bias[column[i] - (int)(tasks[i] >> 16 & 255) * (tile::PITCH - tile::NODES)]);
                if (wants_path)
#pragma unroll
                    for (int i = 0; i < EACH; i++) {
                        const int tree = tasks[i] >> 16 & 255;
                        const int token = above + rows + (int)(tasks[i] >> 24 & 127);
                        if (!tasks[i] || token >= p.size)
                            continue;
                        const int64_t visit = ((p.first + token) * problem.trees + first_tree + tree) * tile::LEVELS +
                                              (tasks[i] & 255);
                        if (problem.nodes_out)
                            problem.nodes_out[visit] = column[i] - tree * tile::PITCH;
                        if (problem.logits_out)
                            ((float *)problem.logits_out)[visit] = logit[i];
                    }
                if (!problem.wants_y)
                    continue;
                if (problem.activation == CMM_GELU)
#pragma unroll
                    for (int i = 0; i < EACH; i++)
                        a[i] = gelu_for_16_bits(logit[i]);
                else
#pragma unroll
                    for (int i = 0; i < EACH; i++)
                        a[i] = activate(problem.activation, logit[i]);
                __syncwarp();
#pragma unroll
                for (int r = 0; r < AT_ONCE; r++)
                    ((words *)(logits + (rows + r) * PITCH))[lane] = words();
                __syncwarp();
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    const unsigned short bits = bits_of<T>(a[i]);
                    float *const row = logits + (rows + (int)(tasks[i] >> 24 & 127)) * PITCH;
                    if (tasks[i])
                        ((unsigned short *)row)[column[i]] = bits ? bits : 0x8000;
                }
                __syncwarp();
#pragma unroll
                for (int r = 0; r < AT_ONCE; r++) {
                    const int token = above + rows + r;
                    if (token < p.size && lane < tile::COLUMNS * 2 / (int)sizeof(words))
                        ((words *)(p.hidden + (int64_t)token * p.pitch + tile_index * tile::COLUMNS))[lane] =
                            ((const words *)(logits + (rows + r) * PITCH))[lane];
                }
            }
        }
    }
};

/* An output of a token, of the coefficients of its path alone; those that their type cannot hold are computed again. */
template <typename T>
__device__ inline float along_path(const cmm_cuda_problem &problem, const part &p, int token, int64_t column)
{
    const unsigned short *const hidden = p.hidden + (int64_t)token * p.pitch;
    const T *const w_in = (const T *)problem.w_in, *const w_out = (const T *)problem.w_out;
    const T *const x = (const T *)problem.x + (p.first + token) * problem.d_in;
    float sum = 0;
#pragma unroll 1
    for (int64_t tree = 0; tree < problem.trees; tree++)
#pragma unroll 1
        for (int64_t node = 0; node < problem.nodes; node++) {
            const unsigned short bits = hidden[tree * p.tree_pitch + node];
            if (!bits)
                continue;
            const int64_t row = tree * problem.nodes + node;
            float a = value_of<T>(bits);
            if (isinf(a)) {
                float logit = 0;
#pragma unroll 1
                for (int64_t i = 0; i < problem.d_in; i++)
                    logit = fma_(widen(w_in[row * problem.ld_in + i]), widen(x[i]), logit);
                if (problem.bias)
                    logit += widen(((const T *)problem.bias)[row]);
                a = activate(problem.activation, logit);
            }
            sum = fma_(a, widen(w_out[row * problem.ld_out + column]), sum);
        }
    return sum;
}

/* The second product: outputs. */
template <typename T, int SIZE> struct outputs : block_of<SIZE>, outputs_memory<SIZE> {
    using type = T;
    static constexpr int WIDTH = block_of<SIZE>::COLUMNS, PITCH = OUTPUTS_PITCH<SIZE>, BY_ROWS = 1;

    static __device__ inline int steps(const cmm_cuda_problem &problem, const part &p)
    {
        return (int)((problem.trees * p.tree_pitch + STEP - 1) / STEP);
    }

    static __device__ inline int tiles(const cmm_cuda_problem &problem, const part &)
    {
        return (int)((problem.d_out + WIDTH - 1) / WIDTH);
    }

    /* 64 columns of 64 rows of w_out. */
    static __device__ inline int2 place_of_box(const cmm_cuda_problem &problem, const part &, int tile_index, int step,
                                               int box)
    {
        return make_int2(tile_index * WIDTH + box * 64, row_of(step * STEP, problem.depth));
    }

    static __device__ inline uint64_t at(uint32_t b, int sixteenth)
    {
        return operand(b + sixteenth * (16 * 128), 1024, STEP * 128);
    }

    static __device__ inline void finish(const cmm_cuda_problem &problem, const part &p, const float (&d)[WIDTH / 2],
                                         char *memory, int tile_index, int first_row, int lane)
    {
        constexpr int LANES = WIDTH / 8, ROWS = 32 / LANES, TURNS = 8 / ROWS; /* of a row; a turn; to read 8 rows back */
        const int along = lane % LANES, below = lane / LANES;
        const int64_t column = (int64_t)tile_index * WIDTH + along * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __syncwarp();
#pragma unroll
            for (int c = 0; c < WIDTH / 8; c++)
                *(uint32_t *)(memory + lane / 4 * PITCH + 16 * c + lane % 4 * 4) =
                    bits_of<T>(d[4 * c + 2 * half]) | (uint32_t)bits_of<T>(d[4 * c + 2 * half + 1]) << 16;
            __syncwarp();
            /* A lane's rows are the `below`-th one of each turn. */
            const auto row_at = [&](int turn) { return turn * ROWS + below % ROWS; };
            const auto at = [&](int turn) { return (uint4 *)(memory + row_at(turn) * PITCH) + along; };
            uint4 v[TURNS];
            bool finite = true;
#pragma unroll
            for (int t = 0; t < TURNS; t++) {
                v[t] = *at(t);
                const unsigned words[4] = {v[t].x, v[t].y, v[t].z, v[t].w};
#pragma unroll
                for (int i = 0; i < 4; i++)
                    finite = finite && (words[i] & EXPONENT<T>) != EXPONENT<T> &&
                             (words[i] >> 16 & EXPONENT<T>) != EXPONENT<T>;
            }
            if (column >= problem.d_out || below >= ROWS)
                continue;
            const int above = first_row + 8 * half, rows = p.size - above;
            if (!finite)
#pragma unroll 1
                for (int i = 0; i < 8 * TURNS; i++) {
                    unsigned short *const bits = (unsigned short *)at(i / 8) + i % 8;
                    if (row_at(i / 8) < rows && (*bits & EXPONENT<T>) == EXPONENT<T>)
                        *bits = bits_of<T>(along_path<T>(problem, p, above + row_at(i / 8), column + i % 8));
                }
            T *const y = (T *)problem.y + (p.first + above) * problem.d_out + column;
#pragma unroll
            for (int t = 0; t < TURNS; t++)
                if (row_at(t) < rows)
                    __stcs((uint4 *)(y + row_at(t) * problem.d_out), finite ? v[t] : *at(t));
        }
    }
};

/* D = A B, a tile of TOKENS x WIDTH at a time; WORK says of what, and what becomes of a tile. Blocks of a
 * cluster, one tile below the other, share B: each asks for some of its boxes. A slot of shared memory is full when the copy
 * engine has brought all its bytes, and empty when all warps of the cluster that multiply have said so: the other block
 * writes to it, too. */
template <typename WORK>
__device__ inline void multiply(const CUtensorMap *map_a, const CUtensorMap *map_b, const cmm_cuda_problem &problem,
                                const part &p)
{
    constexpr int STAGES = WORK::STAGES, WARPS = WORK::WARPS, A_BYTES = WORK::WARPGROUPS * BOX_BYTES;
    constexpr int SLOT_BYTES = WORK::SLOT_BYTES, CLUSTER = WORK::CLUSTER;
    constexpr int SHARE = (WORK::BOXES + CLUSTER - 1) / CLUSTER;
    constexpr bool TRADES = WORK::WARPGROUPS > 1; /* registers */
    extern __shared__ __align__(1024) char memory[];
    char *const buffers = memory + STAGES * SLOT_BYTES;
    const uint32_t slots = shared_address(memory), full = slots + STAGES * SLOT_BYTES + WARPS * WORK::WARP_BYTES,
                   empty = full + STAGES * 8;
    const uint32_t rank = cluster_rank();
    const int steps = WORK::steps(problem, p), across = WORK::tiles(problem, p);
    const int groups = (p.size + CLUSTER * WORK::TOKENS - 1) / (CLUSTER * WORK::TOKENS) * across;
    const int first_group = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    if (threadIdx.x == 0) {
        prefetch_map(map_a);
        prefetch_map(map_b);
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, CLUSTER * WARPS);
        }
        barrier_init_done();
    }
    cluster_sync();
    if (pdl_wait_is_refused(problem))
        return;

    int slot = 0, round = 0; /* of how often all slots were used, the last bit */
    const auto next = [&] {
        if (++slot == STAGES) {
            slot = 0;
            round ^= 1;
        }
    };
    if (threadIdx.x >= 32 * WARPS) {
        if (TRADES)
            registers_less<40>();
        /* One thread asks for all; in small tiles that takes as long as the products: it does no division. */
        if (threadIdx.x == 32 * WARPS) {
            fence_for_copies();
            for (int group = first_group; group < groups; group += clusters) {
                const int tile = group % across, row = (group / across * CLUSTER + (int)rank) * WORK::TOKENS;
                for (int step = 0; step < steps; step++) {
                    const uint32_t to = slots + slot * SLOT_BYTES, filled = full + slot * 8;
                    barrier_wait(empty + slot * 8, round ^ 1);
                    barrier_expect(filled, SLOT_BYTES);
#pragma unroll
                    for (int box = 0; box < WORK::WARPGROUPS; box++)
                        load_box(to + box * BOX_BYTES, map_a, filled, step * STEP, row + box * 64);
#pragma unroll
                    for (int i = 0; i < SHARE; i++) {
                        const int box = (int)rank * SHARE + i;
                        if (WORK::BOXES % CLUSTER && box >= WORK::BOXES)
                            continue;
                        const uint32_t at = to + A_BYTES + box * BOX_BYTES;
                        const int2 place = WORK::place_of_box(problem, p, tile, step, box);
                        if (CLUSTER > 1)
                            load_box_to_all(at, map_b, filled, place.x, place.y, (1 << CLUSTER) - 1);
                        else
                            load_box(at, map_b, filled, place.x, place.y);
                    }
                    next();
                }
            }
        }
        __syncwarp();
    } else {
        if (TRADES)
            registers_more<232>();
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const auto release = [&](int done) {
            if (lane < CLUSTER)
                barrier_arrive_at(empty + done * 8, lane);
        };
        for (int group = first_group; group < groups; group += clusters) {
            const int tile = group % across, row = (group / across * CLUSTER + (int)rank) * WORK::TOKENS;
            float d[WORK::WIDTH / 2];
            int before = 0;
            for (int step = 0; step < steps; step++) {
                barrier_wait(full + slot * 8, round);
                const uint32_t a = slots + slot * SLOT_BYTES + warp / 4 * BOX_BYTES,
                               b = slots + slot * SLOT_BYTES + A_BYTES;
                products_begin();
#pragma unroll
                for (int sixteenth = 0; sixteenth < STEP / 16; sixteenth++)
                    products<typename WORK::type, WORK::WIDTH, WORK::BY_ROWS>::add(
                        d, operand(a + sixteenth * 32, 1024, 16), WORK::at(b, sixteenth), step | sixteenth);
                products_commit();
                if (step > 0) {
                    products_wait<1>();
                    release(before);
                }
                before = slot;
                next();
            }
            products_wait<0>();
            release(before);
            WORK::finish(problem, p, d, buffers + warp * WORK::WARP_BYTES, tile, row + warp * 16, lane);
        }
    }
    cluster_sync(); /* the other block may still arrive here */
}

#endif

/* Blocks on a processor: two, where there is room for them. */
template <int DEPTH, int SIZE> constexpr int HIDDEN_BLOCKS = tile_of<DEPTH, SIZE>::BOXES > 2 ? 1 : 2;
template <int SIZE> constexpr int OUTPUTS_BLOCKS = SIZE == NARROW ? 2 : 1;

template <typename T, int DEPTH, int SIZE>
__global__ void __launch_bounds__(block_of<SIZE>::THREADS, HIDDEN_BLOCKS<DEPTH, SIZE>)
    fff_dense_routed_hidden(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w_in,
                            const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ part p)
{
#if CMM_HAS_WGMMA
    multiply<routing<T, DEPTH, SIZE>>(&x, &w_in, problem, p);
#endif
}

template <typename T, int SIZE>
__global__ void __launch_bounds__(block_of<SIZE>::THREADS, OUTPUTS_BLOCKS<SIZE>)
    fff_dense_routed_outputs(const __grid_constant__ CUtensorMap hidden, const __grid_constant__ CUtensorMap w_out,
                             const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ part p)
{
#if CMM_HAS_WGMMA
    multiply<outputs<T, SIZE>>(&hidden, &w_out, problem, p);
#endif
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

/* Trees side by side in a tile of each size, and columns from tree to tree. */
struct tile_sizes {
    int trees[SIZES], pitch;
};

static tile_sizes sizes_of_tile(int depth)
{
    static constexpr tile_sizes all[DEPTHS] = {
#define TREES(d, size) tile_of<d, hidden_size(d, size)>::TREES
#define OF(d) {{TREES(d, TINY), TREES(d, NARROW), TREES(d, MIDDLE), TREES(d, WIDE)}, tile_of<d, WIDE>::PITCH}
        OF(0), OF(1), OF(2), OF(3), OF(4), OF(5), OF(6), OF(7)
#undef OF
#undef TREES
    };
    return all[depth];
}

/* Columns that all trees have, and from token to token: whole tiles. */
static int64_t columns_of(const cmm_problem *problem)
{
    return problem->trees * sizes_of_tile(problem->depth).pitch;
}

static int64_t pitch_of(const cmm_problem *problem)
{
    const tile_sizes tile = sizes_of_tile(problem->depth);
    return (problem->trees + tile.trees[WIDE] - 1) / tile.trees[WIDE] * tile.trees[WIDE] * tile.pitch;
}

/* Tokens of a part: whole clusters of wide tiles. */
static int64_t part_of(const cmm_problem *problem)
{
    const int64_t group = 2 * block_of<WIDE>::TOKENS, groups = HIDDEN_BYTES / (pitch_of(problem) * 2 * group);
    const int64_t most = problem->wants_y ? (groups > 0 ? groups : 1) * group : 1 << 30;
    return most < problem->batch ? most : problem->batch;
}

static int can_implement(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    const int64_t most = 1 << 30;
    return problem->multiplies && (problem->dtype == CMM_BF16 || problem->dtype == CMM_F16) && problem->aligned &&
           problem->depth < DEPTHS && problem->trees <= most / 256 && problem->d_in < most &&
           problem->d_out < most && problem->ld_in < most && problem->ld_out < most;
}

/* What a tile of each size has: tokens of its cluster, blocks in that, outputs side by side. */
static const struct {
    int tokens, cluster, columns;
} shapes[SIZES] = {
#define OF(size) {block_of<size>::TOKENS * block_of<size>::CLUSTER, block_of<size>::CLUSTER, block_of<size>::COLUMNS}
    OF(TINY), OF(NARROW), OF(MIDDLE), OF(WIDE)
#undef OF
};

/* Of the two products the sizes of tiles, and the time that both are estimated to take, in us. All sizes give the same
 * bits. Measured on an H100 at 768 wide; docs/internals/kernels.md has the rule in words. */
struct choice {
    int hidden, outputs;
    double time;
};

/* A product that sums over so many columns, as many tiles of a size side by side. A block takes a time for each 64 columns
 * and one for the end of a tile, and the kernel one to begin. All blocks together read and write `moved` numbers a token at
 * 2.3e6 bytes a us; where that is the time, all sizes are alike, and the largest will do. */
struct costs {
    double step, end, begin;
};

static double time_of(const cmm_cuda_problem *problem, int size, int64_t across, int64_t summed, costs cost, int64_t moved)
{
    const int64_t groups = (problem->batch + shapes[size].tokens - 1) / shapes[size].tokens * across;
    const int64_t clusters = problem->sm_count / shapes[size].cluster;
    const double multiplying = (double)((groups + clusters - 1) / clusters) *
                               ((double)((summed + STEP - 1) / STEP) * cost.step + cost.end);
    const double moving = (double)(problem->batch * moved * 2) / 2.3e6;
    return cost.begin + multiplying > moving ? cost.begin + multiplying : moving;
}

static choice choose(const cmm_cuda_problem *problem)
{
    static const costs hidden_costs[SIZES] = {{0.20, 0, 1.3}, {0.30, 0, 2}, {}, {0.62, 4, 3.5}};
    static const costs outputs_costs[SIZES] = {{0.19, 0, 2}, {0.33, 0, 1.3}, {0.47, 1.2, 3.5}, {0.62, 1.5, 3.5}};
    static const costs costs_of_deepest = {0.55, 0, 2}; /* whose narrow tiles have 256 columns */
    const tile_sizes tile = sizes_of_tile(problem->depth);
    const int64_t columns = columns_of(problem);
    choice best = {};
    double least[2] = {1e300, 1e300};
    for (int size = TINY; size < SIZES; size++) {
        if (hidden_size(problem->depth, size) == size) {
            const costs cost = size == NARROW && problem->depth == 7 ? costs_of_deepest : hidden_costs[size];
            const double time = time_of(problem, size, (problem->trees + tile.trees[size] - 1) / tile.trees[size],
                                        problem->d_in, cost, problem->d_in + pitch_of(problem));
            best.hidden = time <= least[0] ? size : best.hidden;
            least[0] = time <= least[0] ? time : least[0];
        }
        const double time = time_of(problem, size, (problem->d_out + shapes[size].columns - 1) / shapes[size].columns,
                                    columns, outputs_costs[size], problem->d_out + pitch_of(problem));
        best.outputs = time <= least[1] ? size : best.outputs;
        least[1] = time <= least[1] ? time : least[1];
    }
    best.time = 3 + least[0] + least[1];
    return best;
}

/* Where its estimated time is less than that of per_token or small_batch: a warp takes 0.52 us from one visited neuron to the
 * next (a block of small_batch 0.34), and all warps together do 5.4e6 multiply-adds a us. */
static int is_preferred(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    if (!problem->wants_y)
        return 0; /* not measured */
    const double visits = (double)(problem->trees * (problem->depth + 1));
    const double alone = visits * (problem->batch > problem->sm_count ? 0.52 : 0.34);
    const double together = (double)problem->batch * visits * (double)(problem->d_in + problem->d_out) / 5.4e6;
    return choose(problem).time < (alone > together ? alone : together);
}

static int64_t workspace(const cmm_cuda_problem *problem)
{
    return problem->wants_y ? part_of(problem) * pitch_of(problem) * 2 : 0;
}

/* A kernel, and what its launch needs to know. */
struct product {
    const void *kernel;
    int memory, threads, blocks; /* bytes; blocks on a processor */
};

template <typename T, int DEPTH, int SIZE> static product hidden_product()
{
    constexpr int OWN = hidden_size(DEPTH, SIZE);
    return {(const void *)fff_dense_routed_hidden<T, DEPTH, OWN>, hidden_memory<DEPTH, OWN>::BYTES,
            block_of<OWN>::THREADS, HIDDEN_BLOCKS<DEPTH, OWN>};
}

template <typename T, int SIZE> static product outputs_product()
{
    return {(const void *)fff_dense_routed_outputs<T, SIZE>, outputs_memory<SIZE>::BYTES, block_of<SIZE>::THREADS,
            OUTPUTS_BLOCKS<SIZE>};
}

static cudaError_t launch(const cmm_cuda_problem *problem, const product &product, int size, int64_t tokens,
                          int64_t across, void **arguments, cudaStream_t stream)
{
    cudaError_t error =
        cudaFuncSetAttribute(product.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, product.memory);
    if (error != cudaSuccess)
        return error;
    const unsigned cluster = (unsigned)shapes[size].cluster;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = cluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    const int64_t groups = (tokens + shapes[size].tokens - 1) / shapes[size].tokens * across;
    const int64_t most = (int64_t)problem->sm_count / cluster * product.blocks;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(cluster * (unsigned)(groups < most ? groups : most));
    config.blockDim = dim3((unsigned)product.threads);
    config.dynamicSmemBytes = (size_t)product.memory;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelExC(&config, product.kernel, arguments);
}

template <typename T> static cudaError_t run_typed(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    static const product hidden_products[DEPTHS][SIZES] = {
#define OF(d)                                                                                   \
    {hidden_product<T, d, TINY>(), hidden_product<T, d, NARROW>(), hidden_product<T, d, MIDDLE>(), \
     hidden_product<T, d, WIDE>()}
        OF(0), OF(1), OF(2), OF(3), OF(4), OF(5), OF(6), OF(7)
#undef OF
    };
    static const product outputs_products[SIZES] = {outputs_product<T, TINY>(), outputs_product<T, NARROW>(),
                                                    outputs_product<T, MIDDLE>(), outputs_product<T, WIDE>()};
    cmm_cuda_problem copy = *problem;
    const choice best = choose(problem);
    const tile_sizes tile = sizes_of_tile(problem->depth);
    const int64_t rows = problem->trees * problem->nodes, size = part_of(problem), columns = columns_of(problem);
    const int64_t trees = tile.trees[best.hidden], width = shapes[best.outputs].columns;
    part p = {};
    p.hidden = (unsigned short *)memory;
    p.pitch = (int)pitch_of(problem);
    p.tree_pitch = tile.pitch;
    CUtensorMap x, w_in, hidden, w_out;
    if (!describe(&w_in, problem->dtype, problem->w_in, problem->d_in, rows, problem->ld_in) ||
        (problem->wants_y && !describe(&w_out, problem->dtype, problem->w_out, problem->d_out, rows, problem->ld_out)))
        return cudaErrorInvalidValue;
    for (p.first = 0; p.first < problem->batch; p.first += size) {
        p.size = (int)(problem->batch - p.first < size ? problem->batch - p.first : size);
        if (!describe(&x, problem->dtype, (const T *)problem->x + p.first * problem->d_in, problem->d_in, p.size,
                      problem->d_in) ||
            (problem->wants_y && !describe(&hidden, problem->dtype, memory, columns, p.size, p.pitch)))
            return cudaErrorInvalidValue;
        void *first[] = {&x, &w_in, &copy, &p}, *second[] = {&hidden, &w_out, &copy, &p};
        cudaError_t error = launch(problem, hidden_products[problem->depth][best.hidden], best.hidden, p.size,
                                   (problem->trees + trees - 1) / trees, first, stream);
        if (error == cudaSuccess && problem->wants_y)
            error = launch(problem, outputs_products[best.outputs], best.outputs, p.size,
                           (problem->d_out + width - 1) / width, second, stream);
        if (error != cudaSuccess)
            return error;
    }
    return cudaSuccess;
}

static cudaError_t run(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    return problem->dtype == CMM_BF16 ? run_typed<__nv_bfloat16>(problem, stream, memory)
                                      : run_typed<__half>(problem, stream, memory);
}

extern const cmm_cuda_kernel cmm_cuda_fff_dense_routed = {
    cuda_traits(CMM_OP_FFF, "dense_routed", "cuda", "dense_routed", can_implement, is_preferred), workspace, run};
