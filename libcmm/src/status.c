/* What each status says. */
#include "cmm.h"

#include "activations.inc"
#include "platform.h"

#if CMM_LOADS_LIBRARIES
#define BLAS_FILE "file cannot be loaded; it should be the path of a shared library for this machine"
#else
#define BLAS_FILE "this libcmm was built with CMM_THREADS=OFF and loads no libraries; fill a table in, or link libcmm with a BLAS"
#endif

#define NAME_AND_COMMA(NAME, name, ...) "CMM_" #NAME ", "

static const struct {
    cmm_status status;
    const char *name, *message;
} statuses[] = {
#define STATUS(name, message) {name, #name, message}
    STATUS(CMM_OK, "no error"),
    STATUS(CMM_ERROR_LAYER_NULL, "layer is NULL; it should point to a layer"),
    STATUS(CMM_ERROR_LAYER_SIZE, "layer->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_DTYPE, "layer->dtype is unknown; it should be CMM_F32 or CMM_F64, or with libcmm_cuda CMM_BF16 or CMM_F16"),
    STATUS(CMM_ERROR_ACTIVATION,
           "layer->activation is unknown; it should be one of " CMM_ACTIVATIONS(NAME_AND_COMMA) "which cmm.h lists"),
    STATUS(CMM_ERROR_TIE, "layer->tie is unknown; it should be CMM_TIE_LEFT or CMM_TIE_RIGHT"),
    STATUS(CMM_ERROR_TREES, "layer->trees is less than 1; it should count the trees"),
    STATUS(CMM_ERROR_DEPTH, "layer->depth is out of range; it should be the edges from root to leaf, 0 to 30"),
    STATUS(CMM_ERROR_NEURONS, "layer->neurons is negative; it should count the rows of w_in"),
    STATUS(CMM_ERROR_D_IN, "layer->d_in is less than 1; it should be the width of a token"),
    STATUS(CMM_ERROR_D_OUT, "layer->d_out is less than 1; it should be the width of an output"),
    STATUS(CMM_ERROR_LD_IN, "layer->ld_in is less than d_in; it should be 0 or the elements from row to row of w_in"),
    STATUS(CMM_ERROR_LD_OUT, "layer->ld_out is less than d_out; it should be 0 or the elements from row to row of w_out"),
    STATUS(CMM_ERROR_LAYER_TOO_LARGE, "the layer's weights are too large for the address space, or for the BLAS"),
    STATUS(CMM_ERROR_RESERVED, "a reserved field is not 0; set every field that you do not use to 0"),
    STATUS(CMM_ERROR_WEIGHT_DTYPE, "weight_dtype is no type of rows for this layer; it should be 0, or for rows of a CMM_F32 layer CMM_BF16, CMM_F16 or CMM_I8; weight_out_dtype likewise, or CMM_AS_DTYPE"),
    STATUS(CMM_ERROR_SCALE, "layer->scale_in or layer->scale_out does not go with its rows; it should be one float for each row of CMM_I8, and NULL for other rows"),
    STATUS(CMM_ERROR_EXACT, "layer->exact_in and layer->margin do not go together; an exact path needs both, and rows of w_in that are narrower than dtype"),
    STATUS(CMM_ERROR_LD_EXACT, "layer->ld_exact is less than d_in; it should be 0 or the elements from row to row of exact_in"),
    STATUS(CMM_ERROR_RUN_SIZE, "run->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_THREADS, "run->threads is negative; it should be a number of threads, or 0 for all cores"),
    STATUS(CMM_ERROR_LEVEL, "run->level names no level; cmm_level_get() lists them, and cmm_cuda.h names those of libcmm_cuda"),
    STATUS(CMM_ERROR_LEVEL_UNUSABLE, "run->level cannot be used in this build or on this machine; cmm_level_get() says why"),
    STATUS(CMM_ERROR_ISA, "run->isa names no instruction set; cmm_kernel_get() lists them"),
    STATUS(CMM_ERROR_ISA_UNUSABLE, "run->isa cannot be used in this build or on this CPU; cmm_kernel_get() says why"),
    STATUS(CMM_ERROR_METHOD, "run->algorithm is not an algorithm of this level, or cannot do this layer; it should be NULL, or one that the list of kernels names"),
    STATUS(CMM_ERROR_BLAS_MISSING, "the level needs a BLAS; put one in run->blas (see cmm_blas_load), or link libcmm with one"),
    STATUS(CMM_ERROR_BLAS_SIZE, "run->blas->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_BLAS_INCOMPLETE, "run->blas lacks a function that the level needs (dot, axpy; gemv; gemm, of the layer's dtype)"),
    STATUS(CMM_ERROR_LEVEL_WEIGHT_DTYPE, "the level has no kernel for rows of layer->weight_dtype; naive and native of libcmm have"),
    STATUS(CMM_ERROR_PATH_TWICE, "a path is given twice, by two of run->path_nodes, run->path_leaves and the nodes of a backward pass; one of them says it"),
    STATUS(CMM_ERROR_PATH_DENSE, "run->path_nodes or run->path_leaves is given for a dense layer, which has no path; it should be NULL"),
    STATUS(CMM_ERROR_BATCH, "batch is negative; it should count the tokens"),
    STATUS(CMM_ERROR_BATCH_TOO_LARGE, "batch is too large: x, y or the path would not fit in the address space"),
    STATUS(CMM_ERROR_W_IN_NULL, "layer->w_in is NULL; it should point to the input weights"),
    STATUS(CMM_ERROR_W_OUT_NULL, "layer->w_out is NULL; it should point to the output weights"),
    STATUS(CMM_ERROR_X_NULL, "x is NULL; it should point to batch tokens"),
    STATUS(CMM_ERROR_Y_NULL, "y is NULL; it should point to room for batch outputs"),
    STATUS(CMM_ERROR_PATH_NULL, "nodes and logits are both NULL; at least one should point to room for the path"),
    STATUS(CMM_ERROR_W_IN_ALIGN, "layer->w_in is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_BIAS_ALIGN, "layer->bias is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_W_OUT_ALIGN, "layer->w_out is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_X_ALIGN, "x is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_Y_ALIGN, "y is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_NODES_ALIGN, "nodes is misaligned; it should start at a multiple of 4 bytes"),
    STATUS(CMM_ERROR_LOGITS_ALIGN, "logits is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_Y_OVERLAP, "y overlaps x or a weight; it should be memory of its own"),
    STATUS(CMM_ERROR_NODES_OVERLAP, "nodes overlaps an input or y; it should be memory of its own"),
    STATUS(CMM_ERROR_LOGITS_OVERLAP, "logits overlaps an input, y or nodes; it should be memory of its own"),
    STATUS(CMM_ERROR_SCALE_ALIGN, "layer->scale_in, scale_out or margin is misaligned; it should start at a multiple of 4 bytes"),
    STATUS(CMM_ERROR_EXACT_ALIGN, "layer->exact_in is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_PATH_ALIGN, "run->path_nodes or run->path_leaves is misaligned; it should start at a multiple of 4 bytes"),
    STATUS(CMM_ERROR_PATH, "the path that is given is none; for each token and tree it should be nodes from the root to a leaf, or a leaf (run->refused says which is not)"),
    STATUS(CMM_ERROR_MEMORY, "no memory for the scratch space of the call; use fewer threads or a smaller batch"),
    STATUS(CMM_ERROR_BLAS_NULL, "blas is NULL; it should point to the table to fill"),
    STATUS(CMM_ERROR_BLAS_FILE_NULL, "file is NULL; it should be the path of a BLAS library"),
    STATUS(CMM_ERROR_BLAS_FILE, BLAS_FILE),
    STATUS(CMM_ERROR_BLAS_SYMBOLS, "this is no BLAS with 32-bit integers (LP64): functions (sgemm_, scipy_sgemm_ and the like) are missing, or count "
           "in 64 bits"),
    STATUS(CMM_ERROR_INDEX, "index is out of range; it should be 0 to cmm_level_count() - 1, or cmm_kernel_count() - 1"),
    STATUS(CMM_ERROR_INFO_NULL, "info is NULL; it should point to the struct to fill"),
    STATUS(CMM_ERROR_INFO_SIZE, "info->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_MEMORY_NULL, "memory is NULL; it should point to cmm_fff_pack_size() bytes"),
    STATUS(CMM_ERROR_MEMORY_ALIGN, "memory is misaligned; it should start at a multiple of CMM_ALIGNMENT"),
    STATUS(CMM_ERROR_MEMORY_SIZE, "memory is too small; it should have cmm_fff_pack_size() bytes"),
    STATUS(CMM_ERROR_PACKED_NULL, "packed is NULL; it should point to the descriptor to fill"),
    STATUS(CMM_ERROR_BYTES_NULL, "bytes is NULL; it should point to the size to fill"),
    STATUS(CMM_ERROR_MEMORY_OVERLAP, "memory overlaps the layer's weights; it should be memory of its own"),
    STATUS(CMM_ERROR_ROW_NOT_FINITE, "a row that would be one of CMM_I8 holds an infinity or NaN; it should be finite (options->refused says which)"),
    STATUS(CMM_ERROR_SIGMAS, "options->sigmas is negative or NaN, or given without an exact path to narrow rows; it should be 0 for a certain path, or the standard deviations of a likely one"),
    STATUS(CMM_ERROR_OPTIONS_SIZE, "options->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_CUDA_LAUNCH, "the CUDA driver refused a kernel; the current device should be the stream's, and its last error none"),
    STATUS(CMM_ERROR_CUDA_ABSENT, "libcmm_cuda is not here; build libcmm with CMM_CUDA=ON and a CUDA compiler"),
    STATUS(CMM_ERROR_CUDA_DEVICE, "there is no NVIDIA GPU with a driver that can run libcmm_cuda's kernels"),
    STATUS(CMM_ERROR_WORKSPACE_NULL, "run->workspace is NULL; it should point to cmm_cuda_.._workspace() bytes on the device"),
    STATUS(CMM_ERROR_WORKSPACE_ALIGN, "workspace is misaligned; it should start at a multiple of CMM_ALIGNMENT, on a device of CMM_CUDA_ALIGNMENT"),
    STATUS(CMM_ERROR_WORKSPACE_SIZE, "workspace is too small; it should have as many bytes as the call's .._workspace() says"),
    STATUS(CMM_ERROR_WORKSPACE_OVERLAP, "workspace overlaps an input or an output; it should be memory of its own"),
    STATUS(CMM_ERROR_GRADIENTS_NULL, "gradients is NULL; it should point to a struct that says which are wanted, and where"),
    STATUS(CMM_ERROR_GRADIENTS_SIZE, "gradients->size is not the size of the struct, or what it has beyond this version's fields is not 0; set it to sizeof the struct, and all that you do not use to 0"),
    STATUS(CMM_ERROR_ACCUMULATE, "gradients->accumulate has unknown bits; it should be 0 or of CMM_DX, CMM_DW_IN, CMM_DBIAS, CMM_DW_OUT"),
    STATUS(CMM_ERROR_GRADIENTS_NONE, "no gradient is wanted; at least one of dx, dw_in, dbias, dw_out should not be NULL"),
    STATUS(CMM_ERROR_LD_DW_IN, "gradients->ld_dw_in is less than d_in, or too large; it should be 0 or the elements from row to row of dw_in"),
    STATUS(CMM_ERROR_LD_DW_OUT, "gradients->ld_dw_out is less than d_out, or too large; it should be 0 or the elements from row to row of dw_out"),
    STATUS(CMM_ERROR_NODES_NULL, "nodes is NULL; it should point to the path that the forward pass gave"),
    STATUS(CMM_ERROR_LOGITS_NULL, "logits is NULL; it should point to the logits that the forward pass gave"),
    STATUS(CMM_ERROR_DY_NULL, "dy is NULL; it should point to batch gradients of outputs"),
    STATUS(CMM_ERROR_DY_ALIGN, "dy is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_DX_ALIGN, "gradients->dx is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_DW_IN_ALIGN, "gradients->dw_in is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_DBIAS_ALIGN, "gradients->dbias is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_DW_OUT_ALIGN, "gradients->dw_out is misaligned; it should start at a multiple of its element's size"),
    STATUS(CMM_ERROR_DX_OVERLAP, "gradients->dx overlaps an input; it should be memory of its own"),
    STATUS(CMM_ERROR_DW_IN_OVERLAP, "gradients->dw_in overlaps an input or dx; it should be memory of its own"),
    STATUS(CMM_ERROR_DBIAS_OVERLAP, "gradients->dbias overlaps an input, dx or dw_in; it should be memory of its own"),
    STATUS(CMM_ERROR_DW_OUT_OVERLAP, "gradients->dw_out overlaps an input or another gradient; it should be memory of its own"),
};

static const size_t status_count = sizeof statuses / sizeof statuses[0];

const char *cmm_status_name(cmm_status status)
{
    for (size_t i = 0; i < status_count; i++)
        if (statuses[i].status == status)
            return statuses[i].name;
    return "CMM_ERROR_UNKNOWN";
}

const char *cmm_status_message(cmm_status status)
{
    for (size_t i = 0; i < status_count; i++)
        if (statuses[i].status == status)
            return statuses[i].message;
    return "unknown status; it does not come from this version of libcmm";
}
