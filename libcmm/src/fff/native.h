/* What the native kernels have in common outside their arithmetic. */
#ifndef CMM_NATIVE_H
#define CMM_NATIVE_H

#include "../cpu.h"
#include "../kernel.h"
#include "../plan.h"
#include "../scratch.h"
#include "../tree.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* Rows in the type of the tokens are loaded as those are, and need nothing more of the CPU. */
enum { LOAD_CPU_f32 = 0, LOAD_CPU_f64 = 0 };
static inline vec_f32 load_w_f32(const float *p) { return vec_load_f32(p); }
static inline vec_f32 load_w_masked_f32(const float *p, int64_t n) { return vec_load_masked_f32(p, n); }
static inline vec_f64 load_w_f64(const double *p) { return vec_load_f64(p); }
static inline vec_f64 load_w_masked_f64(const double *p, int64_t n) { return vec_load_masked_f64(p, n); }

#define INLINE static inline __attribute__((always_inline))

/* What vectors are better off at multiples of: their size, if it is more than arrays start at multiples of anyway. */
enum {
    VECTOR_BYTES_f32 = VL_f32 * sizeof(float) > 16 ? VL_f32 * sizeof(float) : 1,
    VECTOR_BYTES_f64 = VL_f64 * sizeof(double) > 16 ? VL_f64 * sizeof(double) : 1
};

/* From an address to the next multiple of `size`, a power of 2. */
INLINE int64_t bytes_to_multiple(const void *address, int64_t size) { return (int64_t)(-(uintptr_t)address % (uintptr_t)size); }

/* What one token takes from w_out: y (+)= sum over i of c[i] * row[i], the rows being of one type. And a function that
 * does it for up to MR tokens, which have their first `shared` rows in common: microkernel.inl has one for each type. */
enum { Y_STORE, Y_ADD, Y_STORE_NT }; /* y is stored, added to, or stored past the caches (which needs whole cache lines) */
#define WEIGHTED_SUMS_OF(X, SUFFIX) \
    typedef struct { \
        const void *const *row; \
        const X *c; \
        X *y; \
    } output_args_##SUFFIX; \
    typedef void sums_function_##SUFFIX(int tokens, const output_args_##SUFFIX *args, int64_t d, int store_mode, \
                                        int shared, int rows);
WEIGHTED_SUMS_OF(float, f32)
WEIGHTED_SUMS_OF(double, f64)
#undef WEIGHTED_SUMS_OF

/* The one for rows of w_out of a type, for a file that has them for every type (NATIVE_EXPORT defines it). */
#define NATIVE_SUMS \
    static sums_function_f32 *sums_for_f32(int32_t w_type); \
    static sums_function_f64 *sums_for_f64(int32_t w_type);

/* Prefetch a row into L2, for use in a while. These are inlined by force: to the compiler a function that does nothing but
 * prefetch does nothing, and a call of it is left out. */
INLINE void prefetch_later(const void *row, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += CMM_ALIGNMENT)
        __builtin_prefetch((const char *)row + i, 0, 2);
}

/* Prefetch a row into L1, for use at once. */
INLINE void prefetch_now(const void *row, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += CMM_ALIGNMENT)
        __builtin_prefetch((const char *)row + i);
}

/* Prefetch the beginning of a row; the CPU's own prefetcher goes on from there. */
INLINE void prefetch_head(const void *row, int64_t bytes)
{
    const int64_t head = bytes < 512 ? bytes : 512;
    for (int64_t i = 0; i < head; i += CMM_ALIGNMENT)
        __builtin_prefetch((const char *)row + i);
}

/* Prefetch as much of a row as the plan says, for use in a while. */
INLINE void prefetch_row(const void *row, int64_t bytes, cmm_prefetch how_much)
{
    if (how_much == CMM_PREFETCH_ROW)
        prefetch_later(row, bytes);
    else if (how_much == CMM_PREFETCH_HEAD)
        prefetch_head(row, bytes);
}

/* Bytes of so many elements of a row of w_out. */
static inline int64_t out_bytes(const cmm_problem *problem, int64_t elements)
{
    const int32_t type = problem->weight_out_dtype;
    return elements * (type == CMM_I8 ? 1 : type == CMM_F32 ? 4 : type == CMM_F64 ? 8 : 2);
}

/* The value that ends the body of a native kernel, and what its file exports: cmm_fff_<algorithm>_<ISA>. */
#define NATIVE_KERNEL(ALGORITHM, IS_PREFERRED) \
    static const cmm_kernel NAME(kernel) = { \
        .traits.op = CMM_OP_FFF, \
        .traits.name = #ALGORITHM "_" CMM_TEXT(ISA), \
        .traits.level = "native", \
        .traits.algorithm = #ALGORITHM, \
        .traits.isa = CMM_TEXT(ISA), \
        .traits.x_type = X_TYPE, \
        .traits.w_type = W_TYPE, \
        .traits.cpu = ISA_CPU | NAME(LOAD_CPU), \
        .traits.is_preferred = IS_PREFERRED, \
        .scratch = NAME(scratch), \
        .run = NAME(run), \
    };
#define NATIVE_EXPORT(ALGORITHM) \
    static sums_function_f32 *sums_for_f32(int32_t w_type) \
    { \
        switch (w_type) { \
            CMM_NARROW_TYPES(SUMS_CASE) \
        default: return weighted_sums_f32; \
        } \
    } \
    static sums_function_f64 *sums_for_f64(int32_t w_type) \
    { \
        (void)w_type; /* rows of double alone go with tokens of double */ \
        return weighted_sums_f64; \
    } \
    CMM_EXPORT(CMM_JOIN(cmm_fff_##ALGORITHM##_, ISA))
#define SUMS_CASE(name, x, w) \
    case CMM_DTYPE_##w: return weighted_sums_##name;

#endif
