/* What a process keeps between calls, and the only writable globals of libcmm: the facts about its CPU, its thread
 * pool, and whose BLAS thread counts are borrowed. All of it lives in process.c. */
#ifndef CMM_PROCESS_H
#define CMM_PROCESS_H

#include "kernel.h"

/* What this CPU and its operating system can do. Found once. */
const cmm_machine *cmm_process_machine(void);

/* Run piece(context, 0) .. piece(context, pieces - 1), on at most `threads` threads, and return when all are done.
 * The caller's thread works too. When the pool is busy with another call, or no thread can be had, the caller does
 * everything itself: same result, only later. Safe in a child after fork(), and from inside a piece. */
void cmm_process_run(int32_t threads, int32_t pieces, void (*piece)(void *context, int32_t index), void *context);

/* Between borrow and return, the BLAS runs one thread per call. Calls nest and may come from many threads: the first
 * one in saves the count and the last one out restores it. */
void cmm_process_borrow_blas(const cmm_blas *blas);
void cmm_process_return_blas(const cmm_blas *blas);

#endif
