/* Scratch memory, which a kernel divides into pieces that each start a cache line. */
#ifndef CMM_SCRATCH_H
#define CMM_SCRATCH_H

#include "cmm.h"

/* So many bytes, and what is missing to a multiple of the alignment. */
static inline int64_t cmm_padded(int64_t bytes, int64_t alignment)
{
    return (bytes + alignment - 1) / alignment * alignment;
}

/* The next piece of the memory, of which *used bytes are taken; with memory == NULL only their sum is wanted. */
static inline void *cmm_take(char *memory, int64_t *used, int64_t bytes)
{
    void *const piece = memory ? memory + *used : NULL;
    *used += cmm_padded(bytes, CMM_ALIGNMENT);
    return piece;
}

#endif
