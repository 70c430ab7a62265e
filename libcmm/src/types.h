/* THE LIST of types that kernels are for, and what each type is.
 *
 *     TYPE(name, X, W)
 *
 * X is the type of tokens, bias, sums, logits and outputs; W that of the rows of weights. A kernel file says which list
 * it is for, and for_each_type.h compiles it once for each line. Rows may be narrower than tokens: the arithmetic is
 * that of X, and how a row is widened stands in the vector headers (load_w) and here (widen) alone. */
#ifndef CMM_TYPES_H
#define CMM_TYPES_H

#include "kernel.h"

#include <stddef.h>
#include <string.h>

/* Rows in the type of the tokens. */
#define CMM_SAME_TYPES(TYPE)  \
    TYPE(f32, float, float)   \
    TYPE(f64, double, double) \
    /* end of the list */

/* Rows narrower than the tokens. */
#define CMM_NARROW_TYPES(TYPE)  \
    TYPE(f32_bf16, float, bf16) \
    TYPE(f32_f16, float, f16)   \
    TYPE(f32_i8, float, i8)     \
    /* end of the list */

#define CMM_TYPES(TYPE) CMM_SAME_TYPES(TYPE) CMM_NARROW_TYPES(TYPE)

/* Per type: its number in cmm.h; of a type of tokens the suffix of what is for it alone, and the letter of its BLAS
 * functions. Per line of the list: how an element of a row is widened, and where it is narrower, narrowed: divided by
 * the row's scale, which is 1 where a row has none, and rounded to the nearest number, ties to even; to infinity beyond the largest, as IEEE 754 has it; NaN stays NaN, a quiet one. */
#define CMM_DTYPE_float CMM_F32
#define CMM_SUFFIX_float f32
#define CMM_BLAS_float s
static inline float widen_f32(float w) { return w; }

#define CMM_DTYPE_double CMM_F64
#define CMM_SUFFIX_double f64
#define CMM_BLAS_double d
static inline double widen_f64(double w) { return w; }

static inline uint32_t cmm_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float cmm_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* bfloat16: the upper half of a float. */
typedef struct {
    uint16_t bits;
} bf16;
#define CMM_DTYPE_bf16 CMM_BF16

static inline float widen_f32_bf16(bf16 w)
{
    return cmm_float_of((uint32_t)w.bits << 16);
}

static inline float scale_for_f32_bf16(const float *row, int64_t n)
{
    (void)row;
    (void)n;
    return 1;
}

static inline bf16 narrow_f32_bf16(float x, float scale)
{
    (void)scale;
    const uint32_t bits = cmm_bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (bf16){(uint16_t)(bits >> 16 | 0x40)};
    return (bf16){(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)}; /* a carry goes into the exponent, as it should */
}

/* float16: a sign, 5 bits of exponent, 10 of significand. By integer arithmetic, for any CPU. */
typedef struct {
    uint16_t bits;
} f16;
#define CMM_DTYPE_f16 CMM_F16

static inline float widen_f32_f16(f16 w)
{
    const uint32_t sign = (uint32_t)(w.bits & 0x8000) << 16, exponent = w.bits >> 10 & 31, significand = w.bits & 0x3ff;
    if (exponent == 0) /* a multiple of 2^-24, and as a float a normal number */
        return cmm_float_of(sign | cmm_bits_of((float)significand * 0x1p-24f));
    if (exponent == 31)
        return cmm_float_of(sign | 0x7f800000 | significand << 13 | (significand ? 1u << 22 : 0));
    return cmm_float_of(sign | (exponent + 127 - 15) << 23 | significand << 13);
}

static inline float scale_for_f32_f16(const float *row, int64_t n)
{
    (void)row;
    (void)n;
    return 1;
}

static inline f16 narrow_f32_f16(float x, float scale)
{
    (void)scale;
    const uint32_t bits = cmm_bits_of(x), sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255;
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (f16){(uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff))};
    if (exponent >= 127 + 16)
        return (f16){(uint16_t)(sign | 0x7c00)};
    if (exponent >= 127 - 14) { /* a carry goes into the exponent, and from the largest one on to infinity */
        const uint32_t magnitude = (bits & 0x7fffffff) - ((127u - 15) << 23);
        return (f16){(uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13)};
    }
    if (exponent < 127 - 25) /* less than half of the least number */
        return (f16){(uint16_t)sign};
    const uint32_t shift = 126 - exponent, significand = (bits & 0x7fffff) | 0x800000; /* in multiples of 2^-24 */
    return (f16){(uint16_t)(sign | (significand + (1u << (shift - 1)) - 1 + (significand >> shift & 1)) >> shift)};
}

/* int8: a whole number from -127 to 127, what a row's elements are in multiples of its scale. The scale is the largest
 * magnitude / 127; 1 for a row of zeros; and never 0, for which the smallest number there is stands. */
typedef int8_t i8;
#define CMM_DTYPE_i8 CMM_I8

static inline float widen_f32_i8(i8 w)
{
    return (float)w;
}

static inline float scale_for_f32_i8(const float *row, int64_t n)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const float magnitude = cmm_float_of(cmm_bits_of(row[i]) & 0x7fffffff);
        largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = largest / 127;
    return largest == 0 ? 1 : scale > 0 ? scale : 0x1p-149f;
}

static inline i8 narrow_f32_i8(float x, float scale)
{
    const float steps = x / scale, magic = 0x1.8p23f; /* beyond which a float has no fractions: the sum is rounded to even */
    const float whole = steps + magic - magic;
    return (i8)(whole > 127 ? 127 : whole < -127 ? -127 : whole);
}

/* What a kernel file gives to the table: its kernels, one for each line of its list, by their traits. */
#define CMM_EXPORT(symbol) const cmm_traits *const symbol[] = {CMM_LIST(CMM_TRAITS_OF) NULL};
#define CMM_TRAITS_OF(name, x, w) &kernel_##name.traits,

#endif
