/* The definition of the layer, to be read: token by token, tree by tree, level by level.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: the rows of a path come from wherever the last token left them.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums trees, then levels, in order. Its bits are its own.
 * Limit:  the chain of d_in dependent additions, 3 to 4 cycles each. Keeping several sums at once would break it. */
#ifndef CMM_TYPE
#include "../kernel.h"
#include "../tree.h"

#define CMM_BODY "fff/naive.c"
#define CMM_LIST CMM_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_naive)

#else

static void NAME(run)(const cmm_problem *task, const cmm_context *cpu, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const int64_t levels = task->depth + 1;
    const W *const w_in = task->w_in, *const w_out = task->w_out;
    const X *const bias = task->bias;
    for (int64_t token = first; token < first + count; token++) {
        const X *const x = (const X *)task->x + token * task->d_in;
        X *const y = task->y ? (X *)task->y + token * task->d_out : NULL;
        for (int64_t o = 0; y && o < task->d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < task->trees; tree++) {
            int64_t node = 0;
            for (int64_t level = 0; level < levels; level++) {
                const int64_t row = tree * task->nodes + node;
                X logit = 0;
                for (int64_t i = 0; i < task->d_in; i++)
                    logit += NAME(widen)(w_in[row * task->ld_in + i]) * x[i];
                if (bias)
                    logit += bias[row];
                const int64_t step = (token * task->trees + tree) * levels + level;
                if (task->nodes_out)
                    task->nodes_out[step] = (int32_t)node;
                if (task->logits_out)
                    ((X *)task->logits_out)[step] = logit;
                if (y) {
                    X activation = logit;
                    cpu->XNAME(activate)(task->activation, 1, &activation);
                    for (int64_t o = 0; o < task->d_out; o++)
                        y[o] += activation * NAME(widen)(w_out[row * task->ld_out + o]);
                }
                node = XNAME(cmm_child)(node, logit, task->tie);
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
