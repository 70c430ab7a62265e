/* The list of kernels of a libcmm, to be compared with another's. */
#include <cmm.h>

#include <stdio.h>

int main(void)
{
    for (int32_t i = 0; i < cmm_kernel_count(); i++) {
        cmm_kernel_info info = {.size = sizeof info};
        if (cmm_kernel_get(i, &info) != CMM_OK)
            return 1;
        printf("%s %s %s %s %s %s %s %s\n", info.operation, info.name, info.level, info.algorithm, info.isa,
               info.x_type, info.w_type, info.reason);
    }
    return 0;
}
