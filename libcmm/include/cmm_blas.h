/* The BLAS of the levels blas1, blas2 and blas3, and of dense layers: a table of functions, which a caller brings.
 *
 *     cmm_blas blas;
 *     if (cmm_blas_load("libopenblas.so.0", &blas) == CMM_OK)
 *         run.blas = &blas;
 */
#ifndef CMM_BLAS_H
#define CMM_BLAS_H

#include "cmm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

/* A BLAS: pointers to its Fortran interface with 32-bit integers (LP64), column-major as ever. Fill it with
 * cmm_blas_load() or cmm_blas_linked(), or by hand: a level uses only the functions of its own number and below, and
 * those of the layer's dtype. The batched functions (MKL's interface) and the thread functions may be NULL.
 * libcmm splits a call over its own threads and asks the BLAS for one thread in each, through set_threads. */
struct cmm_blas {
    uint32_t size; /* sizeof(cmm_blas) */
    int32_t reserved;
    float (*sdot)(const int32_t *n, const float *x, const int32_t *incx, const float *y, const int32_t *incy);
    double (*ddot)(const int32_t *n, const double *x, const int32_t *incx, const double *y, const int32_t *incy);
    void (*saxpy)(const int32_t *n, const float *alpha, const float *x, const int32_t *incx, float *y,
                  const int32_t *incy);
    void (*daxpy)(const int32_t *n, const double *alpha, const double *x, const int32_t *incx, double *y,
                  const int32_t *incy);
    void (*sgemv)(const char *trans, const int32_t *m, const int32_t *n, const float *alpha, const float *a,
                  const int32_t *lda, const float *x, const int32_t *incx, const float *beta, float *y,
                  const int32_t *incy);
    void (*dgemv)(const char *trans, const int32_t *m, const int32_t *n, const double *alpha, const double *a,
                  const int32_t *lda, const double *x, const int32_t *incx, const double *beta, double *y,
                  const int32_t *incy);
    void (*sgemm)(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
                  const float *alpha, const float *a, const int32_t *lda, const float *b, const int32_t *ldb,
                  const float *beta, float *c, const int32_t *ldc);
    void (*dgemm)(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
                  const double *alpha, const double *a, const int32_t *lda, const double *b, const int32_t *ldb,
                  const double *beta, double *c, const int32_t *ldc);
    void (*sgemv_batch)(const char *trans, const int32_t *m, const int32_t *n, const float *alpha, const float **a,
                        const int32_t *lda, const float **x, const int32_t *incx, const float *beta, float **y,
                        const int32_t *incy, const int32_t *groups, const int32_t *group_size);
    void (*dgemv_batch)(const char *trans, const int32_t *m, const int32_t *n, const double *alpha, const double **a,
                        const int32_t *lda, const double **x, const int32_t *incx, const double *beta, double **y,
                        const int32_t *incy, const int32_t *groups, const int32_t *group_size);
    void (*sgemm_batch)(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
                        const float *alpha, const float **a, const int32_t *lda, const float **b, const int32_t *ldb,
                        const float *beta, float **c, const int32_t *ldc, const int32_t *groups,
                        const int32_t *group_size);
    void (*dgemm_batch)(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
                        const double *alpha, const double **a, const int32_t *lda, const double **b,
                        const int32_t *ldb, const double *beta, double **c, const int32_t *ldc,
                        const int32_t *groups, const int32_t *group_size);
    void (*set_threads)(int32_t threads);
    int32_t (*get_threads)(void);
    char name[128]; /* for people: which BLAS this is, zero-terminated */
};

/* Load the BLAS in a shared library: names with and without the prefix scipy_, with and without a trailing
 * underscore. The library stays loaded for the life of the process. MKL is put in its sequential threading layer. */
CMM_API cmm_status cmm_blas_load(const char *file, cmm_blas *blas);

/* The BLAS that libcmm was linked with (CMake option CMM_BLAS=LINK), or CMM_ERROR_BLAS_MISSING. */
CMM_API cmm_status cmm_blas_linked(cmm_blas *blas);

/* CMM_ERROR_BLAS_SYMBOLS where the dot products of a table do not take 32-bit integers (or return float as double):
 * they are called with a count that is 2 in 32 bits and negative in 64, so that a BLAS of either kind reads nothing
 * that it should not. cmm_blas_load() and cmm_blas_linked() have done this; for tables filled by hand. */
CMM_API cmm_status cmm_blas_check(const cmm_blas *blas);

/* cffi: end */

#ifdef __cplusplus
}
#endif
#endif
