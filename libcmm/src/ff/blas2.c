/* Dense, level 2: matrix-vector products, a block of neurons that stays in L2 for each token of a chunk.
 * Work:   2 (d_in + d_out) flops per neuron.
 * Memory: all weights once per chunk; a block is read from L2 once per token.
 * Sums:   those of the BLAS, then the bias; y sums the blocks in order.
 * Limit:  the bandwidth of L2: a matrix-vector product uses each weight once. */
#ifndef REAL
#include "../kernel.h"

#define CMM_BODY "ff/blas2.c"

enum { CHUNK_TOKENS = 256 };

/* Neurons of a block: their rows of w_in and w_out take half of L2. */
static int64_t block_neurons(const cmm_task *task)
{
    const int64_t size = task->dtype == CMM_F32 ? 4 : 8;
    int64_t rows = task->machine->l2 / 2 / ((task->d_in + task->d_out) * size);
    rows = rows < 8 ? 8 : rows / 8 * 8;
    return rows < task->nodes ? rows : task->nodes;
}

#include "../each_real.h"

static int64_t scratch(const cmm_task *task, int64_t count)
{
    (void)count;
    return block_neurons(task) * (int64_t)sizeof(double);
}

const cmm_kernel cmm_ff_blas2 = {.op = CMM_OP_FF,
                                 .name = "blas2",
                                 .level = "blas2",
                                 .method = "",
                                 .isa = "any",
                                 .blas = 2,
                                 .scratch = scratch,
                                 .run = {run_f32, run_f64}};

#else

static void NAME(run)(const cmm_task *task, int64_t first, int64_t count, void *memory)
{
    REAL *const h = memory;
    const int32_t one = 1, d_in = (int32_t)task->d_in, d_out = (int32_t)task->d_out;
    const int32_t ld_in = (int32_t)task->ld_in, ld_out = (int32_t)task->ld_out;
    const int64_t block = block_neurons(task);
    const REAL unit = 1, zero = 0;
    const REAL *const bias = task->bias;
    for (int64_t i = 0; i < block; i++)
        h[i] = 0; /* some BLAS read what beta = 0 says to forget */
    REAL *const all_y = (REAL *)task->y + first * d_out;
    for (int64_t i = 0; i < count * d_out; i++)
        all_y[i] = 0;
    for (int64_t done = 0; done < count; done += CHUNK_TOKENS) {
        const int64_t tokens = CHUNK_TOKENS < count - done ? CHUNK_TOKENS : count - done;
        for (int64_t row = 0; row < task->nodes; row += block) {
            const int32_t rows = (int32_t)(block < task->nodes - row ? block : task->nodes - row);
            const REAL *const w_in = (const REAL *)task->w_in + row * ld_in;
            const REAL *const w_out = (const REAL *)task->w_out + row * ld_out;
            for (int64_t t = first + done; t < first + done + tokens; t++) {
                const REAL *const x = (const REAL *)task->x + t * d_in;
                REAL *const y = (REAL *)task->y + t * d_out;
                task->blas->BLAS(gemv)("T", &d_in, &rows, &unit, w_in, &ld_in, x, &one, &zero, h, &one);
                for (int32_t i = 0; bias && i < rows; i++)
                    h[i] += bias[row + i];
                task->NAME(activate)(task->activation, rows, h);
                task->blas->BLAS(gemv)("N", &d_out, &rows, &unit, w_out, &ld_out, h, &one, &unit, y, &one);
            }
        }
    }
}

#endif
