/* Memory that the native kernels take beyond weights, input and output: at most 64 bytes per token and level of one
 * tree, and no more for a million tokens than for some thousands. */
#include "check.h"
#include "cpu.h"

#define CMM_KERNEL(op, name, architecture, flags) extern const cmm_kernel cmm_##op##_##name;
#include "kernels.inc"
#undef CMM_KERNEL

#include <string.h>

static const cmm_kernel *const kernels[] = {
#define CMM_KERNEL(op, name, architecture, flags) &cmm_##op##_##name,
#include "kernels.inc"
#undef CMM_KERNEL
};

static void check_shape(int32_t dtype, int64_t trees, int32_t depth)
{
    const cmm_task task = {.dtype = dtype, .depth = depth, .trees = trees, .nodes = ((int64_t)2 << depth) - 1,
                           .d_in = 768, .d_out = 768, .ld_in = 768, .ld_out = 768,
                           .machine = cmm_cpu_machine()};
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        const cmm_kernel *const kernel = kernels[i];
        if (kernel->absent || strcmp(kernel->level, "native") != 0)
            continue;
        const int64_t bytes = kernel->scratch(&task, 16384), more = kernel->scratch(&task, 1000000);
        printf("%s, f%d, %lldx%d: %lld bytes\n", kernel->name, dtype ? 64 : 32, (long long)trees, depth,
               (long long)bytes);
        CHECK(bytes > 0 && bytes <= 64 * 16384 * (int64_t)(depth + 1), "%s, %lldx%d", kernel->name, (long long)trees,
              depth);
        CHECK(more == bytes, "%s: %lld bytes for a million tokens", kernel->name, (long long)more);
        if (dtype == CMM_F32 && depth <= 11)
            CHECK(bytes <= 1 << 20, "%s, %lldx%d: more than docs/performance.md says", kernel->name, (long long)trees,
                  depth);
    }
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
