/* The definition of the layer, to be read: token by token, tree by tree, level by level.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: the rows of a path come from wherever the last token left them.
 * Sums:   i = 0, 1, 2, ... in order, then the row's scale if it has one, then the bias; y sums trees, then levels, in
 *         order. Its bits are its own.
 * Limit:  the chain of d_in dependent additions, 3 to 4 cycles each. Keeping several sums at once would break it. */
#ifndef CMM_TYPE
#include "../kernel.h"
#include "../tree.h"

#include <math.h>

/* y += c * row of w_out, whose type may be another than that of w_in; defined below for each. */
static void add_row_f32(int32_t w_type, const void *w_out, int64_t at, float c, float *y, int64_t d_out);
static void add_row_f64(int32_t w_type, const void *w_out, int64_t at, double c, double *y, int64_t d_out);

#define CMM_BODY "fff/reference.c"
#define CMM_LIST CMM_TYPES
#include "../for_each_type.h"

#define ADD_ROW(name, x, w) \
    case CMM_DTYPE_##w: add_##name(w_out, at, c, y, d_out); return;

static void add_row_f32(int32_t w_type, const void *w_out, int64_t at, float c, float *y, int64_t d_out)
{
    switch (w_type) {
        CMM_NARROW_TYPES(ADD_ROW)
    default: add_f32(w_out, at, c, y, d_out);
    }
}

static void add_row_f64(int32_t w_type, const void *w_out, int64_t at, double c, double *y, int64_t d_out)
{
    (void)w_type; /* rows of double alone go with tokens of double */
    add_f64(w_out, at, c, y, d_out);
}

CMM_EXPORT(cmm_fff_naive)

#else

static X NAME(dot)(const W *w, const X *x, int64_t d)
{
    X sum = 0;
    for (int64_t i = 0; i < d; i++)
        sum += NAME(widen)(w[i]) * x[i];
    return sum;
}

static void NAME(add)(const void *w_out, int64_t at, X c, X *y, int64_t d_out)
{
    const W *const w = (const W *)w_out + at;
    for (int64_t o = 0; o < d_out; o++)
        y[o] += c * NAME(widen)(w[o]);
}

/* Whether the exact path computes the logit of an inner node again, see docs/internals/exact-path.md. */
static int NAME(undecided)(const cmm_problem *problem, int64_t inner, X logit, const X *x)
{
    const X squares = XNAME(dot)(x, x, problem->d_in);
    const X norm = squares >= (X)0x1p-80 && squares <= (X)0x1p80 ? (X)sqrt((double)squares) : (X)INFINITY;
    return !((X)fabs((double)logit) > (X)problem->margin[inner] * norm);
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const int64_t levels = problem->depth + 1;
    const W *const w_in = problem->w_in;
    const X *const exact_in = problem->exact_in, *const bias = problem->bias;
    int64_t recomputed = 0;
    for (int64_t token = first; token < first + count; token++) {
        const X *const x = (const X *)problem->x + token * problem->d_in;
        X *const y = problem->y ? (X *)problem->y + token * problem->d_out : NULL;
        for (int64_t o = 0; y && o < problem->d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < problem->trees; tree++) {
            int64_t node = 0;
            for (int32_t level = 0; level < levels; level++) {
                const int64_t row = tree * problem->nodes + node, inner = tree * (problem->nodes / 2) + node;
                X logit = NAME(dot)(w_in + row * problem->ld_in, x, problem->d_in);
                if (problem->scale_in)
                    logit *= (X)problem->scale_in[row];
                if (bias)
                    logit += bias[row];
                if (exact_in && level < problem->depth && NAME(undecided)(problem, inner, logit, x)) {
                    logit = XNAME(dot)(exact_in + inner * problem->ld_exact, x, problem->d_in);
                    if (bias)
                        logit += bias[row];
                    recomputed++;
                }
                const int64_t step = (token * problem->trees + tree) * levels + level;
                if (problem->nodes_out)
                    problem->nodes_out[step] = (int32_t)node;
                if (problem->logits_out)
                    ((X *)problem->logits_out)[step] = logit;
                if (y) {
                    X c = logit;
                    cpu->XNAME(activate)(problem->activation, 1, &c);
                    if (problem->scale_out)
                        c *= (X)problem->scale_out[row];
                    XNAME(add_row)(problem->weight_out_dtype, problem->w_out, row * problem->ld_out, c, y, problem->d_out);
                }
                node = cmm_left_child(node) + CMM_TURNS_RIGHT(problem, token, tree, level, logit);
            }
        }
    }
    return recomputed;
}

static const cmm_kernel NAME(kernel) = {.traits.op = CMM_OP_FFF,
                                        .traits.name = "naive",
                                        .traits.level = "naive",
                                        .traits.algorithm = "",
                                        .traits.isa = "any",
                                        .traits.x_type = X_TYPE,
                                        .traits.w_type = W_TYPE,
                                        .run = NAME(run)};

#endif
