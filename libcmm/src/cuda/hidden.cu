/* What lies between the two products of a layer, where those are the caller's: activations, or gradients of the logits, of
 * the visited nodes, and 0 for the others.
 * Work:   an activation, or its derivative and a multiplication, for each visited node.
 * Memory: logits and dy of visited nodes, which of shallow trees touch nearly every sector of 32 bytes; every output once.
 * Sums:   none. A result is a function of one logit, and of one dy, in float (double for double), rounded once to the type.
 * Limit:  the memory's bandwidth. A walk waits for a read at every level, so as many walks as fit are under way.
 *
 * Trees lie one behind the other through all tokens, so a block takes a piece of that row wherever it begins: its outputs
 * are whole vectors of 16 bytes whatever the number of trees. They are put together in shared memory, for visited nodes lie
 * at odd places of 2 bytes. A tree that reaches into two pieces is walked for each. */
#include "hidden.cuh"

namespace {

constexpr int THREADS = 128, TILE_BYTES = 8 << 10; /* of one output; larger ones leave room for fewer blocks */
constexpr int VECTOR = sizeof(uint4);

struct piece {
    int64_t first, trees;  /* those that it touches */
    int64_t start;         /* the place of its first element */
    int count;             /* elements */
};

/* Bytes of shared memory for a piece. */
template <typename T> __host__ __device__ inline int tile_bytes(const cmm_cuda_hidden &h, int elements)
{
    return elements * (int)(((h.y != nullptr) + (h.dx != nullptr)) * sizeof(T) + (h.visited != nullptr));
}

__device__ inline void clear(uint4 *memory, int bytes)
{
    for (int i = threadIdx.x; i < bytes / VECTOR; i += THREADS)
        memory[i] = make_uint4(0, 0, 0, 0);
}

/* Write a tile to its place; what is not a whole vector, and all of an array that is not aligned, element by element. */
template <typename T> __device__ inline void write(T *to, const T *tile, int count)
{
    constexpr int EACH = VECTOR / sizeof(T);
    const int vectors = (uintptr_t)to % VECTOR == 0 ? count / EACH : 0;
    for (int i = threadIdx.x; i < vectors; i += THREADS)
        *(uint4 *)(to + i * EACH) = *(const uint4 *)(tile + i * EACH);
    for (int i = vectors * EACH + threadIdx.x; i < count; i += THREADS)
        to[i] = tile[i];
}

/* What of the outputs belongs to a piece; of those that are not wanted nothing is written. */
template <typename T> struct tiles {
    T *y, *dx;
    uint8_t *visited;
};

/* What a visited node, `place` elements from the start of the piece, gives: nothing, where it lies in another one. */
template <typename T, typename A>
__device__ inline void visit(const cmm_cuda_hidden &h, const piece &p, int64_t place, A logit, const tiles<T> &to)
{
    if (place < 0 || place >= p.count)
        return;
    if (h.dx)
        to.dx[place] = narrow<T>(widen(((const T *)h.dy)[p.start + place]) * differentiate(h.activation, logit));
    if (h.y)
        to.y[place] = narrow<T>(activate(h.activation, logit));
    if (h.visited)
        to.visited[place] = 1;
}

/* A thread to a tree. The logit of the next level is asked for before that of this one is used. */
template <typename T> __device__ inline void walk(const cmm_cuda_hidden &h, const piece &p, const tiles<T> &to)
{
    using A = typename accumulator<T>::type;
    for (int64_t i = threadIdx.x; i < p.trees; i += THREADS) {
        const int64_t root = (p.first + i) * h.nodes, place = root - p.start;
        const T *const logits = (const T *)h.logits + root;
        int32_t *const nodes = h.nodes_out && place >= 0 ? h.nodes_out + (p.first + i) * (h.depth + 1) : nullptr;
        int64_t node = 0;
        A logit = widen(logits[0]);
        for (int level = 0; level <= h.depth; level++) {
            const int64_t next = cmm_left_child(node) + CMM_GOES_RIGHT(logit, h.tie);
            const A below = level < h.depth ? widen(logits[next]) : 0;
            visit(h, p, place + node, logit, to);
            if (nodes)
                nodes[level] = (int32_t)node;
            node = next;
            logit = below;
        }
    }
}

/* A thread to a node of a path that is known. A leaf that is none has no nodes. */
template <typename T> __device__ inline void follow(const cmm_cuda_hidden &h, const piece &p, const tiles<T> &to)
{
    using A = typename accumulator<T>::type;
    const int levels = h.depth + 1;
    const uint32_t leaves = 1u << h.depth;
    /* A piece touches no more trees than it has elements and two. */
    for (unsigned i = threadIdx.x; i < (unsigned)p.trees * levels; i += THREADS) {
        const unsigned tree = i / (unsigned)levels;
        const int level = (int)(i % (unsigned)levels);
        const uint32_t leaf = (uint32_t)h.path[(p.first + tree) * levels + h.depth];
        const A logit = ((const A *)h.logits)[p.first * levels + i];
        if (leaf - (leaves - 1) < leaves)
            visit(h, p, (p.first + tree) * h.nodes - p.start + cmm_ancestor(leaf, h.depth - level), logit, to);
    }
}

/* With more registers than 12 blocks have room for, fewer walks would be under way. */
template <typename T>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 12 : 1) cmm_cuda_hidden_of(const cmm_cuda_hidden h, int elements)
{
    extern __shared__ uint4 memory[];
    T *const y = (T *)memory, *const dx = y + (h.y ? elements : 0);
    const tiles<T> to = {y, dx, (uint8_t *)(dx + (h.dx ? elements : 0))};
    const int64_t all = h.trees * h.nodes;
    for (int64_t start = (int64_t)blockIdx.x * elements; start < all; start += (int64_t)gridDim.x * elements) {
        const int count = all - start < elements ? (int)(all - start) : elements;
        const int64_t first = start / h.nodes, last = (start + count - 1) / h.nodes;
        const piece p = {first, last - first + 1, start, count};
        clear(memory, tile_bytes<T>(h, elements));
        __syncthreads();
        if (h.path)
            follow(h, p, to);
        else
            walk(h, p, to);
        __syncthreads();
        if (h.y)
            write((T *)h.y + start, to.y, count);
        if (h.dx)
            write((T *)h.dx + start, to.dx, count);
        if (h.visited)
            write(h.visited + start, to.visited, count);
        __syncthreads();
    }
}

/* Elements of a piece: whole vectors, of bytes too, and whole trees where those fit. */
template <typename T> int elements_of(int64_t nodes)
{
    const int64_t most = TILE_BYTES / sizeof(T), group = nodes * VECTOR;
    return (int)(group <= most ? most / group * group : most);
}

template <typename T> cudaError_t launch(const cmm_cuda_hidden *hidden, cudaStream_t stream)
{
    cmm_cuda_hidden copy = *hidden;
    int elements = elements_of<T>(copy.nodes);
    void *arguments[] = {&copy, &elements};
    const int64_t all = copy.trees * copy.nodes;
    const size_t bytes = (size_t)tile_bytes<T>(copy, elements);
    return cudaLaunchKernel((const void *)cmm_cuda_hidden_of<T>, blocks_for((all + elements - 1) / elements), THREADS,
                            arguments, bytes, stream);
}

} // namespace

cudaError_t cmm_cuda_run_hidden(const cmm_cuda_hidden *hidden, cudaStream_t stream)
{
    return CMM_CUDA_FOR_DTYPE(hidden->dtype, launch, hidden, stream);
}
