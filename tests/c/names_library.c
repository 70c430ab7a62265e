/* Shared libraries for blas_names.c: those of blas_library.c, with more in them, or, where the build gives one of
 * their functions another name, less.
 *
 * BLAS_BATCHED adds all of MKL's batched functions; SET_THREADS and GET_THREADS name functions for threads. */
#if defined(BLAS_BATCHED)
#define BLAS_MKL
#define sgemv_batch one_of_them /* blas_library.c has that one alone */
#endif
#include "blas_library.c"
#undef sgemv_batch

#if defined(BLAS_BATCHED)
#define ALIAS(name) \
    EXPORT extern __typeof__(reference_##name) name __attribute__((alias("reference_" #name)))
ALIAS(sgemv_batch);
ALIAS(dgemv_batch);
ALIAS(sgemm_batch);
ALIAS(dgemm_batch);
#endif

#if defined(SET_THREADS)
static int count = 7;

EXPORT void SET_THREADS(int n);
void SET_THREADS(int n)
{
    count = n;
}

EXPORT int GET_THREADS(void);
int GET_THREADS(void)
{
    return count;
}
#endif
