/* The checks that every call goes through, see validate.h. */
#include "validate.h"

#include "activations.inc"
#include "types.h"

#include <string.h>

enum { LARGEST_STRUCT = 4096 }; /* a larger size is none: it was not set, and memory behind the struct is not read */

int cmm_read_struct(void *to, size_t size, size_t oldest, const void *from)
{
    uint32_t given;
    memcpy(&given, from, sizeof given);
    if (given < oldest || given > LARGEST_STRUCT || given % sizeof(void *) != 0)
        return 0;
    for (size_t i = size; i < given; i++)
        if (((const char *)from)[i] != 0)
            return 0;
    memset(to, 0, size);
    memcpy(to, from, given < size ? given : size);
    return 1;
}

void cmm_write_struct(void *to, size_t size, const void *from)
{
    uint32_t given;
    memcpy(&given, to, sizeof given);
    memcpy((char *)to + sizeof given, (const char *)from + sizeof given, (given < size ? given : size) - sizeof given);
}

static const struct {
    const char *name;
    int64_t size;
} dtypes[] = {
    [CMM_F32] = {"float32", 4},
    [CMM_F64] = {"float64", 8},
    [CMM_BF16] = {"bfloat16", 2},
    [CMM_F16] = {"float16", 2},
    [CMM_I8] = {"int8", 1},
};

const char *cmm_dtype_name(int32_t dtype)
{
    return dtypes[dtype].name;
}

int64_t cmm_element_size(int32_t dtype)
{
    return dtypes[dtype].size;
}

int64_t cmm_logit_size(int32_t dtype)
{
    return dtype == CMM_F64 ? 8 : 4;
}

int64_t cmm_bytes_of(int64_t a, int64_t b, int64_t c)
{
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_mul_overflow(product, c, &product) ||
        (uint64_t)product > (uint64_t)PTRDIFF_MAX)
        return -1;
    return product;
}

cmm_extent cmm_extent_of(const void *start, int64_t bytes)
{
    const cmm_extent e = {(uintptr_t)start, start ? (uintptr_t)start + (uintptr_t)bytes : (uintptr_t)start};
    return e;
}

int cmm_overlap(cmm_extent a, cmm_extent b)
{
    return a.first < a.end && b.first < b.end && a.first < b.end && b.first < a.end;
}

int cmm_misaligned(const void *pointer, int64_t size)
{
    return ((uintptr_t)pointer & ((uintptr_t)size - 1)) != 0;
}

cmm_status cmm_read_fff(const cmm_fff *given, int wants_y, cmm_problem *problem)
{
    cmm_fff read;
    const cmm_fff *const layer = &read;
    if (!given)
        return CMM_ERROR_LAYER_NULL;
    if (!cmm_read_struct(&read, sizeof read, offsetof(cmm_fff, weight_dtype), given))
        return CMM_ERROR_LAYER_SIZE;
    if (layer->reserved != 0)
        return CMM_ERROR_RESERVED;
    problem->dtype = layer->dtype;
    problem->weight_dtype = layer->weight_dtype ? layer->weight_dtype : layer->dtype;
    problem->weight_out_dtype = layer->weight_out_dtype == 0              ? problem->weight_dtype
                                : layer->weight_out_dtype == CMM_AS_DTYPE ? layer->dtype
                                                                          : layer->weight_out_dtype;
    if (!wants_y)
        problem->weight_out_dtype = problem->weight_dtype;
    const int whole_in = layer->weight_dtype == CMM_I8; /* CMM_I8 as dtype is another mistake */
    const int whole_out = layer->weight_out_dtype == 0 ? whole_in : layer->weight_out_dtype == CMM_I8;
    if (whole_in != (layer->scale_in != NULL) || (wants_y && whole_out != (layer->scale_out != NULL)))
        return CMM_ERROR_SCALE;
    if (!layer->exact_in != !layer->margin || (layer->exact_in && problem->weight_dtype == layer->dtype))
        return CMM_ERROR_EXACT;
    if (layer->tie != CMM_TIE_LEFT && layer->tie != CMM_TIE_RIGHT)
        return CMM_ERROR_TIE;
    if (layer->depth < 0 || layer->depth > CMM_MAX_DEPTH)
        return CMM_ERROR_DEPTH;
    if (layer->trees < 1)
        return CMM_ERROR_TREES;
    problem->activation = layer->activation;
    problem->tie = layer->tie;
    problem->depth = layer->depth;
    problem->trees = layer->trees;
    problem->nodes = ((int64_t)2 << layer->depth) - 1;
    problem->wants_y = wants_y;
    problem->d_in = layer->d_in;
    problem->d_out = wants_y ? layer->d_out : 1;
    problem->ld_in = layer->ld_in ? layer->ld_in : layer->d_in;
    problem->ld_out = wants_y ? layer->ld_out ? layer->ld_out : layer->d_out : 1;
    problem->w_in = layer->w_in;
    problem->bias = layer->bias;
    problem->w_out = layer->w_out;
    problem->scale_in = layer->scale_in;
    problem->scale_out = wants_y ? layer->scale_out : NULL;
    problem->exact_in = layer->exact_in;
    problem->margin = layer->margin;
    problem->ld_exact = layer->ld_exact ? layer->ld_exact : layer->d_in;
    return CMM_OK;
}

cmm_status cmm_read_ff(const cmm_ff *given, cmm_problem *problem)
{
    cmm_ff read;
    const cmm_ff *const layer = &read;
    if (!given)
        return CMM_ERROR_LAYER_NULL;
    if (!cmm_read_struct(&read, sizeof read, sizeof read, given))
        return CMM_ERROR_LAYER_SIZE;
    if (layer->reserved != 0)
        return CMM_ERROR_RESERVED;
    if (layer->neurons < 0)
        return CMM_ERROR_NEURONS;
    problem->dtype = problem->weight_dtype = problem->weight_out_dtype = layer->dtype;
    problem->activation = layer->activation;
    problem->tie = CMM_TIE_LEFT;
    problem->depth = 0;
    problem->trees = 1;
    problem->nodes = layer->neurons;
    problem->wants_y = 1;
    problem->d_in = layer->d_in;
    problem->d_out = layer->d_out;
    problem->ld_in = layer->ld_in ? layer->ld_in : layer->d_in;
    problem->ld_out = layer->ld_out ? layer->ld_out : layer->d_out;
    problem->w_in = layer->w_in;
    problem->bias = layer->bias;
    problem->w_out = layer->w_out;
    return CMM_OK;
}

int cmm_rows_may_be(int32_t dtype, int32_t weight_dtype)
{
#define PAIR(name, x, w) {CMM_DTYPE_##x, CMM_DTYPE_##w},
    static const int32_t pairs[][2] = {CMM_NARROW_TYPES(PAIR)};
#undef PAIR
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i][0] == dtype && pairs[i][1] == weight_dtype)
            return 1;
    return weight_dtype == dtype;
}

/* The activations are numbered in the order of their list. */
enum {
#define IN_ORDER(NAME, name, ...) IN_ORDER_##NAME,
    CMM_ACTIVATIONS(IN_ORDER) ACTIVATIONS
#undef IN_ORDER
};
#define SAME_NUMBER(NAME, name, ...) \
    _Static_assert((int)CMM_##NAME == (int)IN_ORDER_##NAME, "cmm.h numbers activations in the order of activations.inc");
CMM_ACTIVATIONS(SAME_NUMBER)

cmm_status cmm_check_layer(const cmm_problem *problem, int32_t dtypes)
{
    if (problem->dtype < 0 || problem->dtype >= dtypes)
        return CMM_ERROR_DTYPE;
    if (!cmm_rows_may_be(problem->dtype, problem->weight_dtype) ||
        !cmm_rows_may_be(problem->dtype, problem->weight_out_dtype))
        return CMM_ERROR_WEIGHT_DTYPE;
    if (problem->activation < 0 || problem->activation >= ACTIVATIONS)
        return CMM_ERROR_ACTIVATION;
    if (problem->d_in < 1)
        return CMM_ERROR_D_IN;
    if (problem->d_out < 1)
        return CMM_ERROR_D_OUT;
    if (problem->ld_in < problem->d_in)
        return CMM_ERROR_LD_IN;
    if (problem->ld_out < problem->d_out)
        return CMM_ERROR_LD_OUT;
    if (problem->exact_in && problem->ld_exact < problem->d_in)
        return CMM_ERROR_LD_EXACT;
    const int64_t size = cmm_element_size(problem->dtype), size_in = cmm_element_size(problem->weight_dtype);
    const int64_t size_out = cmm_element_size(problem->weight_out_dtype);
    int64_t rows; /* each has a bias, and may have scales and a margin, of 4 bytes */
    if (__builtin_mul_overflow(problem->trees, problem->nodes, &rows) ||
        cmm_bytes_of(rows, problem->ld_in, size_in) < 0 || cmm_bytes_of(rows, problem->ld_out, size_out) < 0 ||
        cmm_bytes_of(rows, size < 4 ? 4 : size, 1) < 0 ||
        (problem->exact_in && cmm_bytes_of(rows, problem->ld_exact, size) < 0))
        return CMM_ERROR_LAYER_TOO_LARGE;
    return CMM_OK;
}

cmm_status cmm_check_batch(const cmm_problem *problem)
{
    const int64_t path = cmm_bytes_of(problem->batch, problem->trees, problem->depth + 1),
        size = cmm_logit_size(problem->dtype);
    if (problem->batch < 0)
        return CMM_ERROR_BATCH;
    /* sizes of sums, for workspaces hold those */
    if (cmm_bytes_of(problem->batch, problem->d_in, size) < 0 ||
        (problem->wants_y && cmm_bytes_of(problem->batch, problem->d_out, size) < 0) || path < 0 ||
        cmm_bytes_of(path, 8, 1) < 0)
        return CMM_ERROR_BATCH_TOO_LARGE;
    return CMM_OK;
}

cmm_status cmm_check_weights(const cmm_problem *problem)
{
    const int64_t size = cmm_element_size(problem->weight_dtype);
    const int64_t size_out = cmm_element_size(problem->weight_out_dtype), float_size = (int64_t)sizeof(float);
    if (problem->nodes > 0 && !problem->w_in)
        return CMM_ERROR_W_IN_NULL;
    if (problem->nodes > 0 && problem->wants_y && !problem->w_out)
        return CMM_ERROR_W_OUT_NULL;
    if (cmm_misaligned(problem->w_in, size))
        return CMM_ERROR_W_IN_ALIGN;
    if (problem->wants_y && cmm_misaligned(problem->w_out, size_out))
        return CMM_ERROR_W_OUT_ALIGN;
    if (cmm_misaligned(problem->bias, cmm_element_size(problem->dtype)))
        return CMM_ERROR_BIAS_ALIGN;
    if (cmm_misaligned(problem->scale_in, float_size) || cmm_misaligned(problem->scale_out, float_size) ||
        cmm_misaligned(problem->margin, float_size))
        return CMM_ERROR_SCALE_ALIGN;
    if (cmm_misaligned(problem->exact_in, cmm_element_size(problem->dtype)))
        return CMM_ERROR_EXACT_ALIGN;
    return CMM_OK;
}

static cmm_extent extent_of_rows(const void *start, int64_t rows, int64_t ld, int64_t d, int64_t size)
{
    return cmm_extent_of(rows ? start : NULL, rows ? ((rows - 1) * ld + d) * size : 0);
}

void cmm_input_extents(const cmm_problem *problem, cmm_extent *inputs)
{
    const int64_t size = cmm_element_size(problem->dtype), float_size = (int64_t)sizeof(float);
    const int64_t rows = problem->trees * problem->nodes, inner = problem->trees * (problem->nodes / 2);
    /* without rows no width was checked, and nothing is there to multiply */
    inputs[0] = extent_of_rows(problem->w_in, rows, problem->ld_in, problem->d_in,
                               cmm_element_size(problem->weight_dtype));
    inputs[1] = extent_of_rows(problem->wants_y ? problem->w_out : NULL, rows, problem->ld_out, problem->d_out,
                               cmm_element_size(problem->weight_out_dtype));
    inputs[2] = cmm_extent_of(problem->bias, rows * size);
    inputs[3] = cmm_extent_of(problem->scale_in, rows * float_size);
    inputs[4] = cmm_extent_of(problem->scale_out, rows * float_size);
    inputs[5] = extent_of_rows(problem->exact_in, inner, problem->ld_exact, problem->d_in, size);
    inputs[6] = cmm_extent_of(problem->margin, inner * float_size);
    inputs[CMM_WEIGHTS] = cmm_extent_of(problem->x, problem->batch * problem->d_in * size);
    inputs[CMM_WEIGHTS + 1] =
        cmm_extent_of(problem->path, problem->batch * problem->trees * problem->path_length * (int64_t)sizeof(int32_t));
}

void cmm_output_extents(const cmm_problem *problem, cmm_extent *outputs)
{
    const int64_t path = problem->batch * problem->trees * (problem->depth + 1);
    outputs[0] = cmm_extent_of(problem->y, problem->wants_y
                               ? problem->batch * problem->d_out * cmm_element_size(problem->dtype) : 0);
    outputs[1] = cmm_extent_of(problem->nodes_out, path * (int64_t)sizeof(int32_t));
    outputs[2] = cmm_extent_of(problem->logits_out, path * cmm_logit_size(problem->dtype));
}

cmm_status cmm_check_arrays(const cmm_problem *problem)
{
    static const cmm_status overlaps[CMM_OUTPUTS] = {CMM_ERROR_Y_OVERLAP, CMM_ERROR_NODES_OVERLAP,
                                                     CMM_ERROR_LOGITS_OVERLAP};
    const int64_t size = cmm_element_size(problem->dtype);
    const cmm_status status = cmm_check_weights(problem);
    if (status != CMM_OK)
        return status;
    if (problem->batch > 0) {
        if (!problem->x)
            return CMM_ERROR_X_NULL;
        if (problem->wants_y && !problem->y)
            return CMM_ERROR_Y_NULL;
        if (!problem->wants_y && !problem->nodes_out && !problem->logits_out)
            return CMM_ERROR_PATH_NULL;
    }
    if (cmm_misaligned(problem->x, size))
        return CMM_ERROR_X_ALIGN;
    if (cmm_misaligned(problem->y, size))
        return CMM_ERROR_Y_ALIGN;
    if (cmm_misaligned(problem->nodes_out, (int64_t)sizeof(int32_t)))
        return CMM_ERROR_NODES_ALIGN;
    if (cmm_misaligned(problem->logits_out, cmm_logit_size(problem->dtype)))
        return CMM_ERROR_LOGITS_ALIGN;
    if (cmm_misaligned(problem->path, (int64_t)sizeof(int32_t)))
        return CMM_ERROR_PATH_ALIGN;

    cmm_extent inputs[CMM_INPUTS], outputs[CMM_OUTPUTS];
    cmm_input_extents(problem, inputs);
    cmm_output_extents(problem, outputs);
    for (int o = 0; o < CMM_OUTPUTS; o++) {
        for (int i = 0; i < CMM_INPUTS; i++)
            if (cmm_overlap(outputs[o], inputs[i]))
                return overlaps[o];
        for (int earlier = 0; earlier < o; earlier++)
            if (cmm_overlap(outputs[o], outputs[earlier]))
                return overlaps[o];
    }
    return CMM_OK;
}

cmm_status cmm_check_path(const cmm_problem *problem, int64_t *refused)
{
    for (int64_t token = 0; problem->path && token < problem->batch; token++)
        for (int64_t tree = 0; tree < problem->trees; tree++) {
            const int32_t *const node = problem->path + (token * problem->trees + tree) * problem->path_length;
            if (!cmm_is_path(node, problem->path_length, problem->depth)) {
                if (refused) {
                    refused[0] = token;
                    refused[1] = tree;
                }
                return CMM_ERROR_PATH;
            }
        }
    return CMM_OK;
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */

cmm_status cmm_read_gradients(const cmm_gradients *given, cmm_backward *b)
{
    const cmm_problem *const problem = b->problem;
    cmm_gradients gradients;
    if (!given)
        return CMM_ERROR_GRADIENTS_NULL;
    if (!cmm_read_struct(&gradients, sizeof gradients, sizeof gradients, given))
        return CMM_ERROR_GRADIENTS_SIZE;
    b->dx = gradients.dx;
    b->dw_in = gradients.dw_in;
    b->dbias = gradients.dbias;
    b->dw_out = gradients.dw_out;
    b->accumulate = gradients.accumulate;
    b->ld_dw_in = gradients.ld_dw_in ? gradients.ld_dw_in : problem->d_in;
    b->ld_dw_out = gradients.ld_dw_out ? gradients.ld_dw_out : problem->d_out;
    b->workspace = gradients.workspace;
    b->workspace_bytes = gradients.workspace_bytes;
    if (b->accumulate & ~(CMM_DX | CMM_DW_IN | CMM_DBIAS | CMM_DW_OUT))
        return CMM_ERROR_ACCUMULATE;
    if (!b->dx && !b->dw_in && !b->dbias && !b->dw_out)
        return CMM_ERROR_GRADIENTS_NONE;
    const int64_t rows = problem->trees * problem->nodes, size = cmm_logit_size(problem->dtype);
    if (b->ld_dw_in < problem->d_in || cmm_bytes_of(rows, b->ld_dw_in, size) < 0)
        return CMM_ERROR_LD_DW_IN;
    if (b->ld_dw_out < problem->d_out || cmm_bytes_of(rows, b->ld_dw_out, size) < 0)
        return CMM_ERROR_LD_DW_OUT;
    return CMM_OK;
}

enum { BACKWARD_INPUTS = CMM_INPUTS + 2, GRADIENTS = 4 };

typedef struct gradient {
    const void *start;
    cmm_extent extent;
    int64_t size; /* of an element: those of rows are of the type of sums */
    cmm_status misaligned, overlaps;
} gradient;

static void backward_extents(const cmm_backward *b, cmm_extent *inputs, gradient *outputs)
{
    const cmm_problem *const problem = b->problem;
    const int64_t size = cmm_element_size(problem->dtype), sum_size = cmm_logit_size(problem->dtype);
    const int64_t rows = problem->trees * problem->nodes;
    const gradient found[GRADIENTS] = {
        {b->dx, cmm_extent_of(b->dx, problem->batch * problem->d_in * size), size, CMM_ERROR_DX_ALIGN,
         CMM_ERROR_DX_OVERLAP},
        {b->dw_in, extent_of_rows(b->dw_in, rows, b->ld_dw_in, problem->d_in, sum_size), sum_size,
         CMM_ERROR_DW_IN_ALIGN, CMM_ERROR_DW_IN_OVERLAP},
        {b->dbias, cmm_extent_of(b->dbias, rows * sum_size), sum_size, CMM_ERROR_DBIAS_ALIGN,
         CMM_ERROR_DBIAS_OVERLAP},
        {b->dw_out, extent_of_rows(b->dw_out, rows, b->ld_dw_out, problem->d_out, sum_size), sum_size,
         CMM_ERROR_DW_OUT_ALIGN, CMM_ERROR_DW_OUT_OVERLAP},
    };
    memcpy(outputs, found, sizeof found);
    cmm_input_extents(problem, inputs);
    inputs[CMM_INPUTS] =
        cmm_extent_of(b->logits, problem->batch * problem->trees * (problem->depth + 1) * sum_size);
    inputs[CMM_INPUTS + 1] = cmm_extent_of(b->dy, problem->batch * problem->d_out * size);
}

cmm_status cmm_check_backward(const cmm_backward *b)
{
    const cmm_problem *const problem = b->problem;
    const int64_t size = cmm_element_size(problem->dtype), logit_size = cmm_logit_size(problem->dtype);
    const cmm_status status = cmm_check_weights(problem);
    if (status != CMM_OK)
        return status;
    const int has_tokens = problem->batch > 0;
    if (has_tokens) {
        if (!problem->x && b->dw_in)
            return CMM_ERROR_X_NULL;
        if (!problem->path)
            return CMM_ERROR_NODES_NULL;
        if (!b->logits)
            return CMM_ERROR_LOGITS_NULL;
        if (!b->dy)
            return CMM_ERROR_DY_NULL;
    }
    if (cmm_misaligned(problem->x, size))
        return CMM_ERROR_X_ALIGN;
    if (cmm_misaligned(problem->path, (int64_t)sizeof(int32_t)))
        return CMM_ERROR_NODES_ALIGN;
    if (cmm_misaligned(b->logits, logit_size))
        return CMM_ERROR_LOGITS_ALIGN;
    if (cmm_misaligned(b->dy, size))
        return CMM_ERROR_DY_ALIGN;

    cmm_extent inputs[BACKWARD_INPUTS];
    gradient outputs[GRADIENTS];
    backward_extents(b, inputs, outputs);
    for (int o = 0; o < GRADIENTS; o++)
        if (cmm_misaligned(outputs[o].start, outputs[o].size))
            return outputs[o].misaligned;
    for (int o = 0; o < GRADIENTS; o++) {
        for (int i = 0; i < BACKWARD_INPUTS; i++)
            if (cmm_overlap(outputs[o].extent, inputs[i]))
                return outputs[o].overlaps;
        for (int before = 0; before < o; before++)
            if (cmm_overlap(outputs[o].extent, outputs[before].extent))
                return outputs[o].overlaps;
    }
    return CMM_OK;
}

cmm_status cmm_check_backward_workspace(const cmm_backward *b, int64_t alignment)
{
    if (cmm_misaligned(b->workspace, alignment))
        return CMM_ERROR_WORKSPACE_ALIGN;
    if (b->workspace_bytes < b->workspace_needed)
        return CMM_ERROR_WORKSPACE_SIZE;
    cmm_extent inputs[BACKWARD_INPUTS];
    gradient outputs[GRADIENTS];
    backward_extents(b, inputs, outputs);
    const cmm_extent workspace = cmm_extent_of(b->workspace, b->workspace_needed);
    for (int i = 0; i < BACKWARD_INPUTS; i++)
        if (cmm_overlap(workspace, inputs[i]))
            return CMM_ERROR_WORKSPACE_OVERLAP;
    for (int o = 0; o < GRADIENTS; o++)
        if (cmm_overlap(workspace, outputs[o].extent))
            return CMM_ERROR_WORKSPACE_OVERLAP;
    return CMM_OK;
}
