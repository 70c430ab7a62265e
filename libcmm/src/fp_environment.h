/* The floating-point environment of a piece of work: round to nearest, subnormal numbers kept, no traps.
 *
 * A thread has its own, and a new thread inherits that of the one that made it. A caller may round otherwise or flush
 * subnormal numbers to zero (torch.set_flush_denormal, libraries linked with -ffast-math), and would then get other
 * bits than a thread of the pool. So each piece of work runs in the default environment, and the caller's, with its
 * exception flags, is put back after. */
#ifndef CMM_FP_ENVIRONMENT_H
#define CMM_FP_ENVIRONMENT_H

#if defined(__SSE2__)
/* fesetenv() would go through the x87 unit, which no kernel uses: some hundred cycles instead of some ten. */
#include <xmmintrin.h>

typedef unsigned int cmm_fp_environment;

enum { CMM_MXCSR_FLAGS = 0x3f, CMM_MXCSR_DEFAULT = 0x1f80 };

static inline cmm_fp_environment cmm_fp_save(void)
{
    return _mm_getcsr();
}

static inline void cmm_fp_restore(cmm_fp_environment saved)
{
    _mm_setcsr(saved);
}

static inline void cmm_fp_default(void)
{
    if ((_mm_getcsr() & ~(unsigned int)CMM_MXCSR_FLAGS) != CMM_MXCSR_DEFAULT)
        _mm_setcsr(CMM_MXCSR_DEFAULT);
}

#elif defined(__aarch64__)
#include <stdint.h>

typedef struct {
    uint64_t control, status;
} cmm_fp_environment;

static inline cmm_fp_environment cmm_fp_save(void)
{
    cmm_fp_environment now;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(now.control), "=r"(now.status));
    return now;
}

static inline void cmm_fp_restore(cmm_fp_environment saved)
{
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(saved.control), "r"(saved.status));
}

static inline void cmm_fp_default(void)
{
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
}

#else
#include <fenv.h>

typedef fenv_t cmm_fp_environment;

static inline cmm_fp_environment cmm_fp_save(void)
{
    fenv_t now;
    (void)fegetenv(&now);
    return now;
}

static inline void cmm_fp_restore(cmm_fp_environment saved)
{
    (void)fesetenv(&saved);
}

static inline void cmm_fp_default(void)
{
    (void)fesetenv(FE_DFL_ENV);
}
#endif

#endif
