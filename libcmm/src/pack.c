/* Packing: a layer's rows in memory of the caller's, aligned, side by side, and in the type of rows that is asked for. */
#ifndef CMM_TYPE
#include "validate.h"
#include "kernel.h"
#include "scratch.h"

#define CMM_BODY "pack.c"
#define CMM_LIST CMM_NARROW_TYPES
#include "for_each_type.h"

/* How rows are narrowed from one type to another. */
static const struct {
    int32_t x_type, w_type;
    void (*narrow_row)(const void *from, void *to, int64_t n);
} conversions[] = {
#define CONVERSION(name, x, w) {CMM_DTYPE_##x, CMM_DTYPE_##w, narrow_row_##name},
    CMM_LIST(CONVERSION)
#undef CONVERSION
};

static void copy_row(int32_t from_type, const char *from, int32_t to_type, char *to, int64_t n)
{
    if (from_type == to_type)
        memcpy(to, from, (size_t)(n * cmm_element_size(to_type)));
    for (size_t i = 0; i < sizeof conversions / sizeof *conversions; i++)
        if (conversions[i].x_type == from_type && conversions[i].w_type == to_type)
            conversions[i].narrow_row(from, to, n);
}

/* A packed layer: per neuron its two rows, each padded; then the biases. */
typedef struct plan {
    cmm_problem problem;
    int32_t weight_dtype; /* of the packed rows */
    int64_t row_in, row;  /* bytes of a row of w_in, and of both rows */
    int64_t bytes;        /* of all */
} plan;

static cmm_status make_plan(const cmm_fff *layer, const cmm_pack_options *given, plan *p)
{
    cmm_pack_options options = {0};
    memset(p, 0, sizeof *p);
    cmm_status status = cmm_read_fff(layer, 1, &p->problem);
    if (status == CMM_OK)
        status = cmm_check_layer(&p->problem, CMM_CPU_DTYPES);
    if (status != CMM_OK)
        return status;
    if (given && !cmm_read_struct(&options, sizeof options, sizeof options, given))
        return CMM_ERROR_OPTIONS_SIZE;
    p->weight_dtype = options.weight_dtype ? options.weight_dtype : p->problem.weight_dtype;
    if (p->weight_dtype != p->problem.weight_dtype) {
        if (p->problem.weight_dtype != p->problem.dtype || !cmm_rows_may_be(p->problem.dtype, p->weight_dtype))
            return CMM_ERROR_WEIGHT_DTYPE;
        if (layer->size < offsetof(cmm_fff, scale_in)) /* `packed` is as old, and could not say so */
            return CMM_ERROR_LAYER_SIZE;
    }
    const int64_t size = cmm_element_size(p->weight_dtype), rows = p->problem.trees * p->problem.nodes;
    if (p->problem.d_in * size > INT64_MAX / 4 || p->problem.d_out * size > INT64_MAX / 4) /* padded, they would not fit */
        return CMM_ERROR_LAYER_TOO_LARGE;
    p->row_in = cmm_padded(p->problem.d_in * size, CMM_ALIGNMENT);
    p->row = p->row_in + cmm_padded(p->problem.d_out * size, CMM_ALIGNMENT);
    const int64_t weights = cmm_bytes_of(rows, p->row, 1);
    const int64_t biases = p->problem.bias ? rows * cmm_element_size(p->problem.dtype) : 0;
    if (weights < 0 || __builtin_add_overflow(weights, biases, &p->bytes))
        return CMM_ERROR_LAYER_TOO_LARGE;
    return CMM_OK;
}

cmm_status cmm_fff_pack_size_as(const cmm_fff *layer, const cmm_pack_options *options, int64_t *bytes)
{
    plan p;
    if (!bytes)
        return CMM_ERROR_BYTES_NULL;
    const cmm_status status = make_plan(layer, options, &p);
    if (status == CMM_OK)
        *bytes = p.bytes;
    return status;
}

cmm_status cmm_fff_pack_as(const cmm_fff *layer, const cmm_pack_options *options, void *memory, int64_t bytes,
                           cmm_fff *packed)
{
    plan p;
    cmm_status status = make_plan(layer, options, &p);
    if (status == CMM_OK)
        status = cmm_check_weights(&p.problem);
    if (status != CMM_OK)
        return status;
    if (!packed)
        return CMM_ERROR_PACKED_NULL;
    if (!memory)
        return CMM_ERROR_MEMORY_NULL;
    if (cmm_misaligned(memory, CMM_ALIGNMENT))
        return CMM_ERROR_MEMORY_ALIGN;
    if (bytes < p.bytes)
        return CMM_ERROR_MEMORY_SIZE;
    const cmm_extent mine = cmm_extent_of(memory, p.bytes);
    cmm_extent inputs[CMM_INPUTS];
    cmm_input_extents(&p.problem, inputs);
    for (int i = 0; i < CMM_WEIGHTS; i++)
        if (cmm_overlap(mine, inputs[i]))
            return CMM_ERROR_MEMORY_OVERLAP;

    const cmm_problem *const problem = &p.problem;
    const int64_t from_size = cmm_element_size(problem->weight_dtype), size = cmm_element_size(p.weight_dtype);
    const int64_t in = problem->d_in * size, out = problem->d_out * size, rows = problem->trees * problem->nodes;
    char *to = memory;
    for (int64_t i = 0; i < rows; i++, to += p.row) {
        copy_row(problem->weight_dtype, (const char *)problem->w_in + i * problem->ld_in * from_size, p.weight_dtype,
                 to, problem->d_in);
        memset(to + in, 0, (size_t)(p.row_in - in));
        copy_row(problem->weight_dtype, (const char *)problem->w_out + i * problem->ld_out * from_size, p.weight_dtype,
                 to + p.row_in, problem->d_out);
        memset(to + p.row_in + out, 0, (size_t)(p.row - p.row_in - out));
    }
    if (problem->bias)
        memcpy(to, problem->bias, (size_t)(rows * cmm_element_size(problem->dtype)));
    memmove(packed, layer, layer->size); /* both are of the caller's version, which may be older or newer than this */
    packed->w_in = memory;
    packed->w_out = (const char *)memory + p.row_in;
    packed->bias = problem->bias ? to : NULL;
    packed->ld_in = packed->ld_out = p.row / size;
    if (p.weight_dtype != problem->weight_dtype)
        packed->weight_dtype = p.weight_dtype;
    return CMM_OK;
}

cmm_status cmm_fff_pack_size(const cmm_fff *layer, int64_t *bytes)
{
    return cmm_fff_pack_size_as(layer, NULL, bytes);
}

cmm_status cmm_fff_pack(const cmm_fff *layer, void *memory, int64_t bytes, cmm_fff *packed)
{
    return cmm_fff_pack_as(layer, NULL, memory, bytes, packed);
}

#else

static void NAME(narrow_row)(const void *from, void *to, int64_t n)
{
    const X *const x = from;
    W *const w = to;
    for (int64_t i = 0; i < n; i++)
        w[i] = NAME(narrow)(x[i]);
}

#endif
