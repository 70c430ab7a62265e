/* The activations, and the one exp and erfc behind them. Plain C, C++ and CUDA include this file.
 *
 *     float cmm_act_gelu_f32(float x)         double cmm_act_gelu_f64(double x)        x * Phi(x), the exact GELU
 *     cmm_act_gelu_tanh_f32, _f64             0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
 *     cmm_act_relu_f32, _f64                  max(x, 0)
 *     cmm_act_silu_f32, _f64                  x / (1 + exp(-x))
 *     cmm_act_identity_f32, _f64              x
 *
 * There is no branch and no call of libm: a compiler vectorises a loop over any of them. There is no fma either: only
 * +, -, *, /, selects and operations on bits, so that every instruction set gives the same bits (NaNs apart, whose
 * sign and payload are the hardware's own). Compile with contraction off (-ffp-contract=off, nvcc -fmad=false), without
 * fast-math, and with subnormal numbers on.
 *
 * NaN gives NaN, +inf gives +inf. -inf gives what the formula gives: NaN, but 0 for ReLU and -inf for the identity.
 * Large negative x underflow gradually to 0. */
#ifndef CMM_ACTIVATION_H
#define CMM_ACTIVATION_H

#if !defined(__CUDACC_RTC__)
#include <string.h>
#endif

#if defined(__CUDACC__)
#define CMM_HD __host__ __device__
#else
#define CMM_HD
#endif

/* The largest errors, in ulp of the exact result. float: of all 2^32 inputs; double: of random and structured ones
 * (tests/c/activation_accuracy.c). ReLU and the identity are exact. */
#define CMM_GELU_ULP_F32 2.5
#define CMM_GELU_TANH_ULP_F32 2.5
#define CMM_SILU_ULP_F32 2.5
#define CMM_GELU_ULP_F64 4.0
#define CMM_GELU_TANH_ULP_F64 4.0
#define CMM_SILU_ULP_F64 4.0

CMM_HD static inline float cmm_mills_f32(float t)
{
    float t2 = t * t, t4 = t2 * t2;
    float p = (0x1.73291ap-4f - 0x1.07549ep-2f * t) + (-0x1.0e8fe8p-4f + 0x1.3e6afp-3f * t) * t2;
    p = p + ((0x1.af5aaap-4f - 0x1.04d24cp-4f * t) + (-0x1.b9d146p-4f - 0x1.37c194p-5f * t) * t2) * t4;
    p = p * t + 0x1.046f82p-1f;
    p = p * t - 0x1.b7dd36p-1f;
    return p * t;
}

CMM_HD static inline float cmm_expm1_tail_f32(float r)
{
    float r2 = r * r;
    return (0x1p-1f + 0x1.555554p-3f * r) + ((0x1.5554fep-5f + 0x1.11133ep-7f * r) + (0x1.6d3456p-10f + 0x1.9d91d2p-13f * r) * r2) * r2;
}

CMM_HD static inline double cmm_mills_f64(double t)
{
    double t2 = t * t, t4 = t2 * t2;
    double p = (-0x1.3a31b90e2a8dcp-5 - 0x1.114fd7390dd4cp-7 * t) + (0x1.560be7dd1d68cp-6 + 0x1.a3962025c461ep-7 * t) * t2;
    p = p * t4 + ((-0x1.34209fc849418p-7 + 0x1.3bf88038cb405p-5 * t) + (0x1.0adb72f6da4b7p-5 - 0x1.014beb3aeeba7p-6 * t) * t2);
    p = p * t4 + ((0x1.821908cdf774ep-5 + 0x1.7b4aaafe1f152p-5 * t) + (-0x1.38b3f8b6249e8p-6 - 0x1.8d0a72ae03871p-5 * t) * t2);
    p = p * t4 + ((0x1.f3cfaac022468p-4 + 0x1.1928624d0ec08p-5 * t) + (-0x1.3d0669d4abf02p-4 - 0x1.3b39acb26d7d3p-5 * t) * t2);
    p = p * t4 + ((0x1.1d35bdee16649p-2 + 0x1.a86cec766ed72p-3 * t) + (-0x1.a200796a30166p-3 - 0x1.d2a141120439bp-5 * t) * t2);
    p = p * t - 0x1.db5837f7f5562p-1;
    p = p * t + 0x1.42fec3680acacp+0;
    p = p * t - 0x1.2191517fa27b8p+0;
    return p * t;
}

CMM_HD static inline double cmm_expm1_tail_f64(double r)
{
    double r2 = r * r, r4 = r2 * r2;
    double p = (0x1.27e50e99468d4p-22 + 0x1.af521256d7a82p-26 * r) + 0x1.1f1e14d45e83ap-29 * r2;
    p = p * r4 + ((0x1.6c16c16c19af2p-10 + 0x1.a01a01ac8300ap-13 * r) + (0x1.a01a019187886p-16 + 0x1.71de0038d9182p-19 * r) * r2);
    return p * r4 + ((0x1p-1 + 0x1.5555555555557p-3 * r) + (0x1.555555555555p-5 + 0x1.111111110ffcfp-7 * r) * r2);
}

/* Constants of formulas.inl. END: from there on the result for negative x is 0. */
#define CMM_K_f32_SIGN 0x80000000u
#define CMM_K_f32_UPPER 0xfffff000u
#define CMM_K_f32_BIAS 127u
#define CMM_K_f32_SHIFT 23
#define CMM_K_f32_ROUND 0x1.8p23f
#define CMM_K_f32_LOG2E 0x1.715476p0f
#define CMM_K_f32_LN2_UPPER 0x1.62e4p-1f
#define CMM_K_f32_LN2_LOWER 0x1.7f7d1cp-20f
#define CMM_K_f32_MILLS_SHIFT 2.4765625f
#define CMM_K_f32_MILLS_LOST 0.8076f
#define CMM_K_f32_MILLS_MIDDLE 0x1.692586p-1f
#define CMM_K_f32_TANH_C0_UPPER 0x1.98p+0f
#define CMM_K_f32_TANH_C0_LOWER 0x1.08a67ap-9f
#define CMM_K_f32_TANH_C1_UPPER 0x1.244p-4f
#define CMM_K_f32_TANH_C1_LOWER 0x1.3ca936p-18f
#define CMM_K_f32_GELU_END 14.5f
#define CMM_K_f32_GELU_TANH_END 11.0f
#define CMM_K_f32_SILU_END 110.0f

#define CMM_K_f64_SIGN 0x8000000000000000ull
#define CMM_K_f64_UPPER 0xfffffffff8000000ull
#define CMM_K_f64_BIAS 1023ull
#define CMM_K_f64_SHIFT 52
#define CMM_K_f64_ROUND 0x1.8p52
#define CMM_K_f64_LOG2E 0x1.71547652b82fep0
#define CMM_K_f64_LN2_UPPER 0x1.62e42fefa38p-1
#define CMM_K_f64_LN2_LOWER 0x1.ef35793c7673p-45
#define CMM_K_f64_MILLS_SHIFT 3.5
#define CMM_K_f64_MILLS_LOST 0.5714
#define CMM_K_f64_MILLS_MIDDLE 0x1.7d241a953a614p-1
#define CMM_K_f64_TANH_C0_UPPER 0x1.98846p+0
#define CMM_K_f64_TANH_C0_LOWER -0x1.9857935ee5e07p-21
#define CMM_K_f64_TANH_C1_UPPER 0x1.2444f28p-4
#define CMM_K_f64_TANH_C1_LOWER 0x1.26c5a57a4def1p-31
#define CMM_K_f64_GELU_END 38.75
#define CMM_K_f64_GELU_TANH_END 22.0
#define CMM_K_f64_SILU_END 755.0

#define CMM_R float
#define CMM_U unsigned int
#define CMM_F(name) name##_f32
#define CMM_K(name) CMM_K_f32_##name
#include "act/formulas.inl"
#undef CMM_R
#undef CMM_U
#undef CMM_F
#undef CMM_K
#define CMM_R double
#define CMM_U unsigned long long
#define CMM_F(name) name##_f64
#define CMM_K(name) CMM_K_f64_##name
#include "act/formulas.inl"
#undef CMM_R
#undef CMM_U
#undef CMM_F
#undef CMM_K

#endif
