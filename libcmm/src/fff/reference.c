/* The definition of the layer, to be read: token by token, tree by tree, level by level.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: the rows of a path come from wherever the last token left them.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums trees, then levels, in order. Its bits are its own.
 * Limit:  the chain of d_in dependent additions, 3 to 4 cycles each. Keeping several sums at once would break it. */
#ifndef CMM_TYPE
#include "../kernel.h"
#include "../tree.h"

#define CMM_BODY "fff/reference.c"
#define CMM_LIST CMM_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_naive)

#else

static void NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const int64_t levels = problem->depth + 1;
    const W *const w_in = problem->w_in, *const w_out = problem->w_out;
    const X *const bias = problem->bias;
    for (int64_t token = first; token < first + count; token++) {
        const X *const x = (const X *)problem->x + token * problem->d_in;
        X *const y = problem->y ? (X *)problem->y + token * problem->d_out : NULL;
        for (int64_t o = 0; y && o < problem->d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < problem->trees; tree++) {
            int64_t node = 0;
            for (int64_t level = 0; level < levels; level++) {
                const int64_t row = tree * problem->nodes + node;
                X logit = 0;
                for (int64_t i = 0; i < problem->d_in; i++)
                    logit += NAME(widen)(w_in[row * problem->ld_in + i]) * x[i];
                if (bias)
                    logit += bias[row];
                const int64_t step = (token * problem->trees + tree) * levels + level;
                if (problem->nodes_out)
                    problem->nodes_out[step] = (int32_t)node;
                if (problem->logits_out)
                    ((X *)problem->logits_out)[step] = logit;
                if (y) {
                    X activation = logit;
                    cpu->XNAME(activate)(problem->activation, 1, &activation);
                    for (int64_t o = 0; o < problem->d_out; o++)
                        y[o] += activation * NAME(widen)(w_out[row * problem->ld_out + o]);
                }
                node = XNAME(cmm_child)(node, logit, problem->tie);
            }
        }
    }
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
