/* Packing: a layer's rows in memory of the caller's, aligned, side by side, and in the types of rows that are asked for. */
#ifndef CMM_TYPE
#include "caller.h"
#include "kernel.h"
#include "scratch.h"
#include "validate.h"

#include <float.h>
#include <math.h>

#define CMM_BODY "pack.c"
#define CMM_LIST CMM_NARROW_TYPES
#include "for_each_type.h"

/* How rows are narrowed from one type to another. What the narrow numbers are multiples of is put into *scale. */
static const struct {
    int32_t x_type, w_type;
    void (*narrow_row)(const void *from, void *to, int64_t n, float *scale);
    double (*margin)(const void *from, const void *to, int64_t n, float scale, double sigmas);
} conversions[] = {
#define CONVERSION(name, x, w) {CMM_DTYPE_##x, CMM_DTYPE_##w, narrow_row_##name, margin_##name},
    CMM_LIST(CONVERSION)
#undef CONVERSION
};

enum { CONVERSIONS = sizeof conversions / sizeof *conversions };

/* The conversion of rows; -1: they stay as they are. */
static int find_conversion(int32_t from, int32_t to)
{
    int i = CONVERSIONS - 1;
    while (i >= 0 && !(from != to && conversions[i].x_type == from && conversions[i].w_type == to))
        i--;
    return i;
}

/* One of the two matrices of a layer, and what becomes of its rows. */
typedef struct matrix {
    const char *from;   /* the first row */
    const float *scale; /* of its rows, if they have any */
    int64_t d, pitch;   /* elements of a row, bytes from one to the next */
    int32_t type;       /* of the packed rows */
    int conversion;
    int64_t size;       /* of a packed element, in bytes */
} matrix;

/* A packed layer: per neuron its two rows, each padded; the rows of the exact path, padded too; then the biases, the
 * scales of either row, and the margins. */
typedef struct plan {
    cmm_problem problem;
    cmm_pack_options options;
    matrix in, out;
    int exact; /* whether the packed layer has an exact path */
    int64_t neurons, inner;
    int64_t row_in, row; /* bytes of a row of w_in, and of both rows */
    int64_t exact_row, exact_rows, biases, scales_in, scales_out, margins; /* bytes */
    int64_t bytes; /* of all */
} plan;

static cmm_status plan_matrix(matrix *m, int32_t dtype, int32_t from_type, const void *from, const float *scale,
                              int64_t d, int64_t ld)
{
    *m = (matrix){.from = from, .scale = scale, .d = d, .pitch = ld * cmm_element_size(from_type), .type = m->type};
    if (m->type != from_type && (from_type != dtype || !cmm_rows_may_be(dtype, m->type)))
        return CMM_ERROR_WEIGHT_DTYPE;
    m->conversion = find_conversion(from_type, m->type);
    m->size = cmm_element_size(m->type);
    /* padded it would not fit */
    return d * m->size > INT64_MAX / 4 ? CMM_ERROR_LAYER_TOO_LARGE : CMM_OK;
}

/* What is wanted; 0 where nothing is. */
static cmm_status read_options(const cmm_pack_options *given, plan *p)
{
    cmm_pack_options *const o = &p->options;
    if (given && !cmm_read_struct(o, sizeof *o, offsetof(cmm_pack_options, weight_out_dtype), given))
        return CMM_ERROR_OPTIONS_SIZE;
    const cmm_problem *const problem = &p->problem;
    p->in.type = o->weight_dtype ? o->weight_dtype : problem->weight_dtype;
    p->out.type = o->weight_out_dtype == CMM_AS_DTYPE ? problem->dtype
                  : o->weight_out_dtype               ? o->weight_out_dtype
                  : o->weight_dtype                   ? o->weight_dtype
                                                      : problem->weight_out_dtype;
    cmm_status status = plan_matrix(&p->in, problem->dtype, problem->weight_dtype, problem->w_in, problem->scale_in,
                                    problem->d_in, problem->ld_in);
    if (status == CMM_OK)
        status = plan_matrix(&p->out, problem->dtype, problem->weight_out_dtype, problem->w_out, problem->scale_out,
                             problem->d_out, problem->ld_out);
    if (status != CMM_OK)
        return status;
    if ((o->exact_path != 0 && o->exact_path != 1) || (o->exact_path && p->in.conversion < 0 && !problem->exact_in))
        return CMM_ERROR_EXACT;
    p->exact = o->exact_path || problem->exact_in;
    if (!(o->sigmas >= 0) || (o->sigmas > 0 && !(o->exact_path && p->in.conversion >= 0)))
        return CMM_ERROR_SIGMAS;
    return CMM_OK;
}

/* Whether a struct of the caller's version can say what the packed layer is. */
static int can_say(uint32_t size, const plan *p)
{
    if (p->exact)
        return size >= sizeof(cmm_fff);
    if (p->in.type == CMM_I8 || p->out.type == CMM_I8)
        return size >= offsetof(cmm_fff, exact_in);
    return p->in.conversion < 0 && p->out.conversion < 0 ? 1 : size >= offsetof(cmm_fff, scale_in);
}

static cmm_status make_plan(const cmm_fff *layer, const cmm_pack_options *given, plan *p)
{
    memset(p, 0, sizeof *p);
    const cmm_problem *const problem = &p->problem;
    cmm_status status = cmm_read_fff(layer, 1, &p->problem);
    if (status == CMM_OK)
        status = cmm_check_layer(problem, CMM_CPU_DTYPES);
    if (status == CMM_OK)
        status = read_options(given, p);
    if (status != CMM_OK)
        return status;
    if (!can_say(layer->size, p))
        return CMM_ERROR_LAYER_SIZE;
    p->neurons = problem->trees * problem->nodes;
    p->inner = problem->trees * (problem->nodes / 2);
    p->row_in = cmm_padded(p->in.d * p->in.size, CMM_ALIGNMENT);
    p->row = p->row_in + cmm_padded(p->out.d * p->out.size, CMM_ALIGNMENT);
    const int64_t float_size = (int64_t)sizeof(float), size = cmm_element_size(problem->dtype);
    const int64_t rows = cmm_bytes_of(p->neurons, p->row, 1);
    /* cmm_check_layer() has seen that each of these fits */
    p->biases = problem->bias ? p->neurons * size : 0;
    p->scales_in = p->in.type == CMM_I8 ? p->neurons * float_size : 0;
    p->scales_out = p->out.type == CMM_I8 ? p->neurons * float_size : 0;
    p->margins = p->exact ? p->inner * float_size : 0;
    /* a layer without inner nodes may be as wide as memory, and has none of these rows */
    p->exact_row = p->exact && p->inner > 0 ? cmm_padded(problem->d_in * size, CMM_ALIGNMENT) : 0;
    p->exact_rows = cmm_bytes_of(p->inner, p->exact_row, 1);
    if (rows < 0 || p->exact_rows < 0 || __builtin_add_overflow(rows, p->exact_rows, &p->bytes) ||
        __builtin_add_overflow(p->bytes, p->biases, &p->bytes) ||
        __builtin_add_overflow(p->bytes, p->scales_in + p->scales_out + p->margins, &p->bytes))
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

/* Rows that become whole numbers must be finite: an infinity would leave nothing of the others. */
static cmm_status check_finite(const plan *p)
{
    for (int which = 0; which < 2; which++) {
        const matrix *const m = which == 0 ? &p->in : &p->out;
        if (m->conversion < 0 || m->type != CMM_I8)
            continue;
        for (int64_t i = 0; i < p->neurons; i++) {
            const float *const row = (const float *)(m->from + i * m->pitch);
            int finite = 1;
            for (int64_t k = 0; k < m->d; k++)
                finite &= fabsf(row[k]) <= FLT_MAX;
            if (!finite) {
                if (p->options.refused) {
                    p->options.refused[0] = i;
                    p->options.refused[1] = which;
                }
                return CMM_ERROR_ROW_NOT_FINITE;
            }
        }
    }
    return CMM_OK;
}

/* Row i to its place, padded with zeros; its scale, if it has one, to scales[i]. */
static void pack_row(const matrix *m, int64_t i, char *to, int64_t padded, float *scales)
{
    const char *const from = m->from + i * m->pitch;
    const int64_t bytes = m->d * m->size;
    float scale = 1;
    if (m->conversion >= 0)
        conversions[m->conversion].narrow_row(from, to, m->d, &scale);
    else
        memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(padded - bytes));
    if (scales)
        scales[i] = m->scale ? m->scale[i] : scale;
}

/* What the exact path has of inner node `node` of a tree. */
static void pack_exact(const plan *p, int64_t tree, int64_t node, const char *narrow, const float *scales, char *to,
                       float *margin)
{
    const cmm_problem *const problem = &p->problem;
    const int64_t size = cmm_element_size(problem->dtype), neuron = tree * problem->nodes + node;
    const int64_t inner = tree * (problem->nodes / 2) + node, bytes = problem->d_in * size;
    const char *const from = p->in.conversion >= 0
                                 ? p->in.from + neuron * p->in.pitch
                                 : (const char *)problem->exact_in + inner * problem->ld_exact * size;
    memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(p->exact_row - bytes));
    if (p->in.conversion < 0)
        *margin = problem->margin[inner];
    else
        *margin = (float)conversions[p->in.conversion].margin(from, narrow, problem->d_in, scales ? scales[neuron] : 1,
                                                             p->options.sigmas);
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
    status = check_finite(&p);
    if (status != CMM_OK)
        return status;

    const cmm_caller caller = cmm_caller_enter(); /* roundings are to the nearest, whatever the caller's are */
    const cmm_problem *const problem = &p.problem;
    char *const rows = memory, *const exact = rows + p.neurons * p.row, *const biases = exact + p.exact_rows;
    float *const scales_in = p.scales_in ? (float *)(void *)(biases + p.biases) : NULL;
    float *const scales_out = p.scales_out ? (float *)(void *)(biases + p.biases + p.scales_in) : NULL;
    float *const margins = (float *)(void *)(biases + p.biases + p.scales_in + p.scales_out);
    for (int64_t i = 0; i < p.neurons; i++) {
        pack_row(&p.in, i, rows + i * p.row, p.row_in, scales_in);
        pack_row(&p.out, i, rows + i * p.row + p.row_in, p.row - p.row_in, scales_out);
    }
    for (int64_t tree = 0; p.exact && tree < problem->trees; tree++)
        for (int64_t node = 0; node < problem->nodes / 2; node++) {
            const int64_t inner = tree * (problem->nodes / 2) + node;
            pack_exact(&p, tree, node, rows + (tree * problem->nodes + node) * p.row, scales_in,
                       exact + inner * p.exact_row, margins + inner);
        }
    if (problem->bias)
        memcpy(biases, problem->bias, (size_t)(p.neurons * cmm_element_size(problem->dtype)));
    cmm_caller_leave(&caller);

    const uint32_t size = layer->size; /* both are of the caller's version, which may be older or newer than this */
    memmove(packed, layer, size);
    packed->w_in = rows;
    packed->w_out = rows + p.row_in;
    packed->bias = problem->bias ? biases : NULL;
    packed->ld_in = p.row / p.in.size;
    packed->ld_out = p.row / p.out.size;
    if (size >= offsetof(cmm_fff, scale_in)) {
        packed->weight_dtype = p.in.type == problem->dtype ? 0 : p.in.type;
        packed->weight_out_dtype = p.out.type == p.in.type        ? 0
                                   : p.out.type == problem->dtype ? CMM_AS_DTYPE
                                                                  : p.out.type;
    }
    if (size >= offsetof(cmm_fff, exact_in)) {
        packed->scale_in = scales_in;
        packed->scale_out = scales_out;
    }
    if (size >= sizeof(cmm_fff)) {
        packed->exact_in = p.exact ? exact : NULL;
        packed->margin = p.exact ? margins : NULL;
        packed->ld_exact = p.exact ? p.exact_row / cmm_element_size(problem->dtype) : 0;
    }
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

static void NAME(narrow_row)(const void *from, void *to, int64_t n, float *scale)
{
    const X *const x = from;
    W *const w = to;
    const X s = NAME(scale_for)(x, n);
    *scale = (float)s;
    for (int64_t i = 0; i < n; i++)
        w[i] = NAME(narrow)(x[i], s);
}

/* The margin of a row: how far, in norms of the token, a logit may be from 0 and still be of the other sign than that of
 * the row as it was. Derived in docs/internals/exact-path.md, whose names these are. */
static double NAME(margin)(const void *from, const void *to, int64_t n, float scale, double sigmas)
{
    const X *const w = from;
    const W *const v = to;
    const double u = 0x1p-24, most = (double)n + 2, gamma = most * u / (1 - most * u);
    double errors = 0, squares = 0, narrow = 0;
    for (int64_t i = 0; i < n; i++) {
        const double wide = (double)w[i], widened = (double)NAME(widen)(v[i]) * (double)scale;
        errors += (wide - widened) * (wide - widened);
        squares += wide * wide;
        narrow += widened * widened;
    }
    const double norm = sqrt(squares) + sqrt(narrow);
    double error = sqrt(errors);
    if (sigmas > 0 && sigmas * sigmas < (double)n)
        error *= sigmas / sqrt((double)n);
    if (!(norm < 0x1p80) || !(gamma >= 0 && gamma < 1)) /* outside of what was derived: always computed again */
        return (double)INFINITY;
    const double margin = (error + gamma * norm) * (1 + gamma + 8 * u) * (1 + 0x1p-20);
    return margin > 0x1p-60 ? margin * (1 + 2 * u) : 0x1p-60;
}

#endif
