/* Shared libraries that look like a BLAS, for cmm_blas_load(): the reference BLAS under other names.
 *
 * BLAS_PLAIN and BLAS_SCIPY are other spellings of the names; BLAS_PARTIAL leaves a function out; BLAS_OPENBLAS and
 * BLAS_MKL add what those libraries have besides. */
#include "reference_blas.h"

#if defined(BLAS_PLAIN) || defined(BLAS_MKL)
#define SPELL(name) name
#elif defined(BLAS_SCIPY)
#define SPELL(name) scipy_##name##_
#else
#define SPELL(name) name##_
#endif

#define EXPORT __attribute__((visibility("default")))

#define EXPORTED(REAL, P)                                                                                            \
    EXPORT REAL SPELL(P##dot)(const int32_t *n, const REAL *x, const int32_t *incx, const REAL *y,                   \
                              const int32_t *incy);                                                                  \
    REAL SPELL(P##dot)(const int32_t *n, const REAL *x, const int32_t *incx, const REAL *y, const int32_t *incy)     \
    {                                                                                                                \
        return reference_blas.P##dot(n, x, incx, y, incy);                                                           \
    }                                                                                                                \
    EXPORT void SPELL(P##axpy)(const int32_t *n, const REAL *alpha, const REAL *x, const int32_t *incx, REAL *y,     \
                               const int32_t *incy);                                                                 \
    void SPELL(P##axpy)(const int32_t *n, const REAL *alpha, const REAL *x, const int32_t *incx, REAL *y,            \
                        const int32_t *incy)                                                                         \
    {                                                                                                                \
        reference_blas.P##axpy(n, alpha, x, incx, y, incy);                                                          \
    }                                                                                                                \
    EXPORT void SPELL(P##gemv)(const char *trans, const int32_t *m, const int32_t *n, const REAL *alpha,             \
                               const REAL *a, const int32_t *lda, const REAL *x, const int32_t *incx,                \
                               const REAL *beta, REAL *y, const int32_t *incy);                                      \
    void SPELL(P##gemv)(const char *trans, const int32_t *m, const int32_t *n, const REAL *alpha, const REAL *a,     \
                        const int32_t *lda, const REAL *x, const int32_t *incx, const REAL *beta, REAL *y,           \
                        const int32_t *incy)                                                                         \
    {                                                                                                                \
        reference_blas.P##gemv(trans, m, n, alpha, a, lda, x, incx, beta, y, incy);                                  \
    }
EXPORTED(float, s)
EXPORTED(double, d)

#define EXPORTED_GEMM(REAL, P)                                                                                       \
    EXPORT void SPELL(P##gemm)(const char *transa, const char *transb, const int32_t *m, const int32_t *n,           \
                               const int32_t *k, const REAL *alpha, const REAL *a, const int32_t *lda,               \
                               const REAL *b, const int32_t *ldb, const REAL *beta, REAL *c, const int32_t *ldc);    \
    void SPELL(P##gemm)(const char *transa, const char *transb, const int32_t *m, const int32_t *n,                  \
                        const int32_t *k, const REAL *alpha, const REAL *a, const int32_t *lda, const REAL *b,       \
                        const int32_t *ldb, const REAL *beta, REAL *c, const int32_t *ldc)                           \
    {                                                                                                                \
        reference_blas.P##gemm(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                        \
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
