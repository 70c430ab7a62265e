/* What the native kernels have in common outside their arithmetic. */
#ifndef CMM_NATIVE_H
#define CMM_NATIVE_H

#include "../kernel.h"
#include "../scratch.h"
#include "../tree.h"

#include <stddef.h>
#include <string.h>

/* Rows in the type of the tokens are loaded as those are, and need nothing more of the CPU. */
enum { LOAD_CPU_f32 = 0, LOAD_CPU_f64 = 0 };
static inline vec_f32 load_w_f32(const float *p) { return vec_load_f32(p); }
static inline vec_f32 load_w_masked_f32(const float *p, int64_t n) { return vec_load_masked_f32(p, n); }
static inline vec_f64 load_w_f64(const double *p) { return vec_load_f64(p); }
static inline vec_f64 load_w_masked_f64(const double *p, int64_t n) { return vec_load_masked_f64(p, n); }

/* The value that ends the body of a native kernel, and what its file exports: cmm_fff_<algorithm>_<ISA>. */
#define NATIVE_KERNEL(ALGORITHM, IS_PREFERRED) \
    static const cmm_kernel NAME(kernel) = { \
        .traits.op = CMM_OP_FFF, \
        .traits.name = #ALGORITHM "_" CMM_TEXT(ISA), \
        .traits.level = "native", \
        .traits.algorithm = #ALGORITHM, \
        .traits.isa = CMM_TEXT(ISA), \
        .traits.x_type = X_TYPE, \
        .traits.w_type = W_TYPE, \
        .traits.cpu = ISA_CPU | NAME(LOAD_CPU), \
        .traits.is_preferred = IS_PREFERRED, \
        .scratch = NAME(scratch), \
        .run = NAME(run), \
    };
#define NATIVE_EXPORT(ALGORITHM) CMM_EXPORT(CMM_JOIN(cmm_fff_##ALGORITHM##_, ISA))

#endif
