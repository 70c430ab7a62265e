/* THE LIST of types that kernels are for, and what each type is.
 *
 *     TYPE(name, X, W)
 *
 * X is the type of tokens, bias, sums, logits and outputs; W that of the rows of weights. A kernel file says which list
 * it is for, and for_each_type.h compiles it once for each line. Rows may be narrower than tokens: the arithmetic is
 * that of X, and how a row is widened stands in the vector headers (load_w) and here (widen) alone. */
#ifndef CMM_TYPES_H
#define CMM_TYPES_H

#include "kernel.h"

#include <stddef.h>

/* Rows in the type of the tokens. */
#define CMM_SAME_TYPES(TYPE)  \
    TYPE(f32, float, float)   \
    TYPE(f64, double, double) \
    /* end of the list */

/* All. */
#define CMM_TYPES(TYPE)  \
    CMM_SAME_TYPES(TYPE) \
    /* end of the list */

/* Per type: its number in cmm.h; of a type of tokens the suffix of what is for it alone, and the letter of its BLAS
 * functions. Per line of the list: how an element of a row is widened. */
#define CMM_DTYPE_float CMM_F32
#define CMM_SUFFIX_float f32
#define CMM_BLAS_float s
static inline float widen_f32(float w) { return w; }

#define CMM_DTYPE_double CMM_F64
#define CMM_SUFFIX_double f64
#define CMM_BLAS_double d
static inline double widen_f64(double w) { return w; }

/* What a kernel file gives to the table: its kernels, one for each line of its list. */
#define CMM_EXPORT(symbol) const cmm_kernel *const symbol[] = {CMM_LIST(CMM_KERNEL_OF) NULL};
#define CMM_KERNEL_OF(name, x, w) &kernel_##name,

#endif
