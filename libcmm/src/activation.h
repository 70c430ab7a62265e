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
    float p = -0x1.15309p-3f;
    p = p * t - 0x1.386fdcp-3f;
    p = p * t + 0x1.1a75d6p-4f;
    p = p * t + 0x1.b6837ap-3f;
    p = p * t + 0x1.aee9eap-4f;
    p = p * t - 0x1.ff96bp-4f;
    p = p * t - 0x1.b94eccp-3f;
    p = p * t - 0x1.ec8dd4p-8f;
    p = p * t + 0x1.2ccdecp-2f;
    p = p * t + 0x1.d7d0ecp-4f;
    p = p * t - 0x1.535bb2p-1f;
    return p * t;
}

CMM_HD static inline float cmm_expm1_tail_f32(float r)
{
    float p = 0x1.6c6baep-10f;
    p = p * r + 0x1.121034p-7f;
    p = p * r + 0x1.5555bep-5f;
    p = p * r + 0x1.5554d8p-3f;
    p = p * r + 0x1p-1f;
    return p;
}

CMM_HD static inline double cmm_mills_f64(double t)
{
    double p = -0x1.721f608a28877p-8;
    p = p * t - 0x1.4cc1335f6ec43p-7;
    p = p * t + 0x1.e4c25317f619fp-9;
    p = p * t + 0x1.4aa11482c5357p-6;
    p = p * t + 0x1.ce176e71cb841p-8;
    p = p * t - 0x1.6c3db547d69a2p-6;
    p = p * t - 0x1.4cebf1f90b2ecp-6;
    p = p * t + 0x1.23420c2f2ae31p-6;
    p = p * t + 0x1.1236e46897751p-5;
    p = p * t - 0x1.51e5d02ef8061p-7;
    p = p * t - 0x1.8d4b27e949c6bp-5;
    p = p * t + 0x1.80b206a6339dap-9;
    p = p * t + 0x1.26d099e3dd634p-4;
    p = p * t - 0x1.001e51b3841adp-9;
    p = p * t - 0x1.e4a425745a124p-4;
    p = p * t + 0x1.17a4ae2f74c96p-5;
    p = p * t + 0x1.ab825fc113747p-3;
    p = p * t - 0x1.c81719d546176p-3;
    p = p * t - 0x1.ee2761047f9b7p-3;
    p = p * t + 0x1.eec4cc3e4d258p-1;
    p = p * t - 0x1.7dff2bff68398p+0;
    p = p * t + 0x1.8c6dbf2cfc2b4p+0;
    p = p * t - 0x1.373e3a893c28ap+0;
    return p * t;
}

CMM_HD static inline double cmm_expm1_tail_f64(double r)
{
    double p = 0x1.1f1ae50acd73ap-29;
    p = p * r + 0x1.af5275b3a019cp-26;
    p = p * r + 0x1.27e511b457df6p-22;
    p = p * r + 0x1.71ddfffe543edp-19;
    p = p * r + 0x1.a01a018f6af52p-16;
    p = p * r + 0x1.a01a01ac9aab4p-13;
    p = p * r + 0x1.6c16c16c1a4dp-10;
    p = p * r + 0x1.111111110ff93p-7;
    p = p * r + 0x1.555555555554ep-5;
    p = p * r + 0x1.5555555555557p-3;
    p = p * r + 0x1p-1;
    return p;
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
#define CMM_K_f32_MILLS_SHIFT 2.0f
#define CMM_K_f32_MILLS_LOST 0x1p+0f
#define CMM_K_f32_MILLS_MIDDLE 0x1.5845dcp-1f
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
#define CMM_K_f64_MILLS_SHIFT 4.0
#define CMM_K_f64_MILLS_LOST 0x1p-1
#define CMM_K_f64_MILLS_MIDDLE 0x1.82b4bb8c94dcep-1
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
