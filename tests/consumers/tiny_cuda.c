/* A program against the installed libcmm_cuda: what needs no GPU is checked, what a GPU would do is not. */
#include <cmm_cuda.h>

#include <stdio.h>
#include <string.h>

/* Programs built before rely on it. */
_Static_assert(sizeof(void *) != 8 || (sizeof(cmm_cuda_run) == 64 && offsetof(cmm_cuda_run, stream) == 24 &&
                                       offsetof(cmm_cuda_run, workspace_bytes) == 40 &&
                                       offsetof(cmm_cuda_run, path_nodes) == 48), "the layout of cmm_cuda_run");

int main(void)
{
    char memory[64]; /* stands for memory on a device: no call here gets as far as using it */
    cmm_fff layer = {.size = sizeof layer, .dtype = CMM_BF16, .depth = 1, .trees = 1, .d_in = 2, .d_out = 2,
                     .w_in = memory, .w_out = memory};
    cmm_cuda_run run = {.size = sizeof run, .level = "cuda"};
    cmm_kernel_info info = {.size = sizeof info};
    int naive = 0;
    for (int32_t i = 0; i < cmm_cuda_kernel_count(); i++)
        naive += cmm_cuda_kernel_get(i, &info) == CMM_OK && strcmp(info.level, "cuda-naive") == 0;
    if (naive != 2) {
        printf("%d kernels of level cuda-naive\n", naive);
        return 1;
    }
    cmm_status status = cmm_cuda_fff_forward(&layer, &run, -1, memory, memory, NULL, NULL);
    if (status != CMM_ERROR_BATCH) {
        printf("a wrong call gave %s\n", cmm_status_name(status));
        return 1;
    }
    status = cmm_cuda_fff_workspace(&layer, &run, 0, &run.workspace_bytes);
    if (status != cmm_cuda_usable()) {
        printf("a right call gave %s\n", cmm_status_name(status));
        return 1;
    }
    printf("libcmm_cuda of libcmm %s from C, %s: good\n", cmm_version(), cmm_status_name(status));
    return 0;
}
