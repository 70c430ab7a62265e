/* The table of the CPU's kernels. */
#include "dispatch.h"

#define CMM_KERNEL(op, name) extern const cmm_traits *const cmm_##op##_##name[];
#include "kernel_table.inc" /* made by CMake from kernels.inc */
#undef CMM_KERNEL

const cmm_traits *const *const cmm_kernel_files[] = {
#define CMM_KERNEL(op, name) cmm_##op##_##name,
#include "kernel_table.inc"
#undef CMM_KERNEL
};

const int32_t cmm_kernel_file_count = (int32_t)(sizeof cmm_kernel_files / sizeof *cmm_kernel_files);
