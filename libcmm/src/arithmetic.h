/* Stops a build in which numbers would mean something else. CMake puts this file before every file of the library.
 *
 * cmake/arithmetic.cmake turns such flags off where they come from CFLAGS and the like. This is for those that it
 * cannot see: a wrapper around the compiler, flags that come after all others, another build system. */
#ifndef CMM_ARITHMETIC_H
#define CMM_ARITHMETIC_H

#include <float.h>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) ||                             \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "libcmm does not build with -ffast-math or a part of it: NaN, ties, sums and subnormal numbers would be wrong"
#endif

/* 16: float and double in their own precision, and so is _Float16. */
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "libcmm needs float and double computed in their own precision; on x86 build with -msse2 -mfpmath=sse"
#endif

_Static_assert(sizeof 0.1 == sizeof(double), "libcmm does not build with -fsingle-precision-constant");

#endif
