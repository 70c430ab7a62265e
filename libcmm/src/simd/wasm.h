/* 128-bit vectors of WebAssembly. What each operation means is said in simd/README.md.
 *
 * Plain simd128 cannot fuse a multiplication and an addition. For floats it is done here in vectors of double as
 * fma.h does it one by one, exact product, sum rounded to odd; for doubles by fma.h, in integers. Relaxed SIMD
 * (-msimd128 -mrelaxed-simd for the whole build but the activations and pack.c: cmake/kernels.cmake) has an instruction
 * that may fuse or may not, as the engine finds best on its CPU, but always in the same way. cpu.c tries it: where it does
 * not fuse, these kernels do not run. */
#include <stdint.h>
#include <string.h>

#include <wasm_simd128.h>

#include "../types.h"
#include "fma.h"

#define ISA wasm
#if defined(__wasm_relaxed_simd__)
#define ISA_CPU CMM_CPU_WASM_FMA
#else
#define ISA_CPU 0
#endif

typedef v128_t vec_f32;
typedef struct {
    v128_t v;
} vec_f64;

static inline void vec_fence(void) {}

enum { VL_f32 = 4, VL_f64 = 2 };
#define REGISTERS 16 /* that engines have on x86-64 */
#define MR 3
#define COLUMNS 3
#define COLUMNS_ALONE 8

static inline vec_f32 vec_zero_f32(void) { return wasm_f32x4_const_splat(0); }
static inline vec_f32 vec_broadcast_f32(float a) { return wasm_f32x4_splat(a); }
static inline vec_f32 vec_load_f32(const float *p) { return wasm_v128_load(p); }
static inline void vec_store_f32(float *p, vec_f32 a) { wasm_v128_store(p, a); }
static inline void vec_store_nt_f32(float *p, vec_f32 a) { vec_store_f32(p, a); }
static inline vec_f32 vec_pin_f32(vec_f32 a) { return a; }
static inline vec_f32 vec_add_f32(vec_f32 a, vec_f32 b) { return wasm_f32x4_add(a, b); }

#if defined(__wasm_relaxed_simd__)
static inline vec_f32 vec_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return wasm_f32x4_relaxed_madd(a, b, c); }
#else
/* a b + c of two floats each, given and returned as doubles, rounded to odd: to float it then rounds as the whole would. */
static inline v128_t fma_to_odd(v128_t a, v128_t b, v128_t c)
{
    const v128_t product = wasm_f64x2_mul(a, b), sum = wasm_f64x2_add(product, c);
    const v128_t of_addend = wasm_f64x2_sub(sum, product); /* Knuth's two-sum: what the addition lost */
    const v128_t lost = wasm_f64x2_add(wasm_f64x2_sub(product, wasm_f64x2_sub(sum, of_addend)), wasm_f64x2_sub(c, of_addend));
    /* Inexact, and the last bit is even: a step of 1 or -1 to the odd neighbour on the side of the exact sum. A lost part
     * that is NaN (from infinities) is not greater than 0, and changes nothing. */
    const v128_t one = wasm_i64x2_const_splat(1);
    const v128_t inexact = wasm_f64x2_gt(wasm_f64x2_abs(lost), wasm_f64x2_const_splat(0));
    const v128_t even = wasm_i64x2_sub(wasm_v128_and(sum, one), one);
    const v128_t step = wasm_v128_or(wasm_i64x2_shr(wasm_v128_xor(lost, sum), 63), one);
    return wasm_i64x2_add(sum, wasm_v128_and(step, wasm_v128_and(inexact, even)));
}

/* The upper two floats of four as doubles. */
static inline v128_t upper_as_f64(v128_t a)
{
    return wasm_f64x2_promote_low_f32x4(wasm_i32x4_shuffle(a, a, 2, 3, 2, 3));
}

static inline vec_f32 vec_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c)
{
    const v128_t low = fma_to_odd(wasm_f64x2_promote_low_f32x4(a), wasm_f64x2_promote_low_f32x4(b),
                                  wasm_f64x2_promote_low_f32x4(c));
    const v128_t high = fma_to_odd(upper_as_f64(a), upper_as_f64(b), upper_as_f64(c));
    return wasm_i32x4_shuffle(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 1, 4, 5);
}
#endif

static inline vec_f32 vec_load_masked_f32(const float *p, int64_t n)
{
    float part[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return wasm_v128_load(part);
}
static inline void vec_store_masked_f32(float *p, vec_f32 a, int64_t n)
{
    float part[4];
    wasm_v128_store(part, a);
    for (int64_t i = 0; i < n && i < 4; i++)
        p[i] = part[i];
}

static inline vec_f32 vec_fma_masked_f32(vec_f32 a, vec_f32 b, vec_f32 c, int64_t n)
{
    const v128_t lanes = wasm_i32x4_const(0, 1, 2, 3);
    const v128_t first = wasm_i32x4_lt(lanes, wasm_i32x4_splat(n < 0 ? 0 : n < 4 ? (int32_t)n : 4));
    return wasm_v128_bitselect(vec_fma_f32(a, b, c), c, first);
}
static inline vec_f32 vec_rotate_f32(vec_f32 a, int64_t n)
{
    float twice[8];
    wasm_v128_store(twice, a);
    wasm_v128_store(twice + 4, a);
    return wasm_v128_load(twice + n);
}
static inline vec_f32 vec_join_f32(vec_f32 a, vec_f32 b, int64_t n)
{
    float both[8];
    wasm_v128_store(both, a);
    wasm_v128_store(both + 4, b);
    return wasm_v128_load(both + n);
}

static inline float vec_reduce_add_f32(vec_f32 a)
{
    const v128_t b = wasm_f32x4_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 2, 3));
    return wasm_f32x4_extract_lane(b, 0) + wasm_f32x4_extract_lane(b, 1);
}

static inline vec_f64 vec_zero_f64(void) { return (vec_f64){wasm_f64x2_const_splat(0)}; }
static inline vec_f64 vec_broadcast_f64(double a) { return (vec_f64){wasm_f64x2_splat(a)}; }
static inline vec_f64 vec_load_f64(const double *p) { return (vec_f64){wasm_v128_load(p)}; }
static inline void vec_store_f64(double *p, vec_f64 a) { wasm_v128_store(p, a.v); }
static inline void vec_store_nt_f64(double *p, vec_f64 a) { vec_store_f64(p, a); }
static inline vec_f64 vec_pin_f64(vec_f64 a) { return a; }
static inline vec_f64 vec_add_f64(vec_f64 a, vec_f64 b) { return (vec_f64){wasm_f64x2_add(a.v, b.v)}; }
#if defined(__wasm_relaxed_simd__)
static inline vec_f64 vec_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return (vec_f64){wasm_f64x2_relaxed_madd(a.v, b.v, c.v)}; }
#else
static inline vec_f64 vec_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c)
{
    double x[2], y[2], z[2];
    vec_store_f64(x, a);
    vec_store_f64(y, b);
    vec_store_f64(z, c);
    return (vec_f64){wasm_f64x2_make(fma_one_f64(x[0], y[0], z[0]), fma_one_f64(x[1], y[1], z[1]))};
}
#endif

static inline vec_f64 vec_load_masked_f64(const double *p, int64_t n)
{
    return (vec_f64){wasm_f64x2_make(n > 0 ? p[0] : 0, n > 1 ? p[1] : 0)};
}
static inline void vec_store_masked_f64(double *p, vec_f64 a, int64_t n)
{
    if (n >= 2)
        vec_store_f64(p, a);
    else if (n == 1)
        *p = wasm_f64x2_extract_lane(a.v, 0);
}

static inline vec_f64 vec_fma_masked_f64(vec_f64 a, vec_f64 b, vec_f64 c, int64_t n)
{
    const v128_t first = wasm_i64x2_make(n > 0 ? -1 : 0, n > 1 ? -1 : 0);
    return (vec_f64){wasm_v128_bitselect(vec_fma_f64(a, b, c).v, c.v, first)};
}
static inline vec_f64 vec_rotate_f64(vec_f64 a, int64_t n)
{
    return n ? (vec_f64){wasm_i64x2_shuffle(a.v, a.v, 1, 0)} : a;
}
static inline vec_f64 vec_join_f64(vec_f64 a, vec_f64 b, int64_t n)
{
    return n ? (vec_f64){wasm_i64x2_shuffle(a.v, b.v, 1, 2)} : a;
}

static inline double vec_reduce_add_f64(vec_f64 a)
{
    return wasm_f64x2_extract_lane(a.v, 0) + wasm_f64x2_extract_lane(a.v, 1);
}

/* The first n of 4 numbers of 16 bits, each in 32, and zeros. */
static inline v128_t load_16_masked(const uint16_t *p, int64_t n)
{
    uint16_t part[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return wasm_u32x4_load16x4(part);
}

enum { LOAD_CPU_f32_bf16 = 0 };
static inline vec_f32 load_w_f32_bf16(const bf16 *p) { return wasm_i32x4_shl(wasm_u32x4_load16x4(p), 16); }
static inline vec_f32 load_w_masked_f32_bf16(const bf16 *p, int64_t n) { return wasm_i32x4_shl(load_16_masked(&p->bits, n), 16); }

enum { LOAD_CPU_f32_f16 = 0 };
/* Exponent and significand in a float's places have the value times 2^-112, subnormal numbers too. Of infinity and NaN the
 * exponent is written, and NaN is made quiet. */
static inline vec_f32 widen_f16(v128_t w)
{
    const v128_t sign = wasm_i32x4_shl(wasm_v128_and(w, wasm_i32x4_const_splat(0x8000)), 16);
    const v128_t magnitude = wasm_v128_and(w, wasm_i32x4_const_splat(0x7fff)), bits = wasm_i32x4_shl(magnitude, 13);
    const v128_t finite = wasm_f32x4_mul(bits, wasm_f32x4_const_splat(0x1p112f));
    const v128_t quiet = wasm_v128_and(wasm_i32x4_gt(magnitude, wasm_i32x4_const_splat(0x7c00)), wasm_i32x4_const_splat(1 << 22));
    const v128_t special = wasm_v128_or(wasm_v128_or(bits, quiet), wasm_i32x4_const_splat(0x7f800000));
    const v128_t is_finite = wasm_i32x4_lt(magnitude, wasm_i32x4_const_splat(0x7c00));
    return wasm_v128_or(sign, wasm_v128_bitselect(finite, special, is_finite));
}
static inline vec_f32 load_w_f32_f16(const f16 *p) { return widen_f16(wasm_u32x4_load16x4(p)); }
static inline vec_f32 load_w_masked_f32_f16(const f16 *p, int64_t n) { return widen_f16(load_16_masked(&p->bits, n)); }

enum { LOAD_CPU_f32_i8 = 0 };
static inline vec_f32 load_w_masked_f32_i8(const i8 *p, int64_t n)
{
    int32_t part[4] = {0};
    for (int64_t i = 0; i < n && i < 4; i++)
        part[i] = p[i];
    return wasm_f32x4_convert_i32x4(wasm_v128_load(part));
}
static inline vec_f32 load_w_f32_i8(const i8 *p)
{
    return wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p))));
}
