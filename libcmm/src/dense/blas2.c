/* Dense, level 2: matrix-vector products, a block of neurons that stays in L2 for each token of a chunk.
 * Work:   2 (d_in + d_out) flops per neuron.
 * Memory: all weights once per chunk; a block is read from L2 once per token.
 * Sums:   those of the BLAS, then the bias; y sums the blocks in order.
 * Limit:  the bandwidth of L2: a matrix-vector product uses each weight once. */
#ifndef CMM_TYPE
#include "../blas_kernel.h"

#define CMM_BODY "dense/blas2.c"
#define CMM_LIST CMM_SAME_TYPES

enum { CHUNK_TOKENS = 256 };

#include "../for_each_type.h"

CMM_EXPORT(cmm_ff_blas2)

#else

/* Neurons of a block: their rows of w_in and w_out take half of L2. */
static int64_t NAME(block_neurons)(const cmm_problem *problem, const cmm_context *cpu)
{
    const int64_t size = sizeof(X);
    int64_t rows = cpu->machine->l2 / 2 / ((problem->d_in + problem->d_out) * size);
    rows = rows < 8 ? 8 : rows / 8 * 8;
    return rows < problem->nodes ? rows : problem->nodes;
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    X *const h = memory;
    const int32_t one = 1, d_in = (int32_t)problem->d_in, d_out = (int32_t)problem->d_out;
    const int32_t ld_in = (int32_t)problem->ld_in, ld_out = (int32_t)problem->ld_out;
    const int64_t block = NAME(block_neurons)(problem, cpu);
    const X unit = 1, zero = 0;
    const X *const bias = problem->bias;
    for (int64_t i = 0; i < block; i++)
        h[i] = 0; /* some BLAS read what beta = 0 says to forget */
    X *const all_y = (X *)problem->y + first * d_out;
    for (int64_t i = 0; i < count * d_out; i++)
        all_y[i] = 0;
    for (int64_t done = 0; done < count; done += CHUNK_TOKENS) {
        const int64_t tokens = CHUNK_TOKENS < count - done ? CHUNK_TOKENS : count - done;
        for (int64_t row = 0; row < problem->nodes; row += block) {
            const int32_t rows = (int32_t)(block < problem->nodes - row ? block : problem->nodes - row);
            const X *const w_in = (const X *)problem->w_in + row * ld_in;
            const X *const w_out = (const X *)problem->w_out + row * ld_out;
            for (int64_t t = first + done; t < first + done + tokens; t++) {
                const X *const x = (const X *)problem->x + t * d_in;
                X *const y = (X *)problem->y + t * d_out;
                cpu->blas->BLAS(gemv)("T", &d_in, &rows, &unit, w_in, &ld_in, x, &one, &zero, h, &one);
                for (int32_t i = 0; bias && i < rows; i++)
                    h[i] += bias[row + i];
                cpu->XNAME(activate)(problem->activation, rows, h);
                cpu->blas->BLAS(gemv)("N", &d_out, &rows, &unit, w_out, &ld_out, h, &one, &unit, y, &one);
            }
        }
    }
    return 0;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    (void)count;
    return NAME(block_neurons)(problem, cpu) * (int64_t)sizeof(X);
}

BLAS_KERNEL(FF, 2, NAME(scratch))

#endif
