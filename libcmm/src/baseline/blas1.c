/* Level 1: dot and axpy, one pair per visited neuron, token by token.
 * Work:   2 (d_in + d_out) flops per visited neuron, and two BLAS calls.
 * Memory: rows of w_in one dependent read after another; rows of w_out prefetched as soon as the path names them.
 * Sums:   the dot of the BLAS, then the bias; y sums trees, then levels, in order.
 * Limit:  the calls, and the wait for each row of w_in. Sharing rows between tokens (level 3) moves it. */
#ifndef CMM_TYPE
#include "../blas_kernel.h"
#include "../tree.h"

#define CMM_BODY "baseline/blas1.c"
#define CMM_LIST CMM_SAME_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_blas1)

#else

static void NAME(prefetch)(const X *row, int64_t n)
{
    for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(X))
        __builtin_prefetch(row + i);
}

/* One tree and one token: the path down, all activations at once, and the weighted sum into y. */
static void NAME(tree)(const cmm_problem *problem, const cmm_context *cpu, int64_t token, int64_t tree, const X *x,
                       X *y, int32_t *nodes_out, X *logits_out)
{
    const int32_t one = 1, d_in = (int32_t)problem->d_in, d_out = (int32_t)problem->d_out, levels = problem->depth + 1;
    const X *const w_in = problem->w_in, *const bias = problem->bias, *const w_out = problem->w_out;
    const int64_t base = tree * problem->nodes;
    int64_t node = 0, rows[CMM_MAX_DEPTH + 1];
    X logits[CMM_MAX_DEPTH + 1];
    for (int32_t level = 0; level < levels; level++) {
        const int64_t row = rows[level] = base + node;
        if (y)
            NAME(prefetch)(w_out + row * problem->ld_out, d_out);
        X logit = cpu->blas->BLAS(dot)(&d_in, w_in + row * problem->ld_in, &one, x, &one);
        if (bias)
            logit += bias[row];
        if (nodes_out)
            nodes_out[level] = (int32_t)node;
        if (logits_out)
            logits_out[level] = logit;
        logits[level] = logit;
        node = cmm_left_child(node) + CMM_TURNS_RIGHT(problem, token, tree, level, logit);
    }
    if (!y)
        return;
    cpu->XNAME(activate)(problem->activation, levels, logits);
    for (int32_t level = 0; level < levels; level++)
        cpu->blas->BLAS(axpy)(&d_out, &logits[level], w_out + rows[level] * problem->ld_out, &one, y, &one);
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const int64_t levels = problem->depth + 1;
    for (int64_t token = first; token < first + count; token++) {
        const X *const x = (const X *)problem->x + token * problem->d_in;
        X *const y = problem->y ? (X *)problem->y + token * problem->d_out : NULL;
        for (int64_t o = 0; y && o < problem->d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < problem->trees; tree++) {
            const int64_t path = (token * problem->trees + tree) * levels;
            NAME(tree)(problem, cpu, token, tree, x, y, problem->nodes_out ? problem->nodes_out + path : NULL,
                       problem->logits_out ? (X *)problem->logits_out + path : NULL);
        }
    }
    return 0;
}

BLAS_KERNEL(FFF, 1, NULL)

#endif
