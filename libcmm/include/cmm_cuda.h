/* libcmm_cuda: the layers of cmm.h on NVIDIA GPUs, for device pointers and the caller's stream.
 *
 *     cmm_cuda_run run = {.size = sizeof run, .stream = stream};
 *     cmm_cuda_fff_workspace(&layer, &run, batch, &run.workspace_bytes);
 *     cudaMalloc(&run.workspace, run.workspace_bytes);               // once; 0 bytes need no memory
 *     cmm_cuda_fff_forward(&layer, &run, batch, x, y, NULL, NULL);   // queued on the stream
 *
 * The rules of cmm.h hold, and these:
 *   - Every array is memory that the stream's device can read: the descriptors cmm_fff and cmm_ff hold device pointers.
 *     The current device is the stream's.
 *   - A call checks, queues kernels on the stream and returns. It does not wait, allocate, free or copy, so it may be
 *     captured in a CUDA graph. A kernel that cannot be queued is a status; what goes wrong while it runs is reported
 *     by the next call that waits for the stream, as ever in CUDA.
 *   - The workspace belongs to the call until the stream has passed it: calls on two streams take two workspaces.
 *   - A path that is given is checked on the device, for it is there, and the call does not wait for what is found. The
 *     workspace, which such a call always needs, begins with an int64_t that says it when the stream has passed the
 *     call: -1, or token * trees + tree of the first path that is none. Nothing else was written then.
 *   - dtype may also be CMM_BF16 or CMM_F16. Sums, bias and activation are then float, only what is stored is rounded,
 *     and the logits of a path are float.
 *   - A call gives the same bits every time, whatever else the GPU does.
 */
#ifndef CMM_CUDA_H
#define CMM_CUDA_H

#include "cmm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How to run a call. NULL, or all zero after the size: the default stream and the best kernel without a workspace. */
typedef struct cmm_cuda_run {
    uint32_t size;           /* sizeof(cmm_cuda_run) */
    int32_t reserved;        /* 0 */
    const char *level;       /* "cuda-naive", "cuda"; NULL or "auto" means "cuda" */
    union {
        const char *algorithm; /* of level "cuda": "generic", "per_token", "small_batch", "grouped", "grouped_gemm",
                                  "dense_routed"; NULL: what suits */
        const char *method;    /* its name in 0.1.0, whose values "block", "walk", "wide", "group" are still taken */
    };
    void *stream;            /* a cudaStream_t; NULL is the default stream */
    void *workspace;         /* device memory, aligned to CMM_CUDA_ALIGNMENT */
    int64_t workspace_bytes; /* its size, at least what cmm_cuda_.._workspace() says */
    const int32_t *path_nodes;  /* device memory, [batch][trees][depth+1], or NULL: the path to take, as in cmm_run */
    const int32_t *path_leaves; /* device memory, [batch][trees], or NULL: the same by its last nodes */
} cmm_cuda_run;

enum { CMM_CUDA_ALIGNMENT = 256 };

/* The workspace that a call with these arguments needs. Stream and workspace of run are not looked at. */
CMM_API cmm_status cmm_cuda_fff_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes);
CMM_API cmm_status cmm_cuda_cmm_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes);
CMM_API cmm_status cmm_cuda_ff_workspace(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes);

/* As cmm_fff_forward, cmm_cmm_forward and cmm_ff_forward. */
CMM_API cmm_status cmm_cuda_fff_forward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                        void *y, int32_t *nodes, void *logits);
CMM_API cmm_status cmm_cuda_cmm_forward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                        int32_t *nodes, void *logits);
CMM_API cmm_status cmm_cuda_ff_forward(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                       void *y);

/* As cmm_fff_backward. Rows must be of the layer's dtype. Of CMM_BF16 and CMM_F16 the logits are float, as the forward
 * pass gives them, and so are dw_in, dbias and dw_out; dx is of the layer's dtype. nodes are checked on the device, as a
 * path that is given is: the workspace begins with what was found, and if that is not -1 nothing was written. The
 * workspace is run's, and that of gradients NULL and 0. Of run's algorithms there is one, so it is NULL. There are less than
 * 2^31 tokens times trees, but of trees of one node, and trees << depth is less than 2^32. The same call has the same bits on
 * every GPU that one build has code for. */
CMM_API cmm_status cmm_cuda_fff_backward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                         const int32_t *nodes, const void *logits, const void *dy,
                                         const cmm_gradients *gradients);
CMM_API cmm_status cmm_cuda_fff_backward_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch,
                                                   const cmm_gradients *gradients, int64_t *bytes);

/* What lies between the two products of a layer, where the caller makes products of all neurons. The layer is only its dtype,
 * activation, tie, depth and trees; of run the stream is looked at, algorithm is NULL, and there is no workspace.
 *     path    NULL: every tree is walked. Or [batch][trees][depth+1], as a forward pass gives it, of which the leaves are read;
 *             a tree whose leaf is none is one of which nothing was visited.
 *     logits  [batch][trees][nodes], of the layer's dtype; with path, as the forward pass gives them: [batch][trees][depth+1],
 *             float, or double for CMM_F64.
 *     y       [batch][trees][nodes]: the activations of visited nodes, 0 elsewhere; or NULL.
 *     dx      the same of the gradients of the logits, dy times the slope of the activation; or NULL.
 *     dy      [batch][trees][nodes]: the gradients of y, read where dx is wanted; of what is not visited not looked at.
 *     visited [batch][trees][nodes]: 1 for visited nodes, 0 elsewhere; or NULL. One of y, dx and visited is wanted.
 *     nodes   [batch][trees][depth+1], or NULL: the path that was walked. NULL where path is given.
 * y and dx are computed in float, or double for CMM_F64, and rounded once to the layer's dtype. */
CMM_API cmm_status cmm_cuda_fff_hidden(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *logits,
                                       const int32_t *path, const void *dy, void *y, void *dx, uint8_t *visited,
                                       int32_t *nodes);

/* CMM_OK where the current device can run this library's kernels, else CMM_ERROR_CUDA_DEVICE. */
CMM_API cmm_status cmm_cuda_usable(void);

/* The list of kernels, as cmm_kernel_get(). */
CMM_API int32_t cmm_cuda_kernel_count(void);
CMM_API cmm_status cmm_cuda_kernel_get(int32_t index, cmm_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
