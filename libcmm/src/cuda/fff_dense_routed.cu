/* A forest as a dense layer of two products on tensor cores; between them every tree is walked in registers and shared
 * memory, and what is off the path is 0. For shallow trees, whose rows cost more to gather than to multiply.
 * Work:   2 (d_in + d_out) flops for every neuron, visited or not; an activation for each visited one.
 * Memory: x and y once; the weights from L2; the coefficients of every neuron, 2 bytes each, to the workspace and back.
 * Sums:   float, on tensor cores, 16 products at a time in order of i, then the bias; y in order of the neurons, 16 at a
 *         time. A token's bits depend neither on the batch nor on its place, but are not those of warp_row.cuh.
 * Limit:  tensor cores. A block does 128 tokens x up to 256 neurons, whole trees; then 128 tokens x 256 outputs. One
 *         thread asks the copy engine for 64 columns of either operand at a time, the second one for two blocks at once;
 *         two warpgroups multiply, each for itself, so that one multiplies while the other one walks.
 *
 * A coefficient is rounded to the type of the layer, on the path never to a 0 of positive sign: so the coefficients tell
 * which neurons were visited. A product with 0 lets an infinity or NaN of a row that was not visited through as NaN:
 * wherever a sum is not finite, it is taken again along the path alone (along_path()). */
#include "../scratch.h"
#include "warp_row.cuh"
#include "wgmma.cuh"

constexpr int TOKENS = 128, DEPTHS = 8;   /* of a tile; of trees that fit in one */
constexpr int STEP = 64;                  /* what is summed over, at a time: rows of 128 bytes */
constexpr int WIDEST = 256;               /* columns of a tile */
constexpr int THREADS = 3 * 128;
constexpr int A_BYTES = TOKENS * 128, B_BYTES = WIDEST * 128, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int64_t HIDDEN_BYTES = 512 << 20; /* of coefficients at a time, which bounds the workspace */

/* How trees of a depth lie in the columns of a tile: as many as fit, one after the other; ROWS of them, and a tile is as
 * many COLUMNS, or, where the columns that follow would not be aligned, 256, of which the last ones are 0. */
template <int DEPTH> struct tile_of {
    static constexpr int NODES = (2 << DEPTH) - 1, LEVELS = DEPTH + 1;
    static constexpr int TREES = DEPTH == 1 ? 80 : DEPTH == 2 ? 32 : DEPTH == 0 ? 256 : 256 / (NODES + 1);
    static constexpr int ROWS = TREES * NODES, COLUMNS = ROWS % 8 == 0 ? ROWS : WIDEST;
};

struct tile_sizes {
    int trees, rows, columns;
};

static tile_sizes sizes_of_tile(int depth)
{
    static constexpr tile_sizes all[DEPTHS] = {
#define SIZES(d) {tile_of<d>::TREES, tile_of<d>::ROWS, tile_of<d>::COLUMNS}
        SIZES(0), SIZES(1), SIZES(2), SIZES(3), SIZES(4), SIZES(5), SIZES(6), SIZES(7)
#undef SIZES
    };
    return all[depth];
}

/* Shared memory: slots of both operands, a buffer for each warp that multiplies, barriers. The logits' rows are apart so
 * that 4 of them that a half warp writes share no bank; so are those of 8 rows of outputs. */
constexpr int LOGITS_PITCH = WIDEST + 8, OUTPUTS_PITCH = WIDEST * 2 + 16; /* floats; bytes */
constexpr int LOGITS_BYTES = 8 * LOGITS_PITCH * 4, OUTPUTS_BYTES = 8 * OUTPUTS_PITCH;
constexpr int HIDDEN_STAGES = 3, OUTPUTS_STAGES = 4;
constexpr int HIDDEN_MEMORY = HIDDEN_STAGES * (STAGE_BYTES + 16) + 8 * LOGITS_BYTES;
constexpr int OUTPUTS_MEMORY = OUTPUTS_STAGES * (STAGE_BYTES + 16) + 8 * OUTPUTS_BYTES;

/* A part of the tokens, few enough for the workspace. */
struct part {
    int64_t first;
    int size;
    unsigned short *hidden; /* [size][pitch], bits of the coefficients */
    int tiles, pitch;       /* tiles side by side, and their columns */
    tile_sizes tile;
};

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
template <typename T, int DEPTH> struct routing {
    using type = T;
    using tile = tile_of<DEPTH>;
    static constexpr int COLUMNS = tile::COLUMNS, STAGES = HIDDEN_STAGES, BY_ROWS = 0;
    static constexpr int PITCH = LOGITS_PITCH, WARP_BYTES = LOGITS_BYTES;
    /* Rows of coefficients that are made at a time, so that the lanes have work: TASKS are visited neurons. */
    static constexpr int AT_ONCE = DEPTH >= 5 ? 8 : DEPTH == 4 ? 4 : DEPTH >= 2 ? 2 : 1;
    static constexpr int TASKS = AT_ONCE * tile::TREES * tile::LEVELS;

    static __device__ inline int steps(const cmm_cuda_problem &problem, const part &)
    {
        return (int)((problem.d_in + STEP - 1) / STEP);
    }

    static __device__ inline int tiles(const cmm_cuda_problem &, const part &p) { return p.tiles; }

    /* Half of the rows of w_in, for both blocks of the cluster. */
    static __device__ inline void load(const CUtensorMap *map, const part &, uint32_t to, uint32_t barrier, int tile_index,
                                       int step, uint32_t rank)
    {
        load_box_to_all(to + rank * (B_BYTES / 2), map, barrier, step * STEP,
                        tile_index * tile::ROWS + (int)rank * (WIDEST / 2), 3);
    }

    static __device__ inline uint64_t at(uint32_t b, int sixteenth) { return operand(b + sixteenth * 32, 1024, 16); }

    /* The way through a tree, a bit for each level, is kept behind a row's logits. */
    static __device__ inline unsigned char *ways(float *row) { return (unsigned char *)(row + COLUMNS); }

    static __device__ inline void finish(const cmm_cuda_problem &problem, const part &p, const float (&d)[COLUMNS / 2],
                                         char *memory, int tile_index, int first_row, int lane)
    {
        constexpr int EACH = (TASKS + 31) / 32;
        float *const logits = (float *)memory;
        const T *const bias = problem.bias ? (const T *)problem.bias + (int64_t)tile_index * tile::ROWS : nullptr;
        const float threshold = cmm_threshold_f32(problem.tie);
        const int first_tree = tile_index * tile::TREES, trees = (int)problem.trees - first_tree;
        const bool wants_path = problem.nodes_out || problem.logits_out;
        uint32_t tasks[EACH]; /* which visited neuron of the rows at hand is a lane's i-th one; 0: there is none */
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int task = i * 32 + lane, tree = task / tile::LEVELS % tile::TREES;
            const int among = task / (tile::LEVELS * tile::TREES), level = task % tile::LEVELS;
            tasks[i] = task < TASKS && tree < trees ? 1u << 31 | (uint32_t)(among << 24 | tree << 16 |
                                                                            tree * tile::NODES << 8 | level)
                                                    : 0;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) { /* a lane has columns 2 (lane % 4), + 1, of every 8, of rows lane / 4 and + 8 */
            const int above = first_row + 8 * half;
            __syncwarp();
#pragma unroll
            for (int c = 0; c < COLUMNS / 8; c++)
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
                            const int column = min(tree[w], trees - 1) * tile::NODES + node[w];
                            float logit = row[w][column];
                            if (bias)
                                logit += widen(bias[column]);
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
                        logit[i] += widen(bias[column[i]]);
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
                            problem.nodes_out[visit] = column[i] - tree * tile::NODES;
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
                    ((uint4 *)(logits + (rows + r) * PITCH))[lane] = make_uint4(0, 0, 0, 0);
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
                    if (token < p.size && lane < COLUMNS / 8)
                        ((uint4 *)(p.hidden + (int64_t)token * p.pitch + tile_index * COLUMNS))[lane] =
                            ((const uint4 *)(logits + (rows + r) * PITCH))[lane];
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
    for (int tile_index = 0; tile_index < p.tiles; tile_index++)
#pragma unroll 1
        for (int c = 0; c < p.tile.rows; c++) {
            const unsigned short bits = hidden[tile_index * p.tile.columns + c];
            if (!bits)
                continue;
            const int64_t row = (int64_t)tile_index * p.tile.rows + c;
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
template <typename T> struct outputs {
    using type = T;
    static constexpr int COLUMNS = WIDEST, STAGES = OUTPUTS_STAGES, BY_ROWS = 1;
    static constexpr int PITCH = OUTPUTS_PITCH, WARP_BYTES = OUTPUTS_BYTES;

    static __device__ inline int steps(const cmm_cuda_problem &problem, const part &p)
    {
        const int64_t neurons = problem.trees * problem.nodes, before = (int64_t)(p.tiles - 1) * p.tile.rows;
        return (int)(((int64_t)(p.tiles - 1) * p.tile.columns + neurons - before + STEP - 1) / STEP);
    }

    static __device__ inline int tiles(const cmm_cuda_problem &problem, const part &)
    {
        return (int)((problem.d_out + WIDEST - 1) / WIDEST);
    }

    /* Half of the columns of 64 rows of w_out, for both blocks of the cluster. Rows of the next tile that are met in the
     * last columns of one are multiplied by 0. */
    static __device__ inline void load(const CUtensorMap *map, const part &p, uint32_t to, uint32_t barrier,
                                       int tile_index, int step, uint32_t rank)
    {
        constexpr int IN_TILE = WIDEST / STEP;
        const int row = p.tile.rows == p.tile.columns ? step * STEP
                                                      : step / IN_TILE * p.tile.rows + step % IN_TILE * STEP;
#pragma unroll
        for (int block = 0; block < 2; block++) {
            const int column = ((int)rank * 2 + block) * 64;
            load_box_to_all(to + (rank * 2 + block) * (STEP * 128), map, barrier, tile_index * WIDEST + column, row, 3);
        }
    }

    static __device__ inline uint64_t at(uint32_t b, int sixteenth)
    {
        return operand(b + sixteenth * (16 * 128), 1024, STEP * 128);
    }

    static __device__ inline void finish(const cmm_cuda_problem &problem, const part &p, const float (&d)[COLUMNS / 2],
                                         char *memory, int tile_index, int first_row, int lane)
    {
        const int64_t column = (int64_t)tile_index * WIDEST + lane * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __syncwarp();
#pragma unroll
            for (int c = 0; c < COLUMNS / 8; c++)
                *(uint32_t *)(memory + lane / 4 * PITCH + 16 * c + lane % 4 * 4) =
                    bits_of<T>(d[4 * c + 2 * half]) | (uint32_t)bits_of<T>(d[4 * c + 2 * half + 1]) << 16;
            __syncwarp();
            uint4 v[8];
            bool finite = true;
#pragma unroll
            for (int r = 0; r < 8; r++) {
                v[r] = *((const uint4 *)(memory + r * PITCH) + lane);
                const unsigned words[4] = {v[r].x, v[r].y, v[r].z, v[r].w};
#pragma unroll
                for (int i = 0; i < 4; i++)
                    finite = finite && (words[i] & EXPONENT<T>) != EXPONENT<T> &&
                             (words[i] >> 16 & EXPONENT<T>) != EXPONENT<T>;
            }
            if (column >= problem.d_out)
                continue;
            const int rows = p.size - (first_row + 8 * half);
            if (!finite)
#pragma unroll 1
                for (int i = 0; i < 64 && i / 8 < rows; i++) {
                    unsigned short *const at = (unsigned short *)(memory + i / 8 * PITCH) + lane * 8 + i % 8;
                    if ((*at & EXPONENT<T>) == EXPONENT<T>)
                        *at = bits_of<T>(along_path<T>(problem, p, first_row + 8 * half + i / 8, column + i % 8));
                }
            T *const y = (T *)problem.y + (p.first + first_row + 8 * half) * problem.d_out + column;
#pragma unroll
            for (int r = 0; r < 8; r++)
                if (r < rows)
                    __stcs((uint4 *)(y + r * problem.d_out),
                           finite ? v[r] : *((const uint4 *)(memory + r * PITCH) + lane));
        }
    }
};


/* D = A B, a tile of 128 x COLUMNS at a time; WORK says of what, and what becomes of a tile. Blocks come in clusters of
 * two, one tile below the other, that share B. A slot of shared memory is full when the copy engine has brought all its
 * bytes, and empty when the eight warps of both blocks that multiply have said so: the other block writes to it, too. */
template <typename WORK>
__device__ inline void multiply(const CUtensorMap *map_a, const CUtensorMap *map_b, const cmm_cuda_problem &problem,
                                const part &p)
{
    constexpr int STAGES = WORK::STAGES, WARPS = 8;
    extern __shared__ __align__(1024) char memory[];
    char *const buffers = memory + STAGES * STAGE_BYTES;
    const uint32_t slots = shared_address(memory), full = slots + STAGES * STAGE_BYTES + WARPS * WORK::WARP_BYTES,
                   empty = full + STAGES * 8;
    const uint32_t rank = cluster_rank();
    const int steps = WORK::steps(problem, p), across = WORK::tiles(problem, p);
    const int pairs = (p.size + 2 * TOKENS - 1) / (2 * TOKENS) * across, clusters = gridDim.x / 2;
    if (threadIdx.x == 0) {
        prefetch_map(map_a);
        prefetch_map(map_b);
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, 2 * WARPS);
        }
        barrier_init_done();
    }
    pdl_wait();
    if (is_refused(problem))
        return;
    cluster_sync();

    int slot = 0, round = 0; /* of how often all slots were used, the last bit */
    const auto next = [&] {
        if (++slot == STAGES) {
            slot = 0;
            round ^= 1;
        }
    };
    if (threadIdx.x < 128) {
        registers_less<40>();
        if (threadIdx.x == 0) {
            fence_for_copies();
            for (int pair = blockIdx.x / 2; pair < pairs; pair += clusters) {
                const int tile = pair % across, row = (pair / across * 2 + (int)rank) * TOKENS;
                for (int step = 0; step < steps; step++) {
                    barrier_wait(empty + slot * 8, round ^ 1);
                    const uint32_t to = slots + slot * STAGE_BYTES;
                    barrier_expect(full + slot * 8, STAGE_BYTES);
                    load_box(to, map_a, full + slot * 8, step * STEP, row);
                    WORK::load(map_b, p, to + A_BYTES, full + slot * 8, tile, step, rank);
                    next();
                }
            }
        }
        __syncwarp();
    } else {
        registers_more<232>();
        const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32;
        const auto release = [&](int done) {
            if (lane < 2)
                barrier_arrive_at(empty + done * 8, lane);
        };
        for (int pair = blockIdx.x / 2; pair < pairs; pair += clusters) {
            const int tile = pair % across, row = (pair / across * 2 + (int)rank) * TOKENS;
            float d[WORK::COLUMNS / 2];
            int before = 0;
            for (int step = 0; step < steps; step++) {
                barrier_wait(full + slot * 8, round);
                const uint32_t a = slots + slot * STAGE_BYTES + warp / 4 * (64 * 128),
                               b = slots + slot * STAGE_BYTES + A_BYTES;
                products_begin();
#pragma unroll
                for (int sixteenth = 0; sixteenth < STEP / 16; sixteenth++)
                    products<typename WORK::type, WORK::COLUMNS, WORK::BY_ROWS>::add(
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

template <typename T, int DEPTH>
__global__ void __launch_bounds__(THREADS, 1)
    fff_dense_routed_hidden(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w_in,
                            const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ part p)
{
#if CMM_HAS_WGMMA
    multiply<routing<T, DEPTH>>(&x, &w_in, problem, p);
#endif
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
    fff_dense_routed_outputs(const __grid_constant__ CUtensorMap hidden, const __grid_constant__ CUtensorMap w_out,
                             const __grid_constant__ cmm_cuda_problem problem, const __grid_constant__ part p)
{
#if CMM_HAS_WGMMA
    multiply<outputs<T>>(&hidden, &w_out, problem, p);
#endif
}

/* ---- the host's side ----------------------------------------------------------------------------------------------- */

/* Tiles that the trees take side by side, and the columns of those. */
static int64_t tiles_of(const cmm_problem *problem)
{
    const int64_t trees = sizes_of_tile(problem->depth).trees;
    return (problem->trees + trees - 1) / trees;
}

static int64_t columns_of(const cmm_problem *problem)
{
    return tiles_of(problem) * sizes_of_tile(problem->depth).columns;
}

/* Tokens of a part: whole pairs of tiles. */
static int64_t part_of(const cmm_problem *problem)
{
    const int64_t pair = 2 * TOKENS, pairs = HIDDEN_BYTES / (columns_of(problem) * 2 * pair);
    const int64_t most = problem->wants_y ? (pairs > 0 ? pairs : 1) * pair : 1 << 30;
    return most < problem->batch ? most : problem->batch;
}

static int can_implement(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    const int64_t most = 1 << 30;
    return problem->multiplies && (problem->dtype == CMM_BF16 || problem->dtype == CMM_F16) && problem->aligned &&
           problem->depth < DEPTHS && problem->trees <= most / WIDEST && problem->d_in < most &&
           problem->d_out < most && problem->ld_in < most && problem->ld_out < most;
}

/* Where its estimated time is less than that of per_token or small_batch. Measured on an H100 at 768 wide, in us: a block
 * takes 0.62 for 64 columns of a tile, and 4 or 1.5 for its end, and all blocks read or write 2.3e6 bytes; a call takes 8;
 * a warp 0.52 from one visited neuron to the next (a block of small_batch 0.34), and all warps together do 5.4e6
 * multiply-adds. docs/internals/kernels.md has the rule in words. */
static int is_preferred(const cmm_problem *given)
{
    const cmm_cuda_problem *const problem = cuda_problem(given);
    if (!problem->wants_y)
        return 0; /* not measured */
    const int64_t pairs = (problem->batch + 2 * TOKENS - 1) / (2 * TOKENS), clusters = problem->sm_count / 2;
    const auto time_of = [&](int64_t tiles, int64_t summed, int64_t width, double end) {
        const int64_t waves = (pairs * tiles + clusters - 1) / clusters;
        const double multiplying = (double)waves * ((double)((summed + STEP - 1) / STEP) * 0.62 + end);
        const double moving = (double)(problem->batch * (width + columns_of(problem)) * 2) / 2.3e6;
        return multiplying > moving ? multiplying : moving;
    };
    const double dense = 8 + time_of(tiles_of(problem), problem->d_in, problem->d_in, 4) +
                         time_of((problem->d_out + WIDEST - 1) / WIDEST, columns_of(problem), problem->d_out, 1.5);
    const double visits = (double)(problem->trees * (problem->depth + 1));
    const double alone = visits * (problem->batch > problem->sm_count ? 0.52 : 0.34);
    const double together = (double)problem->batch * visits * (double)(problem->d_in + problem->d_out) / 5.4e6;
    return dense < (alone > together ? alone : together);
}

static int64_t workspace(const cmm_cuda_problem *problem)
{
    return problem->wants_y ? part_of(problem) * columns_of(problem) * 2 : 0;
}

static cudaError_t launch(const cmm_cuda_problem *problem, const void *kernel, int bytes, int64_t pairs, void **arguments,
                          cudaStream_t stream)
{
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess)
        return error;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {2, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    const int64_t most = problem->sm_count / 2;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(2 * (pairs < most ? pairs : most)));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

template <typename T> static cudaError_t run_typed(const cmm_cuda_problem *problem, cudaStream_t stream, void *memory)
{
    static const void *const kernels[DEPTHS] = {
#define KERNEL(d) (const void *)fff_dense_routed_hidden<T, d>
        KERNEL(0), KERNEL(1), KERNEL(2), KERNEL(3), KERNEL(4), KERNEL(5), KERNEL(6), KERNEL(7)
#undef KERNEL
    };
    cmm_cuda_problem copy = *problem;
    const int64_t rows = problem->trees * problem->nodes, size = part_of(problem);
    part p = {};
    p.hidden = (unsigned short *)memory;
    p.tile = sizes_of_tile(problem->depth);
    p.tiles = (int)tiles_of(problem);
    p.pitch = (int)columns_of(problem);
    CUtensorMap x, w_in, hidden, w_out;
    if (!describe(&w_in, problem->dtype, problem->w_in, problem->d_in, rows, problem->ld_in, WIDEST / 2) ||
        (problem->wants_y &&
         !describe(&w_out, problem->dtype, problem->w_out, problem->d_out, rows, problem->ld_out, STEP)))
        return cudaErrorInvalidValue;
    for (p.first = 0; p.first < problem->batch; p.first += size) {
        p.size = (int)(problem->batch - p.first < size ? problem->batch - p.first : size);
        const int64_t pairs = (p.size + 2 * TOKENS - 1) / (2 * TOKENS);
        if (!describe(&x, problem->dtype, (const T *)problem->x + p.first * problem->d_in, problem->d_in, p.size,
                      problem->d_in, TOKENS) ||
            (problem->wants_y && !describe(&hidden, problem->dtype, memory, p.pitch, p.size, p.pitch, TOKENS)))
            return cudaErrorInvalidValue;
        void *first[] = {&x, &w_in, &copy, &p}, *second[] = {&hidden, &w_out, &copy, &p};
        cudaError_t error = launch(problem, kernels[problem->depth], HIDDEN_MEMORY, pairs * p.tiles, first, stream);
        if (error == cudaSuccess && problem->wants_y)
            error = launch(problem, (const void *)fff_dense_routed_outputs<T>, OUTPUTS_MEMORY,
                           pairs * ((problem->d_out + WIDEST - 1) / WIDEST), second, stream);
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
