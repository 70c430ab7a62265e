/* The choice of a kernel, see dispatch.h. */
#include "dispatch.h"

#include "cpu.h"

#include <string.h>

/* What each kernel file exports: its kernels, one for each pair of types and alike in all else, and a NULL. */
#define CMM_KERNEL(op, name) extern const cmm_kernel *const cmm_##op##_##name[];
#include "kernel_table.inc" /* made by CMake from kernels.inc */
#undef CMM_KERNEL

static const cmm_kernel *const *const files[] = {
#define CMM_KERNEL(op, name) cmm_##op##_##name,
#include "kernel_table.inc"
#undef CMM_KERNEL
};

enum { FILES = (int)(sizeof files / sizeof files[0]) };

const char *cmm_level_at(int32_t index)
{
    const char *level = "";
    for (int i = 0; i < FILES; i++)
        if (files[i][0]->op == CMM_OP_FFF && strcmp(level, files[i][0]->level) != 0) { /* its lines stand together */
            level = files[i][0]->level;
            if (index-- == 0)
                return level;
        }
    return NULL;
}

int cmm_is_level(const char *name)
{
    for (int i = 0; i < FILES; i++)
        if (files[i][0]->op == CMM_OP_FFF && strcmp(name, files[i][0]->level) == 0)
            return 1;
    return 0;
}

/* The instruction sets are those that have activations. */
int cmm_is_isa(const char *name)
{
    for (int i = 0; i < FILES; i++)
        if (files[i][0]->op == CMM_OP_ACT && strcmp(name, files[i][0]->isa) == 0)
            return 1;
    return 0;
}

static int same(const char *wanted, const char *name)
{
    return !wanted || strcmp(wanted, name) == 0;
}

const char *cmm_why_absent(const cmm_kernel *kernel)
{
    if (kernel->absent)
        return kernel->absent;
    return (kernel->cpu & ~cmm_cpu_machine()->cpu) == 0 ? "" : "this CPU lacks its instructions";
}

static int runs_here(const cmm_kernel *kernel)
{
    return cmm_why_absent(kernel)[0] == '\0';
}

cmm_status cmm_check_blas(const cmm_blas *blas, int32_t number, int32_t dtype)
{
    if (number == 0)
        return CMM_OK;
    if (!blas)
        return CMM_ERROR_BLAS_MISSING;
    const int f32 = blas->sdot && blas->saxpy && (number < 2 || blas->sgemv) && (number < 3 || blas->sgemm);
    const int f64 = blas->ddot && blas->daxpy && (number < 2 || blas->dgemv) && (number < 3 || blas->dgemm);
    return (dtype == CMM_F32 ? f32 : f64) ? CMM_OK : CMM_ERROR_BLAS_INCOMPLETE;
}

cmm_status cmm_find_activation(const cmm_choice *chosen, cmm_context *cpu)
{
    cmm_status status = CMM_ERROR_ISA_UNUSABLE;
    for (int i = 0; i < FILES; i++) {
        const cmm_kernel *const kernel = files[i][0];
        if (kernel->op == CMM_OP_ACT && same(chosen->isa, kernel->isa) && runs_here(kernel)) {
            cpu->activate_f32 = kernel->activate_f32;
            cpu->activate_f64 = kernel->activate_f64;
            status = CMM_OK;
        }
    }
    return status;
}

/* Of a file's kernels the one for these types, or NULL. */
static const cmm_kernel *of_types(const cmm_kernel *const *file, int32_t x_type, int32_t w_type)
{
    while (*file && ((*file)->x_type != x_type || (*file)->w_type != w_type))
        file++;
    return *file;
}

cmm_status cmm_find_kernel(cmm_op op, const cmm_choice *chosen, const cmm_problem *task, const cmm_kernel **found)
{
    cmm_status blame = CMM_ERROR_LEVEL_UNUSABLE;
    for (int i = FILES - 1; i >= 0; i--) {
        const cmm_kernel *kernel = files[i][0];
        if (kernel->op != op || !same(chosen->level, kernel->level))
            continue;
        if (strcmp(kernel->isa, "any") != 0 && !same(chosen->isa, kernel->isa))
            continue;
        kernel = of_types(files[i], task->dtype, task->weight_dtype);
        if (!kernel) {
            blame = CMM_ERROR_LEVEL_WEIGHT_DTYPE;
            continue;
        }
        if (!runs_here(kernel)) { /* the instruction set has activations here, but not what these rows take */
            blame = same(chosen->isa, kernel->isa) && chosen->isa ? CMM_ERROR_ISA_UNUSABLE : blame;
            continue;
        }
        if (!same(chosen->method, kernel->method)) {
            blame = CMM_ERROR_METHOD;
            continue;
        }
        if (!chosen->method && kernel->is_preferred && !kernel->is_preferred(task))
            continue;
        cmm_status status = cmm_check_blas(chosen->blas, kernel->blas, task->dtype);
        if (status == CMM_OK && kernel->can_implement && !kernel->can_implement(task))
            status = CMM_ERROR_LAYER_TOO_LARGE;
        if (status == CMM_OK) {
            *found = kernel;
            return CMM_OK;
        }
        blame = status;
    }
    return blame;
}

const char *cmm_why_not(const char *level, const cmm_choice *chosen, const char **isa)
{
    const char *why = "this build has no kernel for it";
    for (int i = FILES - 1; i >= 0; i--) {
        const cmm_kernel *const kernel = files[i][0];
        if (kernel->op != CMM_OP_FFF || strcmp(kernel->level, level) != 0)
            continue;
        if (chosen->isa && strcmp(kernel->isa, "any") != 0 && strcmp(kernel->isa, chosen->isa) != 0)
            continue;
        if (!runs_here(kernel))
            why = cmm_why_absent(kernel);
        else if (cmm_check_blas(chosen->blas, kernel->blas, CMM_F32) != CMM_OK)
            why = chosen->blas ? "the BLAS lacks functions it needs" : "no BLAS: none is linked, and none was given";
        else {
            *isa = kernel->isa;
            return "";
        }
    }
    return why;
}

const cmm_kernel *cmm_kernel_at(int32_t index, int32_t *count)
{
    *count = 0;
    for (int i = 0; i < FILES; i++)
        for (const cmm_kernel *const *kernel = files[i]; *kernel; kernel++)
            if ((*count)++ == index)
                return *kernel;
    return NULL;
}
