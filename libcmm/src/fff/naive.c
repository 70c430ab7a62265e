/* The definition of the layer, to be read: token by token, tree by tree, level by level.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: the rows of a path come from wherever the last token left them.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums trees, then levels, in order. Its bits are its own.
 * Limit:  the chain of d_in dependent additions, 3 to 4 cycles each. Keeping several sums at once would break it. */
#ifndef REAL
#include "../kernel.h"

#define CMM_BODY "fff/naive.c"
#include "../each_real.h"

const cmm_kernel cmm_fff_naive = {
    .op = CMM_OP_FFF, .name = "naive", .level = "naive", .method = "", .isa = "any", .run = {run_f32, run_f64}};

#else

static void NAME(run)(const cmm_task *task, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const int64_t levels = task->depth + 1;
    const REAL *const w_in = task->w_in, *const bias = task->bias, *const w_out = task->w_out;
    for (int64_t token = first; token < first + count; token++) {
        const REAL *const x = (const REAL *)task->x + token * task->d_in;
        REAL *const y = task->y ? (REAL *)task->y + token * task->d_out : NULL;
        for (int64_t o = 0; y && o < task->d_out; o++)
            y[o] = 0;
        for (int64_t tree = 0; tree < task->trees; tree++) {
            int64_t node = 0;
            for (int64_t level = 0; level < levels; level++) {
                const int64_t row = tree * task->nodes + node;
                REAL logit = 0;
                for (int64_t i = 0; i < task->d_in; i++)
                    logit += w_in[row * task->ld_in + i] * x[i];
                if (bias)
                    logit += bias[row];
                const int64_t step = (token * task->trees + tree) * levels + level;
                if (task->nodes_out)
                    task->nodes_out[step] = (int32_t)node;
                if (task->logits_out)
                    ((REAL *)task->logits_out)[step] = logit;
                if (y) {
                    REAL activation = logit;
                    task->NAME(activate)(task->activation, 1, &activation);
                    for (int64_t o = 0; o < task->d_out; o++)
                        y[o] += activation * w_out[row * task->ld_out + o];
                }
                node = 2 * node + 1 + (task->tie == CMM_TIE_RIGHT ? logit >= 0 : logit > 0);
            }
        }
    }
}

#endif
