/* A fused multiply-add of one float or double, for instruction sets that cannot fuse.
 *
 * The other instruction sets fuse multiply and add, and these must give their bits. Where the CPU cannot fuse, the
 * C library's fma() is a slow call, so it is done here: the product of two floats is exact in double; adding the third
 * in double rounds once too often, unless that first rounding is to odd (Boldo and Melquiond, "Emulation of FMA and
 * correctly rounded sums: proved algorithms using rounding to odd", 2008). For doubles the C library's is used where that
 * is known to round once. It is not on Windows, where MinGW's rounds twice, nor with musl and WASI, whose (musl 1.2.3)
 * makes +0 of a negative product that underflows, nor of every small system; there it is computed in integers,
 * where the compiler has such of 128 bits: for 64-bit CPUs and WebAssembly. */
#ifndef CMM_FMA_H
#define CMM_FMA_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

#endif
