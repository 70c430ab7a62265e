/* The choice of a kernel, for libcmm and for libcmm_cuda: what can be asked of a table of kernels. */
#ifndef CMM_DISPATCH_H
#define CMM_DISPATCH_H

#include "kernel.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The table, which each library brings: what its kernel files export, in the order of the list. A file's kernels are one
 * for each pair of types and alike in all else; a NULL follows them. */
extern const cmm_traits *const *const cmm_kernel_files[];
extern const int32_t cmm_kernel_file_count;

/* What a kernel must be, and what there is for it. */
typedef struct cmm_request {
    const char *level, *isa, *algorithm; /* NULL: any */
    const cmm_blas *blas;                /* NULL: none */
    uint32_t cpu;                        /* CMM_CPU_ bits that are there */
} cmm_request;

/* Level number `index`, in the order of the table, or NULL where there are no more. */
const char *cmm_level_at(int32_t index);
int cmm_is_level(const char *name);
int cmm_is_isa(const char *name);

/* CMM_OK when the BLAS has what level number 1, 2 or 3 needs. A level uses only functions of its own number or below. */
cmm_status cmm_check_blas(const cmm_blas *blas, int32_t number, int32_t dtype);

/* Whether a kernel is of the instruction set that was asked for, or for any. */
int cmm_is_of_isa(const cmm_traits *kernel, const char *isa);

/* Why a kernel cannot run on a CPU with these bits, or "". */
const char *cmm_why_absent(const cmm_traits *kernel, uint32_t cpu);

/* The kernel for a problem: the last one of the table that can run, is what was asked for, can do it and is preferred.
 * They are tried from the last one up; where none will do, the status is that of the last candidate tried. */
cmm_status cmm_find_kernel(cmm_op op, const cmm_request *wanted, const cmm_problem *problem, const cmm_traits **found);

/* Why no kernel of the level can run: the reason of the first of them in the table. Or "" and the instruction set, for
 * layers of float. */
const char *cmm_why_not(const char *level, const cmm_request *wanted, const char **isa);

/* Kernels, for people: how many, and what number `index` is; why says why it is not available, or "". */
int32_t cmm_count_kernels(void);
cmm_status cmm_describe_kernel(int32_t index, const char *(*why)(const cmm_traits *kernel), cmm_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
