/* What this library and this machine can do. */
#include "cpu.h"
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
    found.reason = cmm_why_not(found.name, &chosen.wanted, &found.isa);
    found.available = found.reason[0] == '\0';
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}

int32_t cmm_kernel_count(void)
{
    return cmm_count_kernels();
}

static const char *why_absent_here(const cmm_traits *kernel)
{
    return cmm_why_absent(kernel, cmm_cpu_machine()->cpu);
}

cmm_status cmm_kernel_get(int32_t index, cmm_kernel_info *info)
{
    return cmm_describe_kernel(index, why_absent_here, info);
}

const char *cmm_version(void)
{
#define TEXT(x) #x
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)
    return VERSION(CMM_VERSION_MAJOR, CMM_VERSION_MINOR, CMM_VERSION_PATCH);
}
