/* What the kernels of the BLAS levels have in common. */
#ifndef CMM_BLAS_KERNEL_H
#define CMM_BLAS_KERNEL_H

#include "kernel.h"

/* They can do what fits the 32 bits that BLAS counts in. */
static inline int cmm_fits_blas(const cmm_problem *problem)
{
    return problem->d_in <= INT32_MAX && problem->d_out <= INT32_MAX && problem->ld_in <= INT32_MAX &&
           problem->ld_out <= INT32_MAX && problem->nodes <= INT32_MAX;
}

/* The value that ends the body of a kernel of level blas<NUMBER>. */
#define BLAS_KERNEL(OP, NUMBER, SCRATCH) \
    static const cmm_kernel NAME(kernel) = { \
        .traits.op = CMM_OP_##OP, \
        .traits.name = "blas" #NUMBER, \
        .traits.level = "blas" #NUMBER, \
        .traits.algorithm = "", \
        .traits.isa = "any", \
        .traits.blas = NUMBER, \
        .traits.x_type = X_TYPE, \
        .traits.w_type = W_TYPE, \
        .traits.can_implement = cmm_fits_blas, \
        .scratch = SCRATCH, \
        .run = NAME(run), \
    };

#endif
