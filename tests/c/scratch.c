/* Memory that the native kernels take beyond weights, input and output: at most 64 bytes per token and level of one
 * tree, and no more for a million tokens than for some thousands. */
#include "check.h"
#include "cpu.h"
#include "dispatch.h"

#include <string.h>

static void check_kernel(const cmm_kernel *kernel, const cmm_problem *task)
{
    const cmm_context cpu = {.machine = cmm_cpu_machine()};
    const long long trees = (long long)task->trees;
    const int64_t bytes = kernel->scratch(task, &cpu, 16384), more = kernel->scratch(task, &cpu, 1000000);
    printf("%s, types %d and %d, %lldx%d: %lld bytes\n", kernel->traits.name, kernel->traits.x_type,
           kernel->traits.w_type, trees, task->depth, (long long)bytes);
    CHECK(bytes > 0 && bytes <= 64 * 16384 * (int64_t)(task->depth + 1), "%s, %lldx%d", kernel->traits.name, trees,
          task->depth);
    CHECK(more == bytes, "%s: %lld bytes for a million tokens", kernel->traits.name, (long long)more);
    if (kernel->traits.x_type == CMM_F32 && task->depth <= 11)
        CHECK(bytes <= 1 << 20, "%s, %lldx%d: more than docs/results.md says", kernel->traits.name, trees,
              task->depth);
}

static void check_shape(int32_t dtype, int64_t trees, int32_t depth)
{
    const cmm_problem task = {.dtype = dtype, .depth = depth, .trees = trees, .nodes = ((int64_t)2 << depth) - 1,
                           .d_in = 768, .d_out = 768, .ld_in = 768, .ld_out = 768};
    for (int32_t file = 0; file < cmm_kernel_file_count; file++)
        for (const cmm_traits *const *kernel = cmm_kernel_files[file]; *kernel; kernel++)
            if (!(*kernel)->absent && (*kernel)->op == CMM_OP_FFF && strcmp((*kernel)->level, "native") == 0 && (*kernel)->x_type == dtype &&
                !((*kernel)->cpu & ~cmm_cpu_machine()->cpu)) /* scratch() itself is code for that instruction set */
                check_kernel((const cmm_kernel *)*kernel, &task);
}

int main(void)
{
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        check_shape(dtype, 1, 11);
        check_shape(dtype, 1, CMM_MAX_DEPTH);
        check_shape(dtype, 32, 6);
        check_shape(dtype, 128, 4);
        check_shape(dtype, 3072, 0);
    }
    return check_report();
}
