/* The threads of a process that compute pieces of a call. */
#ifndef CMM_THREADPOOL_H
#define CMM_THREADPOOL_H

#include <stdint.h>

/* Take the pool for one call. Returns how many threads will take part, the caller's among them: at most `threads`, fewer
 * where no more can be made, and 1 while another call has the pool (also from inside a piece). */
int32_t cmm_threadpool_acquire(int32_t threads);

/* Run piece(context, 0) .. piece(context, threads - 1) on the threads that were acquired, and return when all are done.
 * Every piece starts in the default floating-point environment; what is left of it is the caller's affair (caller.h). */
void cmm_threadpool_run(int32_t threads, void (*piece)(void *context, int32_t index), void *context);

/* Give the pool back; `threads` as acquire returned it. */
void cmm_threadpool_release(int32_t threads);

#endif
