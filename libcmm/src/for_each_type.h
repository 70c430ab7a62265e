/* Compile the body of a kernel file once for each line of a list of types (types.h).
 *
 * A kernel file defines CMM_BODY as its own name and CMM_LIST as a list of types.h, and includes this file,
 * which includes it back. Its body is under #ifdef CMM_TYPE, and there
 *     X, W       are the two types, X_TYPE and W_TYPE their numbers in cmm.h
 *     NAME(a)    is a_f32_bf16: what the body defines, and what is for this pair of types
 *     XNAME(a)   is a_f32: what is for X alone, the operations on vectors and the activations
 *     BLAS(a)    is the BLAS function for X: sgemm
 * The body ends in `static const cmm_kernel NAME(kernel)`; after the include, CMM_EXPORT(symbol) exports all of them. */
#ifndef CMM_FOR_EACH_TYPE_H
#define CMM_FOR_EACH_TYPE_H

#include "types.h"

#define X CMM_OF_TYPE(CMM_SECOND)
#define W CMM_OF_TYPE(CMM_THIRD)
#define X_TYPE CMM_JOIN(CMM_DTYPE_, X)
#define W_TYPE CMM_JOIN(CMM_DTYPE_, W)
#define NAME(a) CMM_JOIN(CMM_JOIN(a, _), CMM_OF_TYPE(CMM_FIRST))
#define XNAME(a) CMM_JOIN(CMM_JOIN(a, _), CMM_JOIN(CMM_SUFFIX_, X))
#define BLAS(a) CMM_JOIN(CMM_JOIN(CMM_BLAS_, X), a)

/* CMM_TYPE is one line of the list in parentheses. */
#define CMM_OF_TYPE(PICK) CMM_APPLY(PICK, CMM_TYPE)
#define CMM_APPLY(PICK, type) PICK type
#define CMM_FIRST(name, x, w) name
#define CMM_SECOND(name, x, w) x
#define CMM_THIRD(name, x, w) w

/* The lines of a list are counted, and picked by their number. */
#define CMM_ONE_MORE(name, x, w) +1
#define CMM_COUNT (0 CMM_LIST(CMM_ONE_MORE))
#define CMM_IN_PARENTHESES(name, x, w) (name, x, w),
#define CMM_PICK(N) CMM_APPLY(N, (CMM_LIST(CMM_IN_PARENTHESES) 0))
#define CMM_0(a, ...) a
#define CMM_1(a, b, ...) b
#define CMM_2(a, b, c, ...) c
#define CMM_3(a, b, c, d, ...) d
#define CMM_4(a, b, c, d, e, ...) e
#define CMM_5(a, b, c, d, e, f, ...) f

#endif

#define CMM_TYPE CMM_PICK(CMM_0)
#include CMM_BODY
#undef CMM_TYPE
#if CMM_COUNT > 1
#define CMM_TYPE CMM_PICK(CMM_1)
#include CMM_BODY
#undef CMM_TYPE
#endif
#if CMM_COUNT > 2
#define CMM_TYPE CMM_PICK(CMM_2)
#include CMM_BODY
#undef CMM_TYPE
#endif
#if CMM_COUNT > 3
#define CMM_TYPE CMM_PICK(CMM_3)
#include CMM_BODY
#undef CMM_TYPE
#endif
#if CMM_COUNT > 4
#define CMM_TYPE CMM_PICK(CMM_4)
#include CMM_BODY
#undef CMM_TYPE
#endif
#if CMM_COUNT > 5
#define CMM_TYPE CMM_PICK(CMM_5)
#include CMM_BODY
#undef CMM_TYPE
#endif
#if CMM_COUNT > 6
#error "CMM_PICK and the passes above end at 6 types: add one more of each"
#endif
