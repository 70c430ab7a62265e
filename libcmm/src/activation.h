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
    float p = (0x1.893798p-3f - 0x1.99c98cp-3f * t) + (-0x1.3c47b8p-3f + 0x1.6ecac8p-4f * t) * t2;
    p = p + ((0x1.51b596p-3f + 0x1.44e6f4p-6f * t) + (-0x1.e7b3dap-4f - 0x1.4edc64p-4f * t) * t2) * t4;
    p = p * t + 0x1.7d8632p-2f;
    p = p * t - 0x1.987606p-1f;
    return p * t;
}

CMM_HD static inline float cmm_expm1_tail_f32(float r)
{
    float r2 = r * r;
    return (0x1p-1f + 0x1.555558p-3f * r) + ((0x1.555522p-5f + 0x1.1108acp-7f * r) + (0x1.6ce61ep-10f + 0x1.b439ep-13f * r) * r2) * r2;
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
    double p = (0x1.27de810be58fdp-22 + 0x1.aec8a06f48777p-26 * r) + 0x1.2df17d158105cp-29 * r2;
    p = p * r4 + ((0x1.6c16c16bd71bcp-10 + 0x1.a01a019e87bd1p-13 * r) + (0x1.a01a039ddec21p-16 + 0x1.71de3644faa4ap-19 * r) * r2);
    return p * r4 + ((0x1p-1 + 0x1.5555555555555p-3 * r) + (0x1.55555555555a7p-5 + 0x1.11111111114b3p-7 * r) * r2);
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
#define CMM_K_f32_MILLS_SHIFT 2.3125f
#define CMM_K_f32_MILLS_LOST 0.8649f
#define CMM_K_f32_MILLS_MIDDLE 0x1.641fd4p-1f
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
