/* 128-bit vectors of 64-bit ARM. What each operation means is said in simd/README.md. */
#include <stdint.h>

#include <arm_neon.h>

#include "../types.h"

#define ISA neon
#define ISA_CPU CMM_CPU_NEON

typedef float32x4_t vec_f32;
typedef float64x2_t vec_f64;

static inline void vec_fence(void) {}

enum { VL_f32 = 4, VL_f64 = 2 };
#define REGISTERS 32
#define MR 4
#define COLUMNS 6
#define COLUMNS_ALONE 12

static inline vec_f32 vec_zero_f32(void) { return vdupq_n_f32(0); }
static inline vec_f32 vec_broadcast_f32(float a) { return vdupq_n_f32(a); }
static inline vec_f32 vec_load_f32(const float *p) { return vld1q_f32(p); }
static inline void vec_store_f32(float *p, vec_f32 a) { vst1q_f32(p, a); }
static inline void vec_store_nt_f32(float *p, vec_f32 a) { vec_store_f32(p, a); }
static inline vec_f32 vec_pin_f32(vec_f32 a)
{
    __asm__("" : "+w"(a));
    return a;
}
static inline vec_f32 vec_add_f32(vec_f32 a, vec_f32 b) { return vaddq_f32(a, b); }
static inline vec_f32 vec_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return vfmaq_f32(c, a, b); }

static inline vec_f32 vec_load_masked_f32(const float *p, int64_t n)
{
    float part[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return vld1q_f32(part);
}
static inline void vec_store_masked_f32(float *p, vec_f32 a, int64_t n)
{
    float part[4];
    vst1q_f32(part, a);
    for (int64_t i = 0; i < n && i < 4; i++)
        p[i] = part[i];
}

static inline vec_f32 vec_fma_masked_f32(vec_f32 a, vec_f32 b, vec_f32 c, int64_t n)
{
    float part[4];
    vst1q_f32(part, c);
    vec_store_masked_f32(part, vec_fma_f32(a, b, c), n);
    return vld1q_f32(part);
}
static inline vec_f32 vec_rotate_f32(vec_f32 a, int64_t n)
{
    float twice[8];
    vst1q_f32(twice, a);
    vst1q_f32(twice + 4, a);
    return vld1q_f32(twice + n);
}
static inline vec_f32 vec_join_f32(vec_f32 a, vec_f32 b, int64_t n)
{
    float both[8];
    vst1q_f32(both, a);
    vst1q_f32(both + 4, b);
    return vld1q_f32(both + n);
}

static inline float vec_reduce_add_f32(vec_f32 a)
{
    const float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}

static inline vec_f64 vec_zero_f64(void) { return vdupq_n_f64(0); }
static inline vec_f64 vec_broadcast_f64(double a) { return vdupq_n_f64(a); }
static inline vec_f64 vec_load_f64(const double *p) { return vld1q_f64(p); }
static inline void vec_store_f64(double *p, vec_f64 a) { vst1q_f64(p, a); }
static inline void vec_store_nt_f64(double *p, vec_f64 a) { vec_store_f64(p, a); }
static inline vec_f64 vec_pin_f64(vec_f64 a)
{
    __asm__("" : "+w"(a));
    return a;
}
static inline vec_f64 vec_add_f64(vec_f64 a, vec_f64 b) { return vaddq_f64(a, b); }
static inline vec_f64 vec_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return vfmaq_f64(c, a, b); }

static inline vec_f64 vec_load_masked_f64(const double *p, int64_t n)
{
    double part[2] = {0};
    for (int64_t i = 0; i < n && i < 2; i++)
        part[i] = p[i];
    return vld1q_f64(part);
}
static inline void vec_store_masked_f64(double *p, vec_f64 a, int64_t n)
{
    if (n >= 2)
        vst1q_f64(p, a);
    else if (n == 1)
        *p = vgetq_lane_f64(a, 0);
}

static inline vec_f64 vec_fma_masked_f64(vec_f64 a, vec_f64 b, vec_f64 c, int64_t n)
{
    double part[2];
    vst1q_f64(part, c);
    vec_store_masked_f64(part, vec_fma_f64(a, b, c), n);
    return vld1q_f64(part);
}
static inline vec_f64 vec_rotate_f64(vec_f64 a, int64_t n) { return n ? vextq_f64(a, a, 1) : a; }
static inline vec_f64 vec_join_f64(vec_f64 a, vec_f64 b, int64_t n) { return n ? vextq_f64(a, b, 1) : a; }

static inline double vec_reduce_add_f64(vec_f64 a) { return vgetq_lane_f64(a, 0) + vgetq_lane_f64(a, 1); }

/* The first n of 4 numbers of 16 bits, and zeros. */
static inline uint16x4_t load_16_masked(const uint16_t *p, int64_t n)
{
    uint16_t part[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return vld1_u16(part);
}

enum { LOAD_CPU_f32_bf16 = 0 };
static inline vec_f32 widen_bf16(uint16x4_t w) { return vreinterpretq_f32_u32(vshll_n_u16(w, 16)); }
static inline vec_f32 load_w_f32_bf16(const bf16 *p) { return widen_bf16(vld1_u16(&p->bits)); }
static inline vec_f32 load_w_masked_f32_bf16(const bf16 *p, int64_t n) { return widen_bf16(load_16_masked(&p->bits,
                                                                                                          n)); }

enum { LOAD_CPU_f32_f16 = 0 };
static inline vec_f32 widen_f16(uint16x4_t w) { return vcvt_f32_f16(vreinterpret_f16_u16(w)); }
static inline vec_f32 load_w_f32_f16(const f16 *p) { return widen_f16(vld1_u16(&p->bits)); }
static inline vec_f32 load_w_masked_f32_f16(const f16 *p, int64_t n) { return widen_f16(load_16_masked(&p->bits, n)); }

/* The first n of 4 bytes, and zeros. */
static inline int8x8_t load_8_masked(const int8_t *p, int64_t n)
{
    int8_t part[8] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return vld1_s8(part);
}

enum { LOAD_CPU_f32_i8 = 0 };
static inline vec_f32 widen_i8(int8x8_t w) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(w)))); }
static inline vec_f32 load_w_f32_i8(const i8 *p) { return widen_i8(load_8_masked(p, 4)); }
static inline vec_f32 load_w_masked_f32_i8(const i8 *p, int64_t n) { return widen_i8(load_8_masked(p, n)); }
