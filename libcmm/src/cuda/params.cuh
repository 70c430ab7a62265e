/* What a CUDA kernel is, what it sees of a call, and the element types.
 *
 * The entry point (api.cu) has checked everything. A kernel's run() only queues work on the stream and reports
 * whether the launch was accepted. Compiled with -fmad=false: a fused multiply-add is written out, as fma_(). */
#ifndef CMM_CUDA_PARAMS_CUH
#define CMM_CUDA_PARAMS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../activation.h"
#include "../activations.inc"
#include "../validate.h"
#include "../tree.h"
#include "cmm_cuda.h"

/* A checked call with every default filled in (see ../kernel.h), and what only
 * these kernels look at. A dense layer at level cuda-naive has nodes = neurons, trees = 1. */
struct cmm_cuda_problem : cmm_problem {
    int aligned; /* rows of w_in, w_out, x and y all start at multiples of 16 bytes and end there */
    int sm_count; /* streaming multiprocessors */
    int shared_memory; /* bytes that a block may have */
    int overlaps; /* see launch_overlapping() in warp_row.cuh */
    const int64_t *refused; /* NULL, or -1 there, or which path of those that are given is none */
    int multiplies; /* the GPU knows the instructions of wgmma.cuh, and they were built */
};

/* The problems that can_implement() and is_preferred() see are such tasks. */
static inline const cmm_cuda_problem *cuda_problem(const cmm_problem *problem)
{
    return static_cast<const cmm_cuda_problem *>(problem);
}

struct cmm_cuda_kernel {
    cmm_traits traits;
    /* Bytes of workspace; NULL: none. */
    int64_t (*workspace)(const cmm_cuda_problem *problem);
    cudaError_t (*run)(const cmm_cuda_problem *problem, cudaStream_t stream, void *workspace);

    /* Of CMM_OP_BACKWARD, instead of those. The first returns -1 where there are more tokens than it can take. */
    int64_t (*back_workspace)(const cmm_backward *b) = nullptr;
    cudaError_t (*back)(const cmm_backward *b, cudaStream_t stream, void *workspace) = nullptr;
};

/* The traits of a CUDA kernel: each is for every type. */
static constexpr cmm_traits cuda_traits(cmm_op op, const char *name, const char *level, const char *algorithm,
                                        int (*can_implement)(const cmm_problem *),
                                        int (*is_preferred)(const cmm_problem *))
{
    return {op,      name,           level,          algorithm, "cuda",        0,
            nullptr, CMM_EVERY_TYPE, CMM_EVERY_TYPE, 0,         can_implement, is_preferred};
}

/* ---- element types: T is stored, A is what sums, bias and activation are computed in -------------------------------- */

template <typename T> struct accumulator {
    using type = float;
};
template <> struct accumulator<double> {
    using type = double;
};

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }

template <typename T, typename A> __device__ inline T narrow(A v);
template <> __device__ inline float narrow<float>(float v) { return v; }
template <> __device__ inline double narrow<double>(double v) { return v; }
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ inline __half narrow<__half>(float v) { return __float2half_rn(v); }

__device__ inline float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fma_(double a, double b, double c) { return __fma_rn(a, b, c); }

__device__ inline float activate(int32_t activation, float z)
{
    switch (activation) {
#define CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: return cmm_act_##name##_f32(z);
        CMM_ACTIVATIONS(CASE)
#undef CASE
    default: return z; /* there is none more */
    }
}

__device__ inline double activate(int32_t activation, double z)
{
    switch (activation) {
#define CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: return cmm_act_##name##_f64(z);
        CMM_ACTIVATIONS(CASE)
#undef CASE
    default: return z; /* there is none more */
    }
}

/* The derivative of an activation. */
__device__ inline float differentiate(int32_t activation, float z)
{
    switch (activation) {
#define CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: return cmm_slope_##name##_f32(z);
        CMM_ACTIVATIONS(CASE)
#undef CASE
    default: return z; /* there is none more */
    }
}

__device__ inline double differentiate(int32_t activation, double z)
{
    switch (activation) {
#define CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: return cmm_slope_##name##_f64(z);
        CMM_ACTIVATIONS(CASE)
#undef CASE
    default: return z; /* there is none more */
    }
}

/* Whether a path that was given is none. A kernel returns then, before it writes anything; see check_path() in api.cu. Those
 * whose launches overlap have pdl_wait_is_refused(). */
__device__ inline bool is_refused(const cmm_cuda_problem &problem)
{
    return problem.refused && *problem.refused >= 0;
}

/* The sum over the warp, the same bits in every lane: addition commutes, and each lane adds the same pairs. */
template <typename A> __device__ inline A warp_sum(A v)
{
    for (int distance = 16; distance > 0; distance /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

/* Call function<T>(arguments...) for the type of a dtype. */
#define CMM_CUDA_FOR_DTYPE(dtype, function, ...)                                                                       \
    ((dtype) == CMM_F32    ? function<float>(__VA_ARGS__)                                                              \
     : (dtype) == CMM_F64  ? function<double>(__VA_ARGS__)                                                             \
     : (dtype) == CMM_BF16 ? function<__nv_bfloat16>(__VA_ARGS__)                                                      \
                           : function<__half>(__VA_ARGS__))

/* Whether the code for compute capability 9.0 is there, which alone knows launches that overlap. The intermediate code
 * for 8.0, which a newer GPU's driver compiles, does not. */
static inline int has_code_for_90(void)
{
    constexpr int there[] = {__CUDA_ARCH_LIST__};
    for (const int architecture : there)
        if (architecture == 900)
            return 1;
    return 0;
}

/* Blocks for so many pieces of work; kernels loop where there are more pieces than a grid may have blocks. */
static inline unsigned blocks_for(int64_t pieces)
{
    const int64_t most = 1 << 22;
    return (unsigned)(pieces < most ? pieces : most);
}

#endif
