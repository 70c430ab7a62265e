/* The choice of a kernel, see dispatch.h. A level is a backend here ("native", "blas1"), not one of a tree. */
#include "dispatch.h"

#include "validate.h"

#include <stddef.h>
#include <string.h>

const char *cmm_level_at(int32_t index)
{
    const char *level = "";
    for (int i = 0; i < cmm_kernel_file_count; i++) {
        const cmm_traits *const kernel = cmm_kernel_files[i][0];
        if (kernel->op == CMM_OP_FFF && strcmp(level, kernel->level) != 0) { /* the lines of a level stand together */
            level = kernel->level;
            if (index-- == 0)
                return level;
        }
    }
    return NULL;
}

int cmm_is_level(const char *name)
{
    for (int i = 0; i < cmm_kernel_file_count; i++)
        if (cmm_kernel_files[i][0]->op == CMM_OP_FFF && strcmp(name, cmm_kernel_files[i][0]->level) == 0)
            return 1;
    return 0;
}

/* The instruction sets are those that have activations. */
int cmm_is_isa(const char *name)
{
    for (int i = 0; i < cmm_kernel_file_count; i++)
        if (cmm_kernel_files[i][0]->op == CMM_OP_ACT && strcmp(name, cmm_kernel_files[i][0]->isa) == 0)
            return 1;
    return 0;
}

/* NULL asks for any. */
static int same(const char *wanted, const char *name)
{
    return !wanted || strcmp(wanted, name) == 0;
}

int cmm_is_of_isa(const cmm_traits *kernel, const char *isa)
{
    return strcmp(kernel->isa, "any") == 0 || same(isa, kernel->isa);
}

const char *cmm_why_absent(const cmm_traits *kernel, uint32_t cpu)
{
    if (kernel->absent)
        return kernel->absent;
    return (kernel->cpu & ~cpu) == 0 ? "" : "this CPU lacks its instructions";
}

static int runs_on(const cmm_traits *kernel, uint32_t cpu)
{
    return cmm_why_absent(kernel, cpu)[0] == '\0';
}

/* What algorithms were called in 0.1.0; a call may still ask for them so. */
static const struct {
    const char *name, *old;
} ALIASES[] = {{"per_token", "walk"}, {"grouped", "group"}, {"generic", "block"}, {"small_batch", "wide"}};

static int is_algorithm(const char *wanted, const char *name)
{
    if (same(wanted, name))
        return 1;
    for (size_t i = 0; i < sizeof ALIASES / sizeof *ALIASES; i++)
        if (strcmp(name, ALIASES[i].name) == 0 && strcmp(wanted, ALIASES[i].old) == 0)
            return 1;
    return 0;
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

/* Of a file's kernels the one for these types, or NULL. */
static const cmm_traits *of_types(const cmm_traits *const *file, int32_t x_type, int32_t w_type)
{
    for (; *file; file++) {
        const cmm_traits *const kernel = *file;
        if (kernel->x_type == CMM_EVERY_TYPE ? x_type == w_type : kernel->x_type == x_type && kernel->w_type == w_type)
            return kernel;
    }
    return NULL;
}

cmm_status cmm_find_kernel(cmm_op op, const cmm_request *wanted, const cmm_problem *problem, const cmm_traits **found)
{
    cmm_status blame = CMM_ERROR_LEVEL_UNUSABLE;
    for (int i = cmm_kernel_file_count - 1; i >= 0; i--) {
        const cmm_traits *kernel = cmm_kernel_files[i][0];
        if (kernel->op != op || !same(wanted->level, kernel->level) || !cmm_is_of_isa(kernel, wanted->isa))
            continue;
        kernel = of_types(cmm_kernel_files[i], problem->dtype, problem->weight_dtype);
        /* rows of w_out are read by the code that the file has for those */
        const cmm_traits *const for_out = of_types(cmm_kernel_files[i], problem->dtype, problem->weight_out_dtype);
        if (!kernel || !for_out) {
            blame = CMM_ERROR_LEVEL_WEIGHT_DTYPE;
            continue;
        }
        if (!runs_on(kernel, wanted->cpu) || !runs_on(for_out, wanted->cpu)) { /* the instruction set has activations here, but not what these rows take */
            blame = wanted->isa && strcmp(wanted->isa, kernel->isa) == 0 ? CMM_ERROR_ISA_UNUSABLE : blame;
            continue;
        }
        if (!is_algorithm(wanted->algorithm, kernel->algorithm)) {
            blame = CMM_ERROR_METHOD;
            continue;
        }
        cmm_status status = cmm_check_blas(wanted->blas, kernel->blas, problem->dtype);
        if (status == CMM_OK && kernel->can_implement && !kernel->can_implement(problem))
            /* a BLAS kernel refuses nothing but sizes that do not fit its 32-bit counts */
            status = kernel->blas ? CMM_ERROR_LAYER_TOO_LARGE : CMM_ERROR_METHOD;
        if (status != CMM_OK) {
            blame = status;
            continue;
        }
        if (!wanted->algorithm && kernel->is_preferred && !kernel->is_preferred(problem))
            continue;
        *found = kernel;
        return CMM_OK;
    }
    return blame;
}

const char *cmm_why_not(const char *level, const cmm_request *wanted, const char **isa)
{
    const char *why = "this build has no kernel for it";
    for (int i = cmm_kernel_file_count - 1; i >= 0; i--) {
        const cmm_traits *const kernel = cmm_kernel_files[i][0];
        if (kernel->op != CMM_OP_FFF || strcmp(kernel->level, level) != 0 || !cmm_is_of_isa(kernel, wanted->isa))
            continue;
        if (!runs_on(kernel, wanted->cpu))
            why = cmm_why_absent(kernel, wanted->cpu);
        else if (cmm_check_blas(wanted->blas, kernel->blas, CMM_F32) != CMM_OK)
            why = wanted->blas ? "the BLAS lacks functions it needs" : "no BLAS: none is linked, and none was given";
        else {
            *isa = kernel->isa;
            return "";
        }
    }
    return why;
}

/* Kernel number `index` of all files; or NULL, and only then *count is the number of all kernels. */
static const cmm_traits *kernel_at(int32_t index, int32_t *count)
{
    *count = 0;
    for (int i = 0; i < cmm_kernel_file_count; i++)
        for (const cmm_traits *const *kernel = cmm_kernel_files[i]; *kernel; kernel++)
            if ((*count)++ == index)
                return *kernel;
    return NULL;
}

int32_t cmm_count_kernels(void)
{
    int32_t count;
    (void)kernel_at(-1, &count);
    return count;
}

static const char *type_name(int32_t type)
{
    return type == CMM_EVERY_TYPE ? "" : cmm_dtype_name(type);
}

cmm_status cmm_describe_kernel(int32_t index, const char *(*why)(const cmm_traits *kernel), cmm_kernel_info *info)
{
    static const char *const operations[CMM_OPS] = {"fff", "ff", "act", "backward"};
    cmm_kernel_info found;
    int32_t count;
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (!cmm_read_struct(&found, sizeof found, offsetof(cmm_kernel_info, x_type), info))
        return CMM_ERROR_INFO_SIZE;
    const cmm_traits *const kernel = kernel_at(index, &count);
    if (!kernel)
        return CMM_ERROR_INDEX;
    found.operation = operations[kernel->op];
    found.name = kernel->name;
    found.level = kernel->level;
    found.algorithm = kernel->algorithm;
    found.isa = kernel->isa;
    found.reason = why(kernel);
    found.available = found.reason[0] == '\0';
    found.x_type = type_name(kernel->x_type);
    found.w_type = type_name(kernel->w_type);
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}
