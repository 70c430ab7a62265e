/* The dense layer, to be read: token by token, neuron by neuron.
 * Work:   2 (d_in + d_out) flops per neuron.
 * Memory: all weights once per token.
 * Sums:   i = 0, 1, 2, ... in order, then the bias; y sums the neurons in order.
 * Limit:  the chain of d_in dependent additions, as in fff/naive. */
#ifndef CMM_TYPE
#include "../kernel.h"

#define CMM_BODY "dense/reference.c"
#define CMM_LIST CMM_SAME_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_ff_naive)

#else

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *scratch)
{
    (void)scratch;
    const X *const w_in = problem->w_in, *const bias = problem->bias, *const w_out = problem->w_out;
    for (int64_t token = first; token < first + count; token++) {
        const X *const x = (const X *)problem->x + token * problem->d_in;
        X *const y = (X *)problem->y + token * problem->d_out;
        for (int64_t o = 0; o < problem->d_out; o++)
            y[o] = 0;
        for (int64_t row = 0; row < problem->nodes; row++) {
            X logit = 0;
            for (int64_t i = 0; i < problem->d_in; i++)
                logit += w_in[row * problem->ld_in + i] * x[i];
            if (bias)
                logit += bias[row];
            cpu->XNAME(activate)(problem->activation, 1, &logit);
            for (int64_t o = 0; o < problem->d_out; o++)
                y[o] += logit * w_out[row * problem->ld_out + o];
        }
    }
    return 0;
}

static const cmm_kernel NAME(kernel) = {.traits.op = CMM_OP_FF,
                                        .traits.name = "naive",
                                        .traits.level = "naive",
                                        .traits.algorithm = "",
                                        .traits.isa = "any",
                                        .traits.x_type = X_TYPE,
                                        .traits.w_type = W_TYPE,
                                        .run = NAME(run)};

#endif
