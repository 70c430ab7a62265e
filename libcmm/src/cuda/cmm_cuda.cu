/* The front door of libcmm_cuda: every check, every default, the choice of a kernel. The checks are those of ../cmm.c, in
 * its order, so that a wrong call gets the same status on both sides. */
#include "kernel.cuh"

#include <cstring>

/* ---- the table of kernels -------------------------------------------------------------------------------------- */

#define CMM_CUDA_KERNEL(op, name) extern const cmm_cuda_kernel cmm_cuda_##op##_##name;
#include "kernels.inc"
#undef CMM_CUDA_KERNEL

static const cmm_cuda_kernel *const kernels[] = {
#define CMM_CUDA_KERNEL(op, name) &cmm_cuda_##op##_##name,
#include "kernels.inc"
#undef CMM_CUDA_KERNEL
};

enum { KERNELS = (int)(sizeof kernels / sizeof kernels[0]) };

static int is_level(const char *name)
{
    for (int i = 0; i < KERNELS; i++)
        if (strcmp(name, kernels[i]->level) == 0)
            return 1;
    return 0;
}

/* ---- checks ---------------------------------------------------------------------------------------------------- */

/* a * b * c bytes, or -1 when that does not fit in the address space. */
static int64_t bytes_of(int64_t a, int64_t b, int64_t c)
{
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_mul_overflow(product, c, &product) || product < 0)
        return -1;
    return product;
}

struct extent {
    uintptr_t first, end;
};

static extent extent_of(const void *start, int64_t bytes)
{
    return {(uintptr_t)start, start ? (uintptr_t)start + (uintptr_t)bytes : (uintptr_t)start};
}

static int overlap(extent a, extent b)
{
    return a.first < b.end && b.first < a.end;
}

static int misaligned(const void *pointer, int64_t size)
{
    return ((uintptr_t)pointer & ((uintptr_t)size - 1)) != 0;
}

static cmm_status check_layer(const cmm_cuda_task *task)
{
    if (task->dtype < CMM_F32 || task->dtype > CMM_F16)
        return CMM_ERROR_DTYPE;
    if (task->activation < CMM_GELU || task->activation > CMM_IDENTITY)
        return CMM_ERROR_ACTIVATION;
    if (task->d_in < 1)
        return CMM_ERROR_D_IN;
    if (task->d_out < 1)
        return CMM_ERROR_D_OUT;
    if (task->ld_in < task->d_in)
        return CMM_ERROR_LD_IN;
    if (task->ld_out < task->d_out)
        return CMM_ERROR_LD_OUT;
    const int64_t size = element_size(task->dtype);
    int64_t rows;
    if (__builtin_mul_overflow(task->trees, task->nodes, &rows) || bytes_of(rows, task->ld_in, size) < 0 ||
        bytes_of(rows, task->ld_out, size) < 0)
        return CMM_ERROR_LAYER_TOO_LARGE;
    return CMM_OK;
}

static cmm_status check_run(const cmm_cuda_run *run)
{
    if (run && run->size != sizeof *run)
        return CMM_ERROR_RUN_SIZE;
    if (run && run->reserved != 0)
        return CMM_ERROR_RESERVED;
    if (run && run->level && strcmp(run->level, "auto") != 0 && !is_level(run->level))
        return CMM_ERROR_LEVEL;
    return CMM_OK;
}

static cmm_status check_sizes(const cmm_cuda_task *task)
{
    const int64_t path = bytes_of(task->batch, task->trees, task->depth + 1);
    if (task->batch < 0)
        return CMM_ERROR_BATCH;
    /* 8 bytes: the workspace holds floats for some dtypes of 2 */
    if (bytes_of(task->batch, task->d_in, 8) < 0 || bytes_of(task->batch, task->d_out, 8) < 0 || path < 0 ||
        bytes_of(path, 8, 1) < 0)
        return CMM_ERROR_BATCH_TOO_LARGE;
    return CMM_OK;
}

enum { WEIGHTS = 3, INPUTS = 4 };

static cmm_status check_arrays(const cmm_cuda_task *task, extent (&inputs)[INPUTS], extent (&outputs)[3])
{
    const int64_t size = element_size(task->dtype), logit_size = size < 4 ? 4 : size;
    const int64_t rows = task->trees * task->nodes, last = rows > 0 ? rows - 1 : 0;
    if (rows > 0 && !task->w_in)
        return CMM_ERROR_W_IN_NULL;
    if (rows > 0 && task->wants_y && !task->w_out)
        return CMM_ERROR_W_OUT_NULL;
    if (misaligned(task->w_in, size))
        return CMM_ERROR_W_IN_ALIGN;
    if (task->wants_y && misaligned(task->w_out, size))
        return CMM_ERROR_W_OUT_ALIGN;
    if (misaligned(task->bias, size))
        return CMM_ERROR_BIAS_ALIGN;
    if (task->batch > 0) {
        if (!task->x)
            return CMM_ERROR_X_NULL;
        if (task->wants_y && !task->y)
            return CMM_ERROR_Y_NULL;
        if (!task->wants_y && !task->nodes_out && !task->logits_out)
            return CMM_ERROR_PATH_NULL;
    }
    if (misaligned(task->x, size))
        return CMM_ERROR_X_ALIGN;
    if (misaligned(task->y, size))
        return CMM_ERROR_Y_ALIGN;
    if (misaligned(task->nodes_out, (int64_t)sizeof(int32_t)))
        return CMM_ERROR_NODES_ALIGN;
    if (misaligned(task->logits_out, logit_size))
        return CMM_ERROR_LOGITS_ALIGN;

    const int64_t path = task->batch * task->trees * (task->depth + 1);
    inputs[0] = extent_of(rows ? task->w_in : nullptr, (last * task->ld_in + task->d_in) * size);
    inputs[1] = extent_of(rows && task->wants_y ? task->w_out : nullptr, (last * task->ld_out + task->d_out) * size);
    inputs[2] = extent_of(task->bias, rows * size);
    inputs[WEIGHTS] = extent_of(task->x, task->batch * task->d_in * size);
    outputs[0] = extent_of(task->y, task->wants_y ? task->batch * task->d_out * size : 0);
    outputs[1] = extent_of(task->nodes_out, path * (int64_t)sizeof(int32_t));
    outputs[2] = extent_of(task->logits_out, path * logit_size);
    static const cmm_status overlaps[3] = {CMM_ERROR_Y_OVERLAP, CMM_ERROR_NODES_OVERLAP, CMM_ERROR_LOGITS_OVERLAP};
    for (int i = 0; i < INPUTS; i++)
        for (int o = 0; o < 3; o++)
            if (overlap(outputs[o], inputs[i]))
                return overlaps[o];
    for (int o = 1; o < 3; o++)
        for (int earlier = 0; earlier < o; earlier++)
            if (overlap(outputs[o], outputs[earlier]))
                return overlaps[o];
    return CMM_OK;
}

/* The workspace: big enough, aligned, and memory of its own. */
static cmm_status check_workspace(const cmm_cuda_run *run, int64_t needed, const extent (&inputs)[INPUTS],
                                  const extent (&outputs)[3])
{
    if (needed == 0)
        return CMM_OK;
    if (!run || !run->workspace)
        return CMM_ERROR_WORKSPACE_NULL;
    if (misaligned(run->workspace, CMM_CUDA_ALIGNMENT))
        return CMM_ERROR_WORKSPACE_ALIGN;
    if (run->workspace_bytes < needed)
        return CMM_ERROR_WORKSPACE_SIZE;
    const extent memory = extent_of(run->workspace, needed);
    for (const extent &e : inputs)
        if (overlap(memory, e))
            return CMM_ERROR_WORKSPACE_OVERLAP;
    for (const extent &e : outputs)
        if (overlap(memory, e))
            return CMM_ERROR_WORKSPACE_OVERLAP;
    return CMM_OK;
}

/* ---- choosing and running -------------------------------------------------------------------------------------- */

/* Whether rows of so many elements, ld elements apart, all start and end at multiples of 16 bytes. */
static int whole_vectors(const void *start, int64_t width, int64_t ld, int64_t size)
{
    return ((uintptr_t)start | (uintptr_t)(width * size) | (uintptr_t)(ld * size)) % 16 == 0;
}

static void find_alignment(cmm_cuda_task *task)
{
    const int64_t size = element_size(task->dtype);
    task->aligned = whole_vectors(task->w_in, task->d_in, task->ld_in, size) &&
                    whole_vectors(task->x, task->d_in, task->d_in, size);
    if (task->wants_y)
        task->aligned = task->aligned && whole_vectors(task->w_out, task->d_out, task->ld_out, size) &&
                        whole_vectors(task->y, task->d_out, task->d_out, size);
}

static cmm_status find_device(cmm_cuda_task *task)
{
    int device;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&task->processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return CMM_ERROR_CUDA_DEVICE;
    return CMM_OK;
}

/* The last kernel of the list that is what was asked for, can do the task, and suits or was asked for by its method. */
static cmm_status find_kernel(const char *op, const char *level, const char *method, const cmm_cuda_task *task,
                              const cmm_cuda_kernel **found)
{
    for (int i = KERNELS - 1; i >= 0; i--) {
        const cmm_cuda_kernel *const kernel = kernels[i];
        if (strcmp(kernel->op, op) != 0 || strcmp(kernel->level, level) != 0)
            continue;
        if (method && strcmp(kernel->method, method) != 0)
            continue;
        if (kernel->can && !kernel->can(task))
            continue;
        if (!method && kernel->suits && !kernel->suits(task))
            continue;
        *found = kernel;
        return CMM_OK;
    }
    return CMM_ERROR_METHOD;
}

/* Do a call; or, where bytes is not NULL, only say how much workspace it needs. */
static cmm_status forward(const char *op, cmm_cuda_task *task, const cmm_cuda_run *run, int64_t *bytes)
{
    extent inputs[INPUTS], outputs[3];
    cmm_status status = check_layer(task);
    if (status == CMM_OK)
        status = check_run(run);
    if (status == CMM_OK)
        status = check_sizes(task);
    if (status == CMM_OK && !bytes)
        status = check_arrays(task, inputs, outputs);
    if (status == CMM_OK)
        status = find_device(task);
    if (status != CMM_OK)
        return status;

    const char *const level = run && run->level && strcmp(run->level, "auto") != 0 ? run->level : "cuda";
    if (strcmp(op, "ff") == 0 && strcmp(level, "cuda") == 0) { /* a forest: as many trees of one node as neurons */
        op = "fff";
        task->trees = task->nodes;
        task->nodes = 1;
    }
    find_alignment(task);
    if (bytes) /* the arrays may come to lie anywhere, so ask for enough for either case */
        task->aligned = 1;
    const cmm_cuda_kernel *kernel;
    status = find_kernel(op, level, run ? run->method : nullptr, task, &kernel);
    if (bytes) {
        if (status == CMM_OK)
            *bytes = kernel->workspace && task->batch > 0 ? kernel->workspace(task) : 0;
        return status;
    }
    if (status == CMM_OK)
        status = check_workspace(run, kernel->workspace && task->batch > 0 ? kernel->workspace(task) : 0, inputs, outputs);
    if (status != CMM_OK || task->batch == 0)
        return status;
    const cudaError_t error =
        kernel->run(task, run ? (cudaStream_t)run->stream : nullptr, run ? run->workspace : nullptr);
    if (error == cudaSuccess)
        return CMM_OK;
    (void)cudaGetLastError(); /* it has been reported */
    return error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ? CMM_ERROR_CUDA_DEVICE
                                                                                             : CMM_ERROR_CUDA_LAUNCH;
}

static cmm_status read_fff(const cmm_fff *layer, int wants_y, cmm_cuda_task *task)
{
    if (!layer)
        return CMM_ERROR_LAYER_NULL;
    if (layer->size != sizeof *layer)
        return CMM_ERROR_LAYER_SIZE;
    if (layer->reserved != 0)
        return CMM_ERROR_RESERVED;
    if (layer->tie != CMM_TIE_LEFT && layer->tie != CMM_TIE_RIGHT)
        return CMM_ERROR_TIE;
    if (layer->depth < 0 || layer->depth > CMM_MAX_DEPTH)
        return CMM_ERROR_DEPTH;
    if (layer->trees < 1)
        return CMM_ERROR_TREES;
    task->dtype = layer->dtype;
    task->activation = layer->activation;
    task->tie = layer->tie;
    task->depth = layer->depth;
    task->trees = layer->trees;
    task->nodes = ((int64_t)2 << layer->depth) - 1;
    task->d_in = layer->d_in;
    task->d_out = wants_y ? layer->d_out : 1;
    task->ld_in = layer->ld_in ? layer->ld_in : layer->d_in;
    task->ld_out = wants_y ? layer->ld_out ? layer->ld_out : layer->d_out : 1;
    task->w_in = layer->w_in;
    task->bias = layer->bias;
    task->w_out = layer->w_out;
    task->wants_y = wants_y;
    return CMM_OK;
}

static cmm_status read_ff(const cmm_ff *layer, cmm_cuda_task *task)
{
    if (!layer)
        return CMM_ERROR_LAYER_NULL;
    if (layer->size != sizeof *layer)
        return CMM_ERROR_LAYER_SIZE;
    if (layer->reserved != 0)
        return CMM_ERROR_RESERVED;
    if (layer->neurons < 0)
        return CMM_ERROR_NEURONS;
    task->dtype = layer->dtype;
    task->activation = layer->activation;
    task->trees = 1;
    task->nodes = layer->neurons;
    task->d_in = layer->d_in;
    task->d_out = layer->d_out;
    task->ld_in = layer->ld_in ? layer->ld_in : layer->d_in;
    task->ld_out = layer->ld_out ? layer->ld_out : layer->d_out;
    task->w_in = layer->w_in;
    task->bias = layer->bias;
    task->w_out = layer->w_out;
    task->wants_y = 1;
    return CMM_OK;
}

static cmm_status fff(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y, int32_t *nodes,
                      void *logits, int wants_y, int64_t *bytes)
{
    cmm_cuda_task task = {};
    const cmm_status status = read_fff(layer, wants_y, &task);
    task.batch = batch;
    task.x = x;
    task.y = y;
    task.nodes_out = nodes;
    task.logits_out = logits;
    return status == CMM_OK ? forward("fff", &task, run, bytes) : status;
}

static cmm_status ff(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y, int64_t *bytes)
{
    cmm_cuda_task task = {};
    const cmm_status status = read_ff(layer, &task);
    task.batch = batch;
    task.x = x;
    task.y = y;
    return status == CMM_OK ? forward("ff", &task, run, bytes) : status;
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

cmm_status cmm_cuda_cmm_forward(const cmm_fff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, int32_t *nodes,
                                void *logits)
{
    return fff(layer, run, batch, x, nullptr, nodes, logits, 0, nullptr);
}

cmm_status cmm_cuda_ff_forward(const cmm_ff *layer, const cmm_cuda_run *run, int64_t batch, const void *x, void *y)
{
    return ff(layer, run, batch, x, y, nullptr);
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
    return KERNELS;
}

cmm_status cmm_cuda_kernel_get(int32_t index, cmm_kernel_info *info)
{
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (info->size != sizeof *info)
        return CMM_ERROR_INFO_SIZE;
    if (index < 0 || index >= KERNELS)
        return CMM_ERROR_INDEX;
    const cmm_cuda_kernel *const kernel = kernels[index];
    info->usable = cmm_cuda_usable() == CMM_OK;
    info->operation = kernel->op;
    info->name = kernel->name;
    info->level = kernel->level;
    info->method = kernel->method;
    info->isa = "cuda";
    info->why = info->usable ? "" : "there is no NVIDIA GPU with a driver that can run it";
    return CMM_OK;
}
