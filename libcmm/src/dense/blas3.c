/* Dense, level 3: two matrix products over a chunk of tokens, with the activation in between.
 * Work:   2 (d_in + d_out) flops per neuron.
 * Memory: all weights once per chunk; the hidden values of a chunk are written and read once.
 * Sums:   those of the BLAS, then the bias.
 * Limit:  the rate of gemm. */
#ifndef CMM_TYPE
#include "../blas_kernel.h"

#define CMM_BODY "dense/blas3.c"
#define CMM_LIST CMM_SAME_TYPES

/* Elements from one token's hidden values to the next: whole cache lines, for the gemms' sake. */
static int64_t hidden_stride(const cmm_problem *problem)
{
    return problem->nodes < INT32_MAX - 15 ? (problem->nodes + 15) / 16 * 16 : problem->nodes; /* BLAS counts in 32 bits */
}

#include "../for_each_type.h"

CMM_EXPORT(cmm_ff_blas3)

#else

/* Tokens of a chunk: enough for gemm to run at its full rate, few enough for the hidden values to stay in L3. */
static int64_t NAME(chunk_tokens)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    const int64_t size = sizeof(X), neurons = problem->nodes > 0 ? problem->nodes : 1;
    int64_t tokens = cpu->machine->l3 / 4 / (neurons * size);
    tokens = tokens < 64 ? 64 : tokens > 1024 ? 1024 : tokens;
    return tokens < count ? tokens : count;
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    X *const h = memory;
    const int32_t d_in = (int32_t)problem->d_in, d_out = (int32_t)problem->d_out, neurons = (int32_t)problem->nodes;
    const int32_t ld_in = (int32_t)problem->ld_in, ld_out = (int32_t)problem->ld_out,
        ld_h = (int32_t)hidden_stride(problem);
    const int64_t chunk = NAME(chunk_tokens)(problem, cpu, count);
    const X unit = 1, zero = 0;
    const X *const bias = problem->bias;
    for (int64_t i = 0; neurons == 0 && i < count * d_out; i++)
        ((X *)problem->y)[first * d_out + i] = 0;
    for (int64_t done = 0; neurons > 0 && done < count; done += chunk) {
        const int32_t tokens = (int32_t)(chunk < count - done ? chunk : count - done);
        const X *const x = (const X *)problem->x + (first + done) * d_in;
        X *const y = (X *)problem->y + (first + done) * d_out;
        /* BLAS is column-major: what it calls h (neurons x tokens) is our row-major h (tokens x neurons). */
        cpu->blas->BLAS(gemm)("T", "N", &neurons, &tokens, &d_in, &unit, problem->w_in, &ld_in, x, &d_in, &zero, h,
                               &ld_h);
        for (int64_t t = 0; t < tokens; t++) {
            X *const row = h + t * ld_h;
            for (int64_t n = 0; bias && n < neurons; n++)
                row[n] += bias[n];
            cpu->XNAME(activate)(problem->activation, neurons, row);
        }
        cpu->blas->BLAS(gemm)("N", "N", &d_out, &tokens, &neurons, &unit, problem->w_out, &ld_out, h, &ld_h, &zero, y,
                               &d_out);
    }
    return 0;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    return NAME(chunk_tokens)(problem, cpu, count) * hidden_stride(problem) * (int64_t)sizeof(X);
}

BLAS_KERNEL(FF, 3, NAME(scratch))

#endif
