/* What this library and this machine can do. */
#include "run.h"
#include "validate.h"

int32_t cmm_level_count(void)
{
    int32_t count = 0;
    while (cmm_level_at(count))
        count++;
    return count;
}

cmm_status cmm_level_get(int32_t index, const cmm_run *how, cmm_level_info *info)
{
    cmm_choice chosen;
    cmm_level_info found;
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (!cmm_read_struct(&found, sizeof found, sizeof found, info))
        return CMM_ERROR_INFO_SIZE;
    const char *const name = cmm_level_at(index);
    if (!name)
        return CMM_ERROR_INDEX;
    const cmm_status status = cmm_choose(how, &chosen);
    if (status != CMM_OK)
        return status;
    found.name = name;
    found.isa = "any";
    found.why = cmm_why_not(found.name, &chosen, &found.isa);
    found.usable = found.why[0] == '\0';
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}

int32_t cmm_kernel_count(void)
{
    int32_t count;
    (void)cmm_kernel_at(-1, &count);
    return count;
}

cmm_status cmm_kernel_get(int32_t index, cmm_kernel_info *info)
{
    static const char *const operations[CMM_OPS] = {"fff", "ff", "act"};
    cmm_kernel_info found;
    int32_t count;
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (!cmm_read_struct(&found, sizeof found, offsetof(cmm_kernel_info, x_type), info))
        return CMM_ERROR_INFO_SIZE;
    const cmm_kernel *const kernel = cmm_kernel_at(index, &count);
    if (!kernel)
        return CMM_ERROR_INDEX;
    found.operation = operations[kernel->op];
    found.name = kernel->name;
    found.level = kernel->op == CMM_OP_ACT ? "" : kernel->level;
    found.method = kernel->method;
    found.isa = kernel->isa;
    found.why = cmm_why_absent(kernel);
    found.usable = found.why[0] == '\0';
    found.x_type = kernel->op == CMM_OP_ACT ? "" : cmm_dtype_name(kernel->x_type);
    found.w_type = kernel->op == CMM_OP_ACT ? "" : cmm_dtype_name(kernel->w_type);
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}

const char *cmm_version(void)
{
#define TEXT(x) #x
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)
    return VERSION(CMM_VERSION_MAJOR, CMM_VERSION_MINOR, CMM_VERSION_PATCH);
}
