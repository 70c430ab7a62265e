/* Portable C for any CPU. What each operation means is said in simd/README.md.
 *
 * The other instruction sets fuse multiply and add, and this one must give their bits. Where the CPU cannot fuse, the
 * C library's fma() is a slow call, so it is done here: the product of two floats is exact in double; adding the third
 * in double rounds once too often, unless that first rounding is to odd (Boldo and Melquiond, "Emulation of FMA and
 * correctly rounded sums: proved algorithms using rounding to odd", 2008). For doubles the C library's is used where that
 * is known to round once. It is not on Windows, where MinGW's rounds twice, nor with musl, whose (1.2.3) makes +0 of a
 * negative product that underflows, nor of every small system; there it is computed in integers. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../types.h"

#define ISA scalar
#define ISA_CPU 0

static inline void vec_fence(void) {}

enum { VL_f32 = 4, VL_f64 = 2 };
#define REGISTERS 16
#define MR 1
#define COLUMNS 4
#define COLUMNS_ALONE 8

typedef struct {
    float v[VL_f32];
} vec_f32;
typedef struct {
    double v[VL_f64];
} vec_f64;

#if defined(__FP_FAST_FMAF)
static inline float fma_one_f32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline float fma_one_f32(float a, float b, float c)
{
    const double product = (double)a * (double)b, addend = (double)c;
    const double sum = product + addend;
    const double of_addend = sum - product; /* Knuth's two-sum: what the addition lost */
    const double lost = (product - (sum - of_addend)) + (addend - of_addend);
    int64_t bits, direction;
    memcpy(&bits, &sum, sizeof bits);
    memcpy(&direction, &lost, sizeof direction);
    /* Inexact, and the last bit is even: step to the odd neighbour on the side of the exact sum. A lost part that is
     * NaN (from infinities) compares as neither, and changes nothing. */
    const int64_t step = (direction ^ bits) < 0 ? -1 : 1;
    bits += (lost < 0 || lost > 0) && !(bits & 1) ? step : 0;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}
#endif

#if defined(__SIZEOF_INT128__)
__extension__ typedef unsigned __int128 uint128;

/* A finite double that is not 0 as a significand of 53 bits, the first of them 1, and the exponent of the last. */
static inline uint64_t take_apart(double x, int *exponent)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
    const int biased = (int)(bits >> 52 & 0x7ff), zeros = biased ? 0 : __builtin_clzll(fraction) - 11;
    *exponent = (biased ? biased : 1) - 1075 - zeros;
    return (biased ? fraction | (uint64_t)1 << 52 : fraction) << zeros;
}

/* Shifted right; the last bit says whether a bit was lost, too, so that it rounds as the whole would. */
static inline uint128 shift_down(uint128 x, int by)
{
    return by <= 0 ? x : by > 127 ? x != 0 : x >> by | ((x & (((uint128)1 << by) - 1)) != 0);
}

/* a b + c in integers, rounded once, to nearest. */
static inline double fma_of_integers(double a, double b, double c)
{
    if (!(__builtin_isfinite(a) && __builtin_isfinite(b)) || a == 0 || b == 0)
        return a * b + c; /* exact, or no number */
    if (!__builtin_isfinite(c) || c == 0)
        return __builtin_isfinite(c) ? a * b : c + c;
    int of_a, of_b, exponent, of_c;
    const uint64_t m = take_apart(a, &of_a), n = take_apart(b, &of_b);
    /* Both with their first bit at 124 or 125, so that the sum has room. Where the lower one loses bits below, it is
     * so much less than the other that the sum's 53 bits are far above them. */
    uint128 product = (uint128)m * n << 20, addend = (uint128)take_apart(c, &of_c) << 73;
    exponent = of_a + of_b - 20;
    of_c -= 73;
    const int negative = (__builtin_signbit(a) != 0) != (__builtin_signbit(b) != 0), minus = negative != (__builtin_signbit(c) != 0);
    const int apart = exponent - of_c;
    product = shift_down(product, -apart);
    addend = shift_down(addend, apart);
    exponent = apart > 0 ? exponent : of_c;
    const int flipped = minus && addend > product;
    const uint128 sum = !minus ? product + addend : flipped ? addend - product : product - addend;
    if (sum == 0)
        return 0;
    /* The 53 bits that stay, or fewer where the last is that of the least number. */
    const uint64_t high = (uint64_t)(sum >> 64);
    const int length = high ? 128 - __builtin_clzll(high) : 64 - __builtin_clzll((uint64_t)sum);
    const int excess = length - 53 > -1074 - exponent ? length - 53 : -1074 - exponent;
    exponent += excess + 1074;
    /* Two more, to round by: the second says whether anything is below the first. */
    const uint64_t rest = (uint64_t)(excess > 2 ? shift_down(sum, excess - 2) : sum << (2 - excess));
    const uint64_t rounded = (rest >> 2) + (rest >> 1 & 1 & (rest | rest >> 2));
    uint64_t bits = exponent + (int)(rounded >> 52) >= 0x7ff ? (uint64_t)0x7ff << 52 : ((uint64_t)exponent << 52) + rounded;
    bits |= (uint64_t)(negative != flipped) << 63;
    double result;
    memcpy(&result, &bits, sizeof result);
    return result;
}
#endif

#if defined(__SIZEOF_INT128__) && !defined(__FP_FAST_FMA) && !defined(__GLIBC__) && !defined(__APPLE__)
static inline double fma_one_f64(double a, double b, double c) { return fma_of_integers(a, b, c); }
#else
static inline double fma_one_f64(double a, double b, double c) { return fma(a, b, c); }
#endif

#define OPERATIONS(X, NAME)                                                                                          \
    static inline NAME(vec) NAME(vec_broadcast)(X a)                                                                       \
    {                                                                                                                \
        NAME(vec) r;                                                                                                 \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            r.v[i] = a;                                                                                              \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_zero)(void) { return NAME(vec_broadcast)(0); }                                        \
    static inline NAME(vec) NAME(vec_load)(const X *p)                                                               \
    {                                                                                                                \
        NAME(vec) r;                                                                                                 \
        memcpy(r.v, p, sizeof r.v);                                                                                  \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline void NAME(vec_store)(X *p, NAME(vec) a) { memcpy(p, a.v, sizeof a.v); }                            \
    static inline void NAME(vec_store_nt)(X *p, NAME(vec) a) { NAME(vec_store)(p, a); }                                \
    static inline NAME(vec) NAME(vec_pin)(NAME(vec) a) { return a; }                                                \
    static inline NAME(vec) NAME(vec_load_masked)(const X *p, int64_t n)                                               \
    {                                                                                                                \
        NAME(vec) r = NAME(vec_zero)();                                                                              \
        for (int i = 0; i < NAME(VL) && i < n; i++)                                                                  \
            r.v[i] = p[i];                                                                                           \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline void NAME(vec_store_masked)(X *p, NAME(vec) a, int64_t n)                                            \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL) && i < n; i++)                                                                  \
            p[i] = a.v[i];                                                                                           \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_add)(NAME(vec) a, NAME(vec) b)                                                  \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            a.v[i] += b.v[i];                                                                                        \
        return a;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_fma)(NAME(vec) a, NAME(vec) b, NAME(vec) c)                                     \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            c.v[i] = NAME(fma_one)(a.v[i], b.v[i], c.v[i]);                                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_fma_masked)(NAME(vec) a, NAME(vec) b, NAME(vec) c, int64_t n)                   \
    {                                                                                                                \
        for (int64_t i = 0; i < NAME(VL) && i < n; i++)                                                              \
            c.v[i] = NAME(fma_one)(a.v[i], b.v[i], c.v[i]);                                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_rotate)(NAME(vec) a, int64_t n)                                                 \
    {                                                                                                                \
        NAME(vec) b;                                                                                                 \
        for (int64_t i = 0; i < NAME(VL); i++)                                                                       \
            b.v[i] = a.v[(i + n) % NAME(VL)];                                                                        \
        return b;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_join)(NAME(vec) a, NAME(vec) b, int64_t n)                                      \
    {                                                                                                                \
        NAME(vec) c;                                                                                                 \
        for (int64_t i = 0; i < NAME(VL); i++)                                                                       \
            c.v[i] = i + n < NAME(VL) ? a.v[i + n] : b.v[i + n - NAME(VL)];                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline X NAME(vec_reduce_add)(NAME(vec) a)                                                                     \
    {                                                                                                                \
        for (int half = NAME(VL) / 2; half > 0; half /= 2)                                                           \
            for (int i = 0; i < half; i++)                                                                           \
                a.v[i] += a.v[i + half];                                                                             \
        return a.v[0];                                                                                               \
    }
#define F32(x) x##_f32
#define F64(x) x##_f64
OPERATIONS(float, F32)
OPERATIONS(double, F64)
#undef OPERATIONS
#undef F32
#undef F64

/* Rows that are narrower, element by element: TYPE is a line of the list of types, SUFFIX its X. */
#define LOAD_W(TYPE, SUFFIX, W)                                                                                      \
    enum { LOAD_CPU_##TYPE = 0 };                                                                                    \
    static inline vec_##SUFFIX load_w_masked_##TYPE(const W *p, int64_t n)                                           \
    {                                                                                                                \
        vec_##SUFFIX r = vec_zero_##SUFFIX();                                                                        \
        for (int i = 0; i < VL_##SUFFIX && i < n; i++)                                                               \
            r.v[i] = widen_##TYPE(p[i]);                                                                             \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline vec_##SUFFIX load_w_##TYPE(const W *p) { return load_w_masked_##TYPE(p, VL_##SUFFIX); }
LOAD_W(f32_bf16, f32, bf16)
LOAD_W(f32_f16, f32, f16)
LOAD_W(f32_i8, f32, i8)
#undef LOAD_W
