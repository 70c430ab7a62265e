/* What lies between the two products of a layer: see hidden.cu. */
#ifndef CMM_CUDA_HIDDEN_CUH
#define CMM_CUDA_HIDDEN_CUH

#include "params.cuh"

/* Checked arrays, of the types that cmm_cuda.h says. Trees are counted through all tokens, for they lie one behind the
 * other: logits, y, dy, dx and visited are [trees][nodes], path and nodes_out [trees][depth+1]. */
struct cmm_cuda_hidden {
    int32_t dtype, activation, tie, depth;
    int64_t trees, nodes;
    const int32_t *path; /* NULL: logits are of all nodes, and trees are walked */
    const void *logits, *dy;
    void *y, *dx;
    uint8_t *visited;
    int32_t *nodes_out;
};

cudaError_t cmm_cuda_run_hidden(const cmm_cuda_hidden *hidden, cudaStream_t stream);

#endif
