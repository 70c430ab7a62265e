/* A BLAS of plain loops with the Fortran interface, so that the BLAS levels can be tested where there is none, and
 * under sanitizers and emulators. It is stricter than the standard asks: what a caller may not pass is counted in
 * blas_complaints, and what beta = 0 says to forget is not read. */
#ifndef REFERENCE_BLAS_H
#define REFERENCE_BLAS_H

#include "cmm.h"

#include <stdatomic.h>

static atomic_int blas_complaints;

#define INSIST(condition) ((condition) ? (void)0 : (void)atomic_fetch_add(&blas_complaints, 1))

#define REFERENCE_BLAS(REAL, P)                                                                                      \
    static REAL reference_##P##dot(const int32_t *n, const REAL *x, const int32_t *incx, const REAL *y,              \
                                   const int32_t *incy)                                                              \
    {                                                                                                                \
        INSIST(*n >= 0 && *incx == 1 && *incy == 1);                                                                 \
        REAL sum = 0;                                                                                                \
        for (int32_t i = 0; i < *n; i++)                                                                             \
            sum += x[i] * y[i];                                                                                      \
        return sum;                                                                                                  \
    }                                                                                                                \
    static void reference_##P##axpy(const int32_t *n, const REAL *alpha, const REAL *x, const int32_t *incx,         \
                                    REAL *y, const int32_t *incy)                                                    \
    {                                                                                                                \
        INSIST(*n >= 0 && *incx == 1 && *incy == 1);                                                                 \
        for (int32_t i = 0; i < *n; i++)                                                                             \
            y[i] += *alpha * x[i];                                                                                   \
    }                                                                                                                \
    /* Column-major a[m][n]: element (i, j) is a[i + j lda]. */                                                      \
    static void reference_##P##gemv(const char *trans, const int32_t *m, const int32_t *n, const REAL *alpha,        \
                                    const REAL *a, const int32_t *lda, const REAL *x, const int32_t *incx,           \
                                    const REAL *beta, REAL *y, const int32_t *incy)                                  \
    {                                                                                                                \
        const int flip = *trans == 'T';                                                                              \
        const int32_t outer = flip ? *n : *m, inner = flip ? *m : *n;                                                \
        INSIST((*trans == 'T' || *trans == 'N') && *m >= 0 && *n >= 0 && *lda >= (*m > 1 ? *m : 1));                 \
        INSIST(*incx == 1 && *incy == 1);                                                                            \
        for (int32_t i = 0; i < outer; i++) {                                                                        \
            REAL sum = 0;                                                                                            \
            for (int32_t j = 0; j < inner; j++)                                                                      \
                sum += (flip ? a[j + (int64_t)i * *lda] : a[i + (int64_t)j * *lda]) * x[j];                          \
            y[i] = *alpha * sum + (*beta == 0 ? 0 : *beta * y[i]);                                                   \
        }                                                                                                            \
    }                                                                                                                \
    static void reference_##P##gemm(const char *transa, const char *transb, const int32_t *m, const int32_t *n,      \
                                    const int32_t *k, const REAL *alpha, const REAL *a, const int32_t *lda,          \
                                    const REAL *b, const int32_t *ldb, const REAL *beta, REAL *c,                    \
                                    const int32_t *ldc)                                                              \
    {                                                                                                                \
        const int fa = *transa == 'T', fb = *transb == 'T';                                                          \
        const int32_t rows_a = fa ? *k : *m, rows_b = fb ? *n : *k;                                                  \
        INSIST((fa || *transa == 'N') && (fb || *transb == 'N') && *m >= 0 && *n >= 0 && *k >= 0);                   \
        INSIST(*lda >= (rows_a > 1 ? rows_a : 1) && *ldb >= (rows_b > 1 ? rows_b : 1) && *ldc >= (*m > 1 ? *m : 1)); \
        for (int32_t j = 0; j < *n; j++)                                                                             \
            for (int32_t i = 0; i < *m; i++) {                                                                       \
                REAL sum = 0;                                                                                        \
                for (int32_t l = 0; l < *k; l++)                                                                     \
                    sum += (fa ? a[l + (int64_t)i * *lda] : a[i + (int64_t)l * *lda]) *                              \
                           (fb ? b[j + (int64_t)l * *ldb] : b[l + (int64_t)j * *ldb]);                               \
                REAL *const out = c + i + (int64_t)j * *ldc;                                                         \
                *out = *alpha * sum + (*beta == 0 ? 0 : *beta * *out);                                               \
            }                                                                                                        \
    }                                                                                                                \
    static void reference_##P##gemv_batch(const char *trans, const int32_t *m, const int32_t *n, const REAL *alpha,  \
                                          const REAL **a, const int32_t *lda, const REAL **x, const int32_t *incx,   \
                                          const REAL *beta, REAL **y, const int32_t *incy, const int32_t *groups,    \
                                          const int32_t *group_size)                                                 \
    {                                                                                                                \
        for (int32_t g = 0, at = 0; g < *groups; g++)                                                                \
            for (int32_t i = 0; i < group_size[g]; i++, at++)                                                        \
                reference_##P##gemv(trans + g, m + g, n + g, alpha + g, a[at], lda + g, x[at], incx + g, beta + g,   \
                                    y[at], incy + g);                                                                \
    }                                                                                                                \
    static void reference_##P##gemm_batch(                                                                           \
        const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,                \
        const REAL *alpha, const REAL **a, const int32_t *lda, const REAL **b, const int32_t *ldb, const REAL *beta, \
        REAL **c, const int32_t *ldc, const int32_t *groups, const int32_t *group_size)                              \
    {                                                                                                                \
        for (int32_t g = 0, at = 0; g < *groups; g++)                                                                \
            for (int32_t i = 0; i < group_size[g]; i++, at++)                                                        \
                reference_##P##gemm(transa + g, transb + g, m + g, n + g, k + g, alpha + g, a[at], lda + g, b[at],   \
                                    ldb + g, beta + g, c[at], ldc + g);                                              \
    }
REFERENCE_BLAS(float, s)
REFERENCE_BLAS(double, d)
#undef REFERENCE_BLAS

/* Everything but the batched and the thread functions. */
static const cmm_blas reference_blas = {.size = sizeof(cmm_blas),
                                        .sdot = reference_sdot,
                                        .ddot = reference_ddot,
                                        .saxpy = reference_saxpy,
                                        .daxpy = reference_daxpy,
                                        .sgemv = reference_sgemv,
                                        .dgemv = reference_dgemv,
                                        .sgemm = reference_sgemm,
                                        .dgemm = reference_dgemm,
                                        .name = "reference"};

/* The same with the batched functions. */
static const cmm_blas reference_blas_batched = {.size = sizeof(cmm_blas),
                                                .sdot = reference_sdot,
                                                .ddot = reference_ddot,
                                                .saxpy = reference_saxpy,
                                                .daxpy = reference_daxpy,
                                                .sgemv = reference_sgemv,
                                                .dgemv = reference_dgemv,
                                                .sgemm = reference_sgemm,
                                                .dgemm = reference_dgemm,
                                                .sgemv_batch = reference_sgemv_batch,
                                                .dgemv_batch = reference_dgemv_batch,
                                                .sgemm_batch = reference_sgemm_batch,
                                                .dgemm_batch = reference_dgemm_batch,
                                                .name = "reference, batched"};

#endif
