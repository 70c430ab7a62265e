/* The rule that chooses between the native methods. Each method estimates the nanoseconds that one thread of an
 * imaginary machine needs; the front door takes the least. Only the order of the estimates matters. */
#ifndef CMM_COST_H
#define CMM_COST_H

#include "../kernel.h"

#include <stddef.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t element_bytes(const cmm_task *task)
{
    return task->dtype == CMM_F32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
}

/* Bytes of both rows of one neuron. */
static inline int64_t row_bytes(const cmm_task *task)
{
    return (task->d_in + task->d_out) * element_bytes(task);
}

/* Time to read both rows of one neuron from where the whole layer fits: 80, 30 or 10 bytes a nanosecond. */
static inline double row_time(const cmm_task *task)
{
    const double all = (double)(task->trees * task->nodes) * (double)row_bytes(task);
    const double rate = all <= (double)task->machine->l2 ? 80 : all <= (double)task->machine->l3 ? 30 : 10;
    return (double)row_bytes(task) / rate;
}

/* Many trees at a time: rows from L2 if one handful fits there, and every token reads its own, but for the roots. */
static inline double cost_of_forest(const cmm_task *task, int64_t count, int tile)
{
    const double handful = (double)(tile * task->nodes) * (double)row_bytes(task);
    const double rate = handful <= (double)task->machine->l2 ? 100 : handful <= (double)task->machine->l3 ? 60 : 10;
    const double visits = (double)task->trees * (task->depth + 0.5) * (double)count;
    return visits * (double)row_bytes(task) / rate + (double)task->trees * (double)task->nodes * row_time(task);
}

#endif
