/* Native, token by token: the whole path first, then all activations, then one weighted sum with y in registers.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: every visited row from wherever it is; rows of w_out are prefetched as soon as the path names them, and both
 *         children of a neuron while its own dot is computed.
 * Sums:   fff/tile.inl; the same bits as every other native kernel.
 * Limit:  for one token depth + 1 dependent row reads; for many tokens the bandwidth of the cache the rows come from.
 *         Sharing rows between tokens (group) moves it. */
#ifndef REAL
#include "cost.h"

#define CMM_BODY "fff/walk.inl"

static int64_t take_rows(const cmm_task *task)
{
    return task->trees * (task->depth + 1);
}

#include "../each_real.h"

static int64_t scratch(const cmm_task *task, int64_t count)
{
    (void)count;
    return take_rows(task) * (int64_t)(sizeof(void *) + sizeof(double));
}

/* Nanoseconds of an imaginary machine: every token reads its rows from wherever they are. */
static double cost(const cmm_task *task, int64_t count)
{
    return (double)count * row_time(task) * (double)take_rows(task);
}

#define METHOD walk
#include "kernel_value.h"

#else
#include "tile.inl"

static void NAME(run)(const cmm_task *task, int64_t first, int64_t count, void *memory)
{
    const int64_t rows = take_rows(task), d_in = task->d_in, d_out = task->d_out;
    const int32_t levels = task->depth + 1;
    const REAL *const w_in = task->w_in, *const bias = task->bias, *const w_out = task->w_out;
    const REAL **const row = memory;
    REAL *const c = (REAL *)(row + rows);
    for (int64_t token = first; token < first + count; token++) {
        const REAL *const x = (const REAL *)task->x + token * d_in;
        int64_t step = 0;
        for (int64_t tree = 0; tree < task->trees; tree++) {
            const int64_t base = tree * task->nodes;
            int64_t node = 0;
            for (int32_t level = 0; level < levels; level++, step++) {
                const int64_t at = base + node;
                if (level + 1 < levels) {
                    NAME(prefetch)(w_in + (base + 2 * node + 1) * task->ld_in, d_in);
                    NAME(prefetch)(w_in + (base + 2 * node + 2) * task->ld_in, d_in);
                }
                if (task->y) {
                    row[step] = w_out + at * task->ld_out;
                    NAME(prefetch)(row[step], d_out);
                }
                REAL logit;
                NAME(dots)(1, w_in + at * task->ld_in, &x, d_in, &logit);
                if (bias)
                    logit += bias[at];
                if (task->nodes_out)
                    task->nodes_out[token * rows + step] = (int32_t)node;
                if (task->logits_out)
                    ((REAL *)task->logits_out)[token * rows + step] = logit;
                c[step] = logit;
                node = 2 * node + 1 + NAME(goes_right)(task, logit);
            }
        }
        if (!task->y)
            continue;
        task->NAME(activate)(task->activation, rows, c);
        const NAME(share) share = {row, c, (REAL *)task->y + token * d_out};
        NAME(outputs)(1, &share, d_out, 0, 0, (int)rows);
    }
}

#endif
