/* The thread counts of the BLAS libraries in use. */
#ifndef CMM_BLAS_THREADS_H
#define CMM_BLAS_THREADS_H

#include "cmm.h"

/* Between the two the BLAS runs one thread per call, for libcmm's own threads share the work. Calls nest and may come
 * from many threads: the first one in saves the count and the last one out puts it back. A child that is forked
 * meanwhile has it put back at once. */
void cmm_blas_threads_borrow(const cmm_blas *blas);
void cmm_blas_threads_return(const cmm_blas *blas);

#endif
