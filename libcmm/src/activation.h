/* The activations, and the one exp and erfc behind them. Plain C, C++ and CUDA include this file.
 *
 *     float cmm_act_gelu_f32(float x)         double cmm_act_gelu_f64(double x)        x * Phi(x), the exact GELU
 *     cmm_act_gelu_tanh_f32, _f64             0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
 *     cmm_act_relu_f32, _f64                  max(x, 0)
 *     cmm_act_silu_f32, _f64                  x / (1 + exp(-x))
 *     cmm_act_identity_f32, _f64              x
 *     cmm_slope_gelu_f32, _f64, ...           the derivative of each
 *
 * There is no branch and no call of libm: a compiler vectorises a loop over any of them. There is no fma either: only
 * +, -, *, /, selects and operations on bits, so that every instruction set gives the same bits (NaNs apart, whose
 * sign and payload are the hardware's own). Compile with contraction off (-ffp-contract=off, nvcc -fmad=false) and
 * without fast-math, and run with subnormal numbers on. docs/internals/activation.md derives it all.
 *
 * NaN gives NaN, +inf gives +inf. -inf gives what the formula gives: NaN, but 0 for ReLU and -inf for the identity.
 * Large negative x underflow gradually to 0. */
#ifndef CMM_ACTIVATION_H
#define CMM_ACTIVATION_H

#if !defined(__CUDACC_RTC__)
#include <string.h>
#endif

#include "host_device.h"

/* The polynomials. mills: with a = shift (1/2 + t) / (1/2 - t), MILLS_MIDDLE + mills(t) is (a + shift) exp(a^2/2)
 * erfc(a / sqrt(2)) / 2, for a from 0 to where gelu underflows. expm1_tail: (exp(r) - 1 - r) / r^2, for r from -0.29
 * to 0.41. The terms that matter little are summed in pairs, so that they wait less for each other. */
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
    return (0x1p-1f + 0x1.555558p-3f * r) +
           ((0x1.555522p-5f + 0x1.1108acp-7f * r) + (0x1.6ce61ep-10f + 0x1.b439ep-13f * r) * r2) * r2;
}

CMM_HD static inline double cmm_mills_f64(double t)
{
    double t2 = t * t, t4 = t2 * t2;
    double p = (-0x1.50506bdecdf14p-5 - 0x1.d79c0cc99e8fdp-7 * t) +
               (0x1.52dfe614959afp-6 + 0x1.e22979b7d5d37p-7 * t) * t2;
    p = p * t4 + ((-0x1.24c1f070e9f8p-6 + 0x1.200f10c4daa46p-5 * t) +
                  (0x1.41268de6ef0ep-5 - 0x1.21abbf849772cp-7 * t) * t2);
    p = p * t4 + ((0x1.4f1357f9dd975p-5 + 0x1.a79005f82160bp-5 * t) +
                  (-0x1.6ebfb6c278a8ap-7 - 0x1.985cba165b613p-5 * t) * t2);
    p = p * t4 + ((0x1.db769b7c83f35p-4 + 0x1.74421d54f6211p-5 * t) +
                  (-0x1.28a8d9d69d269p-4 - 0x1.800092ce20435p-5 * t) * t2);
    p = p * t4 + ((0x1.f034e0bbf7efep-3 + 0x1.c3ce46550a02dp-3 * t) +
                  (-0x1.86885b5abef32p-3 - 0x1.23ab82275c64cp-4 * t) * t2);
    p = p * t - 0x1.c9342ce9d60adp-1;
    p = p * t + 0x1.3df237db8c57cp+0;
    p = p * t - 0x1.2000624f83b99p+0;
    return p * t;
}

CMM_HD static inline double cmm_expm1_tail_f64(double r)
{
    double r2 = r * r, r4 = r2 * r2;
    double p = (0x1.27de810be58fdp-22 + 0x1.aec8a06f48777p-26 * r) + 0x1.2df17d158105cp-29 * r2;
    p = p * r4 + ((0x1.6c16c16bd71bcp-10 + 0x1.a01a019e87bd1p-13 * r) +
                  (0x1.a01a039ddec21p-16 + 0x1.71de3644faa4ap-19 * r) * r2);
    return p * r4 + ((0x1p-1 + 0x1.5555555555555p-3 * r) +
                     (0x1.55555555555a7p-5 + 0x1.11111111114b3p-7 * r) * r2);
}

/* The constants of formulas.inl. ROUND: adding it rounds to an integer. LN2, TANH_C0, TANH_C1: ln 2, 2 sqrt(2/pi) and
 * 0.044715 times that, each as a number with few bits and the rest. MILLS_LOST: 2 / MILLS_SHIFT, roughly. */
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

#define CMM_K_f64_SIGN 0x8000000000000000ull
#define CMM_K_f64_UPPER 0xfffffffff8000000ull
#define CMM_K_f64_BIAS 1023ull
#define CMM_K_f64_SHIFT 52
#define CMM_K_f64_ROUND 0x1.8p52
#define CMM_K_f64_LOG2E 0x1.71547652b82fep0
#define CMM_K_f64_LN2_UPPER 0x1.62e42fefa38p-1
#define CMM_K_f64_LN2_LOWER 0x1.ef35793c7673p-45
#define CMM_K_f64_MILLS_SHIFT 3.46875
#define CMM_K_f64_MILLS_LOST 0.5766
#define CMM_K_f64_MILLS_MIDDLE 0x1.7cba514d63fc6p-1
#define CMM_K_f64_TANH_C0_UPPER 0x1.98846p+0
#define CMM_K_f64_TANH_C0_LOWER -0x1.9857935ee5e07p-21
#define CMM_K_f64_TANH_C1_UPPER 0x1.2444f28p-4
#define CMM_K_f64_TANH_C1_LOWER 0x1.26c5a57a4def1p-31

#define CMM_R float
#define CMM_U unsigned int
#define CMM_F(name) name##_f32
#define CMM_K(name) CMM_K_f32_##name
#define CMM_EITHER(f32, f64) f32
#include "activation/formulas.inl"
#undef CMM_R
#undef CMM_U
#undef CMM_F
#undef CMM_K
#undef CMM_EITHER
#define CMM_R double
#define CMM_U unsigned long long
#define CMM_F(name) name##_f64
#define CMM_K(name) CMM_K_f64_##name
#define CMM_EITHER(f32, f64) f64
#include "activation/formulas.inl"
#undef CMM_R
#undef CMM_U
#undef CMM_F
#undef CMM_K
#undef CMM_EITHER

#endif
