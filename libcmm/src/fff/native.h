/* What the native kernels have in common outside their arithmetic. */
#ifndef CMM_NATIVE_H
#define CMM_NATIVE_H

#include "../kernel.h"

#include <stddef.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Bytes of both rows of one neuron. */
static inline int64_t row_bytes(const cmm_task *task)
{
    return (task->d_in + task->d_out) * (task->dtype == CMM_F32 ? (int64_t)sizeof(float) : (int64_t)sizeof(double));
}

#endif
