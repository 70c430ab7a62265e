/* Shared libraries that look like a BLAS, for cmm_blas_load(): the reference BLAS under other names.
 *
 * BLAS_PLAIN and BLAS_SCIPY are other spellings of the names; BLAS_PARTIAL leaves a function out; BLAS_OPENBLAS and
 * BLAS_MKL add what those libraries have besides. BLAS_ILP64 counts in 64 bits under the usual names, and ends the
 * process where a count is not one that a 32-bit caller means; BLAS_DOUBLE returns float as double. */
#include "reference_blas.h"

#include <stdlib.h>

#if defined(BLAS_PLAIN) || defined(BLAS_MKL)
#define SPELL(name) name
#elif defined(BLAS_SCIPY)
#define SPELL(name) scipy_##name##_
#else
#define SPELL(name) name##_
#endif

#define EXPORT __attribute__((visibility("default")))

#if defined(BLAS_ILP64)
typedef int64_t integer;
#else
typedef int32_t integer;
#endif

/* A count as the reference takes it. */
static const int32_t *narrow(const integer *count, int32_t *narrowed)
{
    if (*count > INT32_MAX)
        abort(); /* it would read beyond the arrays */
    *narrowed = *count < 0 ? -1 : (int32_t)*count;
    return narrowed;
}
#define N(count) narrow(count, &(int32_t){0})

#if defined(BLAS_DOUBLE)
#define RETURNED(REAL) double
#else
#define RETURNED(REAL) REAL
#endif

#define EXPORTED(REAL, P)                                                                                            \
    EXPORT RETURNED(REAL) SPELL(P##dot)(const integer *n, const REAL *x, const integer *incx, const REAL *y,         \
                                        const integer *incy);                                                        \
    RETURNED(REAL)                                                                                                   \
    SPELL(P##dot)(const integer *n, const REAL *x, const integer *incx, const REAL *y, const integer *incy)          \
    {                                                                                                                \
        return reference_blas.P##dot(N(n), x, N(incx), y, N(incy));                                                  \
    }                                                                                                                \
    EXPORT void SPELL(P##axpy)(const integer *n, const REAL *alpha, const REAL *x, const integer *incx, REAL *y,     \
                               const integer *incy);                                                                 \
    void SPELL(P##axpy)(const integer *n, const REAL *alpha, const REAL *x, const integer *incx, REAL *y,            \
                        const integer *incy)                                                                         \
    {                                                                                                                \
        reference_blas.P##axpy(N(n), alpha, x, N(incx), y, N(incy));                                                 \
    }                                                                                                                \
    EXPORT void SPELL(P##gemv)(const char *trans, const integer *m, const integer *n, const REAL *alpha,             \
                               const REAL *a, const integer *lda, const REAL *x, const integer *incx,                \
                               const REAL *beta, REAL *y, const integer *incy);                                      \
    void SPELL(P##gemv)(const char *trans, const integer *m, const integer *n, const REAL *alpha, const REAL *a,     \
                        const integer *lda, const REAL *x, const integer *incx, const REAL *beta, REAL *y,           \
                        const integer *incy)                                                                         \
    {                                                                                                                \
        reference_blas.P##gemv(trans, N(m), N(n), alpha, a, N(lda), x, N(incx), beta, y, N(incy));                   \
    }
EXPORTED(float, s)
EXPORTED(double, d)

#define EXPORTED_GEMM(REAL, P)                                                                                       \
    EXPORT void SPELL(P##gemm)(const char *transa, const char *transb, const integer *m, const integer *n,           \
                               const integer *k, const REAL *alpha, const REAL *a, const integer *lda,               \
                               const REAL *b, const integer *ldb, const REAL *beta, REAL *c, const integer *ldc);    \
    void SPELL(P##gemm)(const char *transa, const char *transb, const integer *m, const integer *n,                  \
                        const integer *k, const REAL *alpha, const REAL *a, const integer *lda, const REAL *b,       \
                        const integer *ldb, const REAL *beta, REAL *c, const integer *ldc)                           \
    {                                                                                                                \
        reference_blas.P##gemm(transa, transb, N(m), N(n), N(k), alpha, a, N(lda), b, N(ldb), beta, c, N(ldc));      \
    }
EXPORTED_GEMM(float, s)
#if !defined(BLAS_PARTIAL)
EXPORTED_GEMM(double, d)
#endif

#if defined(BLAS_OPENBLAS)
static int threads = 3;

EXPORT void openblas_set_num_threads(int n);
void openblas_set_num_threads(int n)
{
    threads = n;
}

EXPORT int openblas_get_num_threads(void);
int openblas_get_num_threads(void)
{
    return threads;
}

EXPORT const char *openblas_get_config(void);
const char *openblas_get_config(void)
{
    return "a stand-in for OpenBLAS";
}
#endif

#if defined(BLAS_MKL)
#include <string.h>

static int layer = -1;

EXPORT int MKL_Set_Threading_Layer(int which);
int MKL_Set_Threading_Layer(int which)
{
    return layer = which;
}

/* Not MKL's: for the test. */
EXPORT int threading_layer(void);
int threading_layer(void)
{
    return layer;
}

EXPORT void MKL_Get_Version_String(char *text, int size);
void MKL_Get_Version_String(char *text, int size)
{
    memset(text, 'M', (size_t)size); /* longer than any name, and not terminated */
}

EXPORT void sgemv_batch(const char *trans, const int32_t *m, const int32_t *n, const float *alpha, const float **a,
                        const int32_t *lda, const float **x, const int32_t *incx, const float *beta, float **y,
                        const int32_t *incy, const int32_t *groups, const int32_t *group_size);
void sgemv_batch(const char *trans, const int32_t *m, const int32_t *n, const float *alpha, const float **a,
                 const int32_t *lda, const float **x, const int32_t *incx, const float *beta, float **y,
                 const int32_t *incy, const int32_t *groups, const int32_t *group_size)
{
    reference_blas_batched.sgemv_batch(trans, m, n, alpha, a, lda, x, incx, beta, y, incy, groups, group_size);
}
#endif
