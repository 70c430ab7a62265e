/* The choice of a kernel: the table of kernels, and what can be asked of it. */
#ifndef CMM_DISPATCH_H
#define CMM_DISPATCH_H

#include "kernel.h"

/* A cmm_run with its defaults filled in. */
typedef struct cmm_choice {
    const char *level, *isa, *method; /* NULL: any */
    int32_t threads;
    const cmm_blas *blas; /* NULL: none */
    cmm_blas table;       /* what blas points to */
} cmm_choice;

/* Level number `index`, in the order of the table, or NULL where there are no more. */
const char *cmm_level_at(int32_t index);
int cmm_is_level(const char *name);
int cmm_is_isa(const char *name);

/* Kernel number `index` of the table, or NULL with the number of all kernels. */
const cmm_kernel *cmm_kernel_at(int32_t index, int32_t *count);

/* CMM_OK when the BLAS has what level number 1, 2 or 3 needs. A level uses only functions of its own number or below. */
cmm_status cmm_check_blas(const cmm_blas *blas, int32_t number, int32_t dtype);

/* The activation functions: of the forced instruction set, or of the best one. */
cmm_status cmm_find_activation(const cmm_choice *chosen, cmm_context *cpu);

/* The kernel for a task: the last one of the list that can run, is what was asked for, can do it and is preferred. */
cmm_status cmm_find_kernel(cmm_op op, const cmm_choice *chosen, const cmm_problem *task, const cmm_kernel **found);

/* Why a kernel cannot run here, or "". */
const char *cmm_why_absent(const cmm_kernel *kernel);

/* Why no kernel of the level can run, the last reason found in the order of the list; or "", and the instruction set. */
const char *cmm_why_not(const char *level, const cmm_choice *chosen, const char **isa);

#endif
