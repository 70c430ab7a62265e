/* Dense, level 1: dot and axpy, one pair per neuron and token. The faster of the two loop orders: neurons outside,
 * a chunk of tokens inside, so that both rows of a neuron stay in L1 while a chunk of x and y stays in L2.
 * Work:   2 (d_in + d_out) flops per neuron, and two BLAS calls.
 * Memory: all weights once per chunk.
 * Sums:   the dot of the BLAS, then the bias; y sums the neurons in order.
 * Limit:  two loads for each fused multiply-add, and the calls. */
#ifndef CMM_TYPE
#include "../blas_kernel.h"

#define CMM_BODY "dense/blas1.c"
#define CMM_LIST CMM_SAME_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_ff_blas1)

#else

static int64_t NAME(chunk_tokens)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    const int64_t size = sizeof(X);
    int64_t tokens = cpu->machine->l2 / 2 / ((problem->d_in + problem->d_out) * size);
    tokens = tokens < 16 ? 16 : tokens > 1024 ? 1024 : tokens;
    return tokens < count ? tokens : count;
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    X *const h = memory;
    const int32_t one = 1, d_in = (int32_t)problem->d_in, d_out = (int32_t)problem->d_out;
    const int64_t chunk = NAME(chunk_tokens)(problem, cpu, count);
    const X *const w_in = problem->w_in, *const bias = problem->bias, *const w_out = problem->w_out;
    for (int64_t done = 0; done < count; done += chunk) {
        const int64_t tokens = chunk < count - done ? chunk : count - done;
        const X *const x = (const X *)problem->x + (first + done) * d_in;
        X *const y = (X *)problem->y + (first + done) * d_out;
        for (int64_t i = 0; i < tokens * d_out; i++)
            y[i] = 0;
        for (int64_t row = 0; row < problem->nodes; row++) {
            for (int64_t t = 0; t < tokens; t++)
                h[t] = cpu->blas->BLAS(dot)(&d_in, w_in + row * problem->ld_in, &one, x + t * d_in, &one) +
                       (bias ? bias[row] : 0);
            cpu->XNAME(activate)(problem->activation, tokens, h);
            for (int64_t t = 0; t < tokens; t++)
                cpu->blas->BLAS(axpy)(&d_out, &h[t], w_out + row * problem->ld_out, &one, y + t * d_out, &one);
        }
    }
    return 0;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    return NAME(chunk_tokens)(problem, cpu, count) * (int64_t)sizeof(X);
}

BLAS_KERNEL(FF, 1, NAME(scratch))

#endif
