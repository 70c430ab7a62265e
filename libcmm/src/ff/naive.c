/* The dense layer, to be read: token by token, neuron by neuron.
 * Work:   2 (d_in + d_out) flops per neuron.
 * Memory: all weights once per token.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums the neurons in order.
 * Limit:  the chain of d_in dependent additions, as in fff/naive. */
#ifndef REAL
#include "../kernel.h"

#define CMM_BODY "ff/naive.c"
#include "../each_real.h"

const cmm_kernel cmm_ff_naive = {
    .op = CMM_OP_FF, .name = "naive", .level = "naive", .method = "", .isa = "any", .run = {run_f32, run_f64}};

#else

static void NAME(run)(const cmm_task *task, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const REAL *const w_in = task->w_in, *const bias = task->bias, *const w_out = task->w_out;
    for (int64_t token = first; token < first + count; token++) {
        const REAL *const x = (const REAL *)task->x + token * task->d_in;
        REAL *const y = (REAL *)task->y + token * task->d_out;
        for (int64_t o = 0; o < task->d_out; o++)
            y[o] = 0;
        for (int64_t row = 0; row < task->nodes; row++) {
            REAL logit = 0;
            for (int64_t i = 0; i < task->d_in; i++)
                logit += w_in[row * task->ld_in + i] * x[i];
            if (bias)
                logit += bias[row];
            task->NAME(activate)(task->activation, 1, &logit);
            for (int64_t o = 0; o < task->d_out; o++)
                y[o] += logit * w_out[row * task->ld_out + o];
        }
    }
}

#endif
