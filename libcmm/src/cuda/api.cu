/* The entry point of libcmm_cuda: every check (../validate.h), every default, the choice of a kernel. */
#include "../dispatch.h"
#include "../validate.h"
#include "hidden.cuh"
#include "params.cuh"

#include <cstddef>
#include <cstring>

/* ---- the table of kernels -------------------------------------------------------------------------------------- */

#define CMM_KERNEL(op, name)                                  \
    extern const cmm_cuda_kernel cmm_cuda_##op##_##name;      \
    static const cmm_traits *const file_of_##op##_##name[] = {&cmm_cuda_##op##_##name.traits, nullptr};
#include "cuda_kernel_table.inc" /* made by CMake from ../kernels.inc */
#undef CMM_KERNEL

const cmm_traits *const *const cmm_kernel_files[] = {
#define CMM_KERNEL(op, name) file_of_##op##_##name,
#include "cuda_kernel_table.inc"
#undef CMM_KERNEL
};

const int32_t cmm_kernel_file_count = (int32_t)(sizeof cmm_kernel_files / sizeof *cmm_kernel_files);

enum { DTYPES = 4 }; /* CMM_F32, CMM_F64, CMM_BF16, CMM_F16 */

/* ---- checks ---------------------------------------------------------------------------------------------------- */

/* Read how to run, of which NULL is the default, and check what of it this library looks at. */
static cmm_status read_run(const cmm_cuda_run *given, cmm_cuda_run *run)
{
    memset(run, 0, sizeof *run);
    if (given && !cmm_read_struct(run, sizeof *run, offsetof(cmm_cuda_run, path_nodes), given))
        return CMM_ERROR_RUN_SIZE;
    if (run->reserved != 0)
        return CMM_ERROR_RESERVED;
    if (run->path_nodes && run->path_leaves)
        return CMM_ERROR_PATH_TWICE;
    if (run->level && strcmp(run->level, "auto") != 0 && !cmm_is_level(run->level))
        return CMM_ERROR_LEVEL;
    return CMM_OK;
}

/* The workspace of a forward pass: big enough, aligned, and memory of its own. */
static cmm_status check_workspace(const cmm_cuda_problem *problem, const cmm_cuda_run *run, int64_t needed)
{
    if (needed == 0)
        return CMM_OK;
    if (!run->workspace)
        return CMM_ERROR_WORKSPACE_NULL;
    if (cmm_misaligned(run->workspace, CMM_CUDA_ALIGNMENT))
        return CMM_ERROR_WORKSPACE_ALIGN;
    if (run->workspace_bytes < needed)
        return CMM_ERROR_WORKSPACE_SIZE;
    cmm_extent arrays[CMM_INPUTS + CMM_OUTPUTS];
    cmm_input_extents(problem, arrays);
    cmm_output_extents(problem, arrays + CMM_INPUTS);
    for (const cmm_extent &array : arrays)
        if (cmm_overlap(cmm_extent_of(run->workspace, needed), array))
            return CMM_ERROR_WORKSPACE_OVERLAP;
    return CMM_OK;
}

/* ---- a path that is given -------------------------------------------------------------------------------------- */

/* A thread to each token and tree; of those whose path is none the first one is told. */
__global__ void cmm_cuda_check_path(const cmm_cuda_problem problem, unsigned long long *refused)
{
    const int64_t paths = problem.batch * problem.trees, threads = gridDim.x * (int64_t)blockDim.x;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < paths; i += threads)
        if (!cmm_is_path(problem.path + i * problem.path_length, problem.path_length, problem.depth))
            atomicMin(refused, (unsigned long long)i);
}

/* Queue cmm_check_path() as a kernel, for the path is in the GPU's memory. What it finds is 8 bytes there, that all kernels
 * behind it read first, and the caller, if he likes: so nobody waits. Without sign -1 is the largest number. */
static cudaError_t check_path(cmm_cuda_problem *problem, void *refused, cudaStream_t stream)
{
    const unsigned threads = 256;
    cmm_cuda_problem copy = *problem;
    void *arguments[] = {&copy, &refused};
    problem->refused = (const int64_t *)refused;
    const cudaError_t error = cudaMemsetAsync(refused, 0xff, sizeof(int64_t), stream);
    return error == cudaSuccess
               ? cudaLaunchKernel((const void *)cmm_cuda_check_path,
                                  blocks_for((problem->batch * problem->trees + threads - 1) / threads), threads,
                                  arguments, 0, stream)
               : error;
}

/* ---- choosing and running -------------------------------------------------------------------------------------- */

/* Whether rows of so many elements, ld elements apart, all start and end at multiples of 16 bytes. */
static int whole_vectors(const void *start, int64_t width, int64_t ld, int64_t size)
{
    return ((uintptr_t)start | (uintptr_t)(width * size) | (uintptr_t)(ld * size)) % 16 == 0;
}

static void find_alignment(cmm_cuda_problem *problem)
{
    const int64_t size = cmm_element_size(problem->dtype);
    problem->aligned = whole_vectors(problem->w_in, problem->d_in, problem->ld_in, size) &&
                    whole_vectors(problem->x, problem->d_in, problem->d_in, size);
    if (problem->wants_y)
        problem->aligned = problem->aligned && whole_vectors(problem->w_out, problem->d_out, problem->ld_out, size) &&
                        whole_vectors(problem->y, problem->d_out, problem->d_out, size);
}

static cmm_status find_device(cmm_cuda_problem *problem)
{
    int device, major, minor;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&problem->sm_count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&problem->shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
        return CMM_ERROR_CUDA_DEVICE;
    problem->overlaps = has_code_for_90() && major == 9 && minor == 0;
    problem->multiplies = CMM_CUDA_90A && problem->overlaps;
    return CMM_OK;
}

/* What became of queueing a call. */
static cmm_status status_of(cudaError_t error)
{
    if (error == cudaSuccess)
        return CMM_OK;
    (void)cudaGetLastError(); /* it has been reported */
    return error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ? CMM_ERROR_CUDA_DEVICE
                                                                                             : CMM_ERROR_CUDA_LAUNCH;
}

/* Do a call; or, where bytes is not NULL, only say how much workspace it needs. */
static cmm_status forward(cmm_op op, cmm_cuda_problem *problem, const cmm_cuda_run *given, int64_t *bytes)
{
    cmm_cuda_run run;
    cmm_status status = cmm_check_layer(problem, DTYPES);
    if (status == CMM_OK)
        status = read_run(given, &run);
    if (status == CMM_OK && op == CMM_OP_FF && (run.path_nodes || run.path_leaves))
        status = CMM_ERROR_PATH_DENSE;
    if (status == CMM_OK) {
        problem->path = run.path_nodes ? run.path_nodes : run.path_leaves;
        problem->path_length = !problem->path ? 0 : run.path_nodes ? problem->depth + 1 : 1;
    }
    if (status == CMM_OK && problem->weight_dtype != problem->dtype)
        status = CMM_ERROR_LEVEL_WEIGHT_DTYPE; /* no kernel here widens rows */
    if (status == CMM_OK)
        status = cmm_check_batch(problem);
    if (status == CMM_OK && !bytes)
        status = cmm_check_arrays(problem);
    if (status == CMM_OK)
        status = find_device(problem);
    if (status != CMM_OK)
        return status;

    cmm_request wanted = {};
    wanted.level = run.level && strcmp(run.level, "auto") != 0 ? run.level : "cuda";
    wanted.algorithm = run.algorithm;
    if (op == CMM_OP_FF && strcmp(wanted.level, "cuda") == 0) { /* a forest: as many trees of one node as neurons */
        op = CMM_OP_FFF;
        problem->trees = problem->nodes;
        problem->nodes = 1;
    }
    find_alignment(problem);
    if (bytes) /* the arrays may come to lie anywhere, so ask for enough for either case */
        problem->aligned = 1;
    const cmm_traits *found;
    status = cmm_find_kernel(op, &wanted, problem, &found);
    if (status != CMM_OK)
        return status;
    const cmm_cuda_kernel *const kernel = (const cmm_cuda_kernel *)found;
    const int64_t verdict = problem->path && problem->batch > 0 ? CMM_CUDA_ALIGNMENT : 0; /* see check_path() */
    const int64_t needed = verdict + (kernel->workspace && problem->batch > 0 ? kernel->workspace(problem) : 0);
    if (bytes) {
        *bytes = needed;
        return CMM_OK;
    }
    status = check_workspace(problem, &run, needed);
    if (status != CMM_OK || problem->batch == 0)
        return status;
    const cudaStream_t stream = (cudaStream_t)run.stream;
    cudaError_t error = problem->path ? check_path(problem, run.workspace, stream) : cudaSuccess;
    if (error == cudaSuccess)
        error = kernel->run(problem, stream, (char *)run.workspace + verdict);
    return status_of(error);
}

/* The same of a backward pass. */
static cmm_status backward(const cmm_fff *layer, const cmm_cuda_run *given, const cmm_gradients *gradients,
                           cmm_cuda_problem *problem, cmm_backward *b, int64_t *bytes)
{
    cmm_cuda_run run;
    cmm_status status = cmm_read_fff(layer, 1, problem);
    b->problem = problem;
    problem->path_length = problem->depth + 1;
    if (status == CMM_OK)
        status = cmm_check_layer(problem, DTYPES);
    if (status == CMM_OK)
        status = read_run(given, &run);
    if (status == CMM_OK && (run.path_nodes || run.path_leaves))
        status = CMM_ERROR_PATH_TWICE;
    if (status == CMM_OK && (problem->weight_dtype != problem->dtype || problem->weight_out_dtype != problem->dtype))
        status = CMM_ERROR_LEVEL_WEIGHT_DTYPE;
    if (status == CMM_OK)
        status = cmm_read_gradients(gradients, b);
    if (status == CMM_OK && (b->workspace || b->workspace_bytes != 0))
        status = CMM_ERROR_RESERVED; /* it is the run's */
    if (status == CMM_OK)
        status = cmm_check_batch(problem);
    if (status == CMM_OK && !bytes)
        status = cmm_check_backward(b);
    if (status == CMM_OK)
        status = find_device(problem);
    if (status != CMM_OK)
        return status;

    cmm_request wanted = {};
    wanted.level = run.level && strcmp(run.level, "auto") != 0 ? run.level : "cuda";
    wanted.algorithm = run.algorithm;
    const int64_t size = cmm_element_size(problem->dtype);
    problem->aligned = whole_vectors(problem->w_in, problem->d_in, problem->ld_in, size) &&
                       whole_vectors(problem->w_out, problem->d_out, problem->ld_out, size) &&
                       whole_vectors(b->dy, problem->d_out, problem->d_out, size) &&
                       whole_vectors(b->dx, problem->d_in, problem->d_in, size);
    const cmm_traits *found;
    status = cmm_find_kernel(CMM_OP_BACKWARD, &wanted, problem, &found);
    if (status != CMM_OK)
        return status;
    const cmm_cuda_kernel *const kernel = (const cmm_cuda_kernel *)found;
    const int64_t verdict = problem->batch > 0 ? CMM_CUDA_ALIGNMENT : 0; /* see check_path() */
    const int64_t needed = kernel->back_workspace(b);
    if (needed == -1)
        return CMM_ERROR_BATCH_TOO_LARGE;
    if (needed < 0) {
        (void)cudaGetLastError();
        return CMM_ERROR_CUDA_DEVICE;
    }
    b->workspace_needed = verdict + needed;
    if (bytes) {
        *bytes = b->workspace_needed;
        return CMM_OK;
    }
    b->workspace = run.workspace;
    b->workspace_bytes = run.workspace_bytes;
    if (b->workspace_needed > 0)
        status = b->workspace ? cmm_check_backward_workspace(b, CMM_CUDA_ALIGNMENT) : CMM_ERROR_WORKSPACE_NULL;
    if (status != CMM_OK)
        return status;
    const cudaStream_t stream = (cudaStream_t)run.stream;
    cudaError_t error = verdict ? check_path(problem, run.workspace, stream) : cudaSuccess;
    if (error == cudaSuccess)
        error = kernel->back(b, stream, (char *)run.workspace + verdict);
    return status_of(error);
}

static cmm_status fff(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y,
                      int32_t *nodes, void *logits, int wants_y, int64_t *bytes)
{
    cmm_cuda_problem problem = {};
    const cmm_status status = cmm_read_fff(layer, wants_y, &problem);
    problem.batch = batch;
    problem.x = x;
    problem.y = y;
    problem.nodes_out = nodes;
    problem.logits_out = logits;
    return status == CMM_OK ? forward(CMM_OP_FFF, &problem, run, bytes) : status;
}

static cmm_status ff(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y,
                     int64_t *bytes)
{
    cmm_cuda_problem problem = {};
    const cmm_status status = cmm_read_ff(layer, &problem);
    problem.batch = batch;
    problem.x = x;
    problem.y = y;
    return status == CMM_OK ? forward(CMM_OP_FF, &problem, run, bytes) : status;
}

/* Checked against inputs, and against the outputs before them. */
static cmm_status check_hidden(const cmm_cuda_problem *problem, const cmm_cuda_hidden *h)
{
    const int64_t size = cmm_element_size(problem->dtype), int_size = (int64_t)sizeof(int32_t);
    const int64_t logit_size = h->path ? cmm_logit_size(problem->dtype) : size;
    const int64_t all = h->trees * problem->nodes * size, path = h->trees * (problem->depth + 1);
    if (problem->batch > 0) {
        if (!h->logits)
            return CMM_ERROR_LOGITS_NULL;
        if (!h->y && !h->dx && !h->visited)
            return CMM_ERROR_Y_NULL;
        if (!h->dy && h->dx)
            return CMM_ERROR_DY_NULL;
    }
    if (cmm_misaligned(h->logits, logit_size))
        return CMM_ERROR_LOGITS_ALIGN;
    if (cmm_misaligned(h->dy, size))
        return CMM_ERROR_DY_ALIGN;
    if (cmm_misaligned(h->path, int_size))
        return CMM_ERROR_PATH_ALIGN;
    if (cmm_misaligned(h->y, size))
        return CMM_ERROR_Y_ALIGN;
    if (cmm_misaligned(h->dx, size))
        return CMM_ERROR_DX_ALIGN;
    if (cmm_misaligned(h->nodes_out, int_size))
        return CMM_ERROR_NODES_ALIGN;
    const cmm_extent arrays[] = {cmm_extent_of(h->logits, h->path ? path * logit_size : all),
                                 cmm_extent_of(h->dx ? h->dy : nullptr, all), cmm_extent_of(h->path, path * int_size),
                                 cmm_extent_of(h->y, all), cmm_extent_of(h->dx, all),
                                 cmm_extent_of(h->visited, all / size), cmm_extent_of(h->nodes_out, path * int_size)};
    const cmm_status overlaps[] = {CMM_ERROR_Y_OVERLAP, CMM_ERROR_DX_OVERLAP, CMM_ERROR_NODES_OVERLAP,
                                   CMM_ERROR_NODES_OVERLAP};
    const int inputs = 3, outputs = 4;
    for (int output = 0; output < outputs; output++)
        for (int before = 0; before < inputs + output; before++)
            if (cmm_overlap(arrays[inputs + output], arrays[before]))
                return overlaps[output];
    return CMM_OK;
}

static cmm_status hidden(const cmm_fff *layer, const cmm_cuda_run *given, int64_t batch, cmm_cuda_hidden *h)
{
    cmm_cuda_run run;
    cmm_cuda_problem problem = {};
    cmm_status status = cmm_read_fff(layer, 0, &problem);
    problem.batch = batch;
    if (status == CMM_OK)
        status = cmm_check_layer(&problem, DTYPES);
    if (status == CMM_OK)
        status = read_run(given, &run);
    if (status == CMM_OK && (run.path_nodes || run.path_leaves || (h->path && h->nodes_out)))
        status = CMM_ERROR_PATH_TWICE;
    if (status == CMM_OK && problem.weight_dtype != problem.dtype)
        status = CMM_ERROR_LEVEL_WEIGHT_DTYPE;
    if (status == CMM_OK)
        status = cmm_check_batch(&problem);
    if (status == CMM_OK && cmm_bytes_of(batch, problem.trees * problem.nodes, cmm_element_size(problem.dtype)) < 0)
        status = CMM_ERROR_BATCH_TOO_LARGE;
    if (status != CMM_OK)
        return status;
    h->dtype = problem.dtype;
    h->activation = problem.activation;
    h->tie = problem.tie;
    h->depth = problem.depth;
    h->nodes = problem.nodes;
    h->trees = batch * problem.trees;
    status = check_hidden(&problem, h);
    if (status == CMM_OK)
        status = find_device(&problem);
    if (status == CMM_OK && run.algorithm)
        status = CMM_ERROR_METHOD;
    if (status != CMM_OK || batch == 0)
        return status;
    return status_of(cmm_cuda_run_hidden(h, (cudaStream_t)run.stream));
}

/* ---- the interface --------------------------------------------------------------------------------------------- */

cmm_status cmm_cuda_fff_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes)
{
    return bytes ? fff(layer, run, batch, nullptr, nullptr, nullptr, nullptr, 1, bytes) : CMM_ERROR_BYTES_NULL;
}

cmm_status cmm_cuda_cmm_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes)
{
    return bytes ? fff(layer, run, batch, nullptr, nullptr, nullptr, nullptr, 0, bytes) : CMM_ERROR_BYTES_NULL;
}

cmm_status cmm_cuda_ff_workspace(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, int64_t *bytes)
{
    return bytes ? ff(layer, run, batch, nullptr, nullptr, bytes) : CMM_ERROR_BYTES_NULL;
}

cmm_status cmm_cuda_fff_forward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y,
                                int32_t *nodes, void *logits)
{
    return fff(layer, run, batch, x, y, nodes, logits, 1, nullptr);
}

cmm_status cmm_cuda_cmm_forward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                int32_t *nodes, void *logits)
{
    return fff(layer, run, batch, x, nullptr, nodes, logits, 0, nullptr);
}

cmm_status cmm_cuda_ff_forward(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y)
{
    return ff(layer, run, batch, x, y, nullptr);
}

cmm_status cmm_cuda_fff_backward_workspace(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch,
                                           const cmm_gradients *gradients, int64_t *bytes)
{
    cmm_cuda_problem problem = {};
    cmm_backward b = {};
    problem.batch = batch;
    return bytes ? backward(layer, run, gradients, &problem, &b, bytes) : CMM_ERROR_BYTES_NULL;
}

cmm_status cmm_cuda_fff_backward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x,
                                 const int32_t *nodes, const void *logits, const void *dy,
                                 const cmm_gradients *gradients)
{
    cmm_cuda_problem problem = {};
    cmm_backward b = {};
    problem.batch = batch;
    problem.x = x;
    problem.path = nodes;
    b.logits = logits;
    b.dy = dy;
    return backward(layer, run, gradients, &problem, &b, nullptr);
}

cmm_status cmm_cuda_fff_hidden(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *logits,
                               const int32_t *path, const void *dy, void *y, void *dx, uint8_t *visited,
                               int32_t *nodes)
{
    cmm_cuda_hidden h = {};
    h.path = path;
    h.logits = logits;
    h.dy = dy;
    h.y = y;
    h.dx = dx;
    h.visited = visited;
    h.nodes_out = nodes;
    return hidden(layer, run, batch, &h);
}

__global__ void cmm_cuda_probe(void) {}

cmm_status cmm_cuda_usable(void)
{
    int count = 0;
    cudaFuncAttributes attributes;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
        cudaFuncGetAttributes(&attributes, (const void *)cmm_cuda_probe) == cudaSuccess)
        return CMM_OK;
    (void)cudaGetLastError();
    return CMM_ERROR_CUDA_DEVICE;
}

int32_t cmm_cuda_kernel_count(void)
{
    return cmm_count_kernels();
}

static const char *why_not_usable(const cmm_traits *)
{
    return cmm_cuda_usable() == CMM_OK ? "" : "there is no NVIDIA GPU with a driver that can run it";
}

cmm_status cmm_cuda_kernel_get(int32_t index, cmm_kernel_info *info)
{
    return cmm_describe_kernel(index, why_not_usable, info);
}
